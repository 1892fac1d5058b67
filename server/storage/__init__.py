"""Storage: every SQL statement of the server. Returns values, and knows nothing of HTTP."""
