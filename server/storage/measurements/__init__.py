"""The measurements of a run in the database: segments as they came, tiles made from them, and the queries over both."""
