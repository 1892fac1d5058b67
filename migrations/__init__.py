"""History of the schema for Alembic, applied by `server.storage.migrate` and by the command `alembic`."""
