"""The ingest socket ``WS /api/v1/ingest``: frames in, commits, acknowledgements and alerts out (docs/protocol.md)."""
