"""Export of runs as files: Parquet, CSV, archives, and the frames of the Python read API.

docs/how-to/export-and-import.md describes the formats.
"""
