"""What serving keeps in the one SQL database: items, traces, feedback the words clients taught, and
what sessions remember."""

from serving.store.expansions import SqlExpansions
from serving.store.feedback import SqlFeedbackStore
from serving.store.items import SqlItemStore
from serving.store.sessions import SqlSessionStore

__all__ = ["SqlExpansions", "SqlFeedbackStore", "SqlItemStore", "SqlSessionStore"]
