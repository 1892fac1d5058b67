"""Runs a server or a dashboard on a socket."""
