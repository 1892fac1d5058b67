"""HTTP reads and settings: ``/api/v1`` (CONTRACT.md), health and readiness."""
