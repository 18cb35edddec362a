"""Alembic runs this file for every command; `registry.database.migrate` hands it the connection and its lock."""

from alembic import context

from registry.database.engine import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
