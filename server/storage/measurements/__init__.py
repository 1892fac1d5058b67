"""Measurements of runs in the database: committed segments, tiles built from them, and the queries over both."""
