"""The parts of a server that have a name of their own, each built from the configuration; `server.main` composes them.

Nothing below this floor builds a collaborator, and nothing here decides anything.
"""
