"""Import of logs of other tools as runs: TensorBoard, W&B, CSV and Parquet (docs/how-to/export-and-import.md)."""
