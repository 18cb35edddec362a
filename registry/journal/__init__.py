"""What rollouts keep in the one SQL database: states and traffic, reports, evidence, the journal and the lease."""

from registry.journal.sql_board import SqlBoard
from registry.journal.sql_evidence import SqlEvidence
from registry.journal.sql_journal import SqlJournal

__all__ = ["SqlBoard", "SqlEvidence", "SqlJournal"]
