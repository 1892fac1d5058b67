"""Import of logs of other tools as runs: TensorBoard, W&B, CSV and Parquet (docs/export.md)."""
