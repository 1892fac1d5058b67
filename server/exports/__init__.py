"""Runs as files: Parquet, CSV and the frames of the Python read API (docs/export.md)."""
