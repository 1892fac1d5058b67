"""The history of the schema, for Alembic. Applied by `server.storage.migrate` and by the command `alembic`."""
