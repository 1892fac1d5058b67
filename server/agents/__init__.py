"""What agents may ask over MCP at ``/mcp``: read-only tools with the tokens and the project isolation of the API."""
