"""What serving keeps in the one SQL database: items, traces, feedback and the words clients taught."""

from serving.store.expansions import SqlExpansions
from serving.store.feedback import SqlFeedbackStore
from serving.store.items import SqlItemStore

__all__ = ["SqlExpansions", "SqlFeedbackStore", "SqlItemStore"]
