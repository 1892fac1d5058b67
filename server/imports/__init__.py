"""Logs of other tools become runs: TensorBoard, W&B, CSV, Parquet (docs/export.md)."""
