"""Builds the larger parts of a server from its configuration; `server.main` composes them."""
