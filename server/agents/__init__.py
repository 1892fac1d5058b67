"""Questions of agents, answered over MCP at ``/mcp``: tools that only read, with the tokens and the project isolation
of the API."""
