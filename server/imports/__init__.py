"""Import of logs of other tools as runs: TensorBoard, W&B, CSV, JSON lines, texts… (docs/how-to/import-logs.md)."""
