"""Codec of tiles and buckets: columns to bytes and back, and reductions that hide no spike. Pure: no I/O and no SQL."""
