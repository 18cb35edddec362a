"""The one SQL database: how it is opened, brought up to date and asked whether it is there.

What is kept in it is declared by its owners on `metadata` (`serving.store.tables`); the migrations live here, so that
one command brings the whole schema up to date.
"""

from registry.database.engine import Database, metadata, open_database
from registry.database.migrate import migrate, migrate_down, schema_versions

__all__ = ["Database", "metadata", "migrate", "migrate_down", "open_database", "schema_versions"]
