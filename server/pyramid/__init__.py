"""The codec of tiles and buckets: columns to bytes and back, and the reductions that hide no spike. Pure."""
