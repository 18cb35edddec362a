"""The report of a rollout as one HTML page: what was decided, and the evidence it was decided on, plotted.

Called by the admin routes; pure but for `read_evidence` and `LiveCounts`, which ask a `registry.ports.EvidenceStore`.
"""

from registry.report.history import History, Judge, Tally, make_history, read_evidence
from registry.report.live import Counts, LiveCounts
from registry.report.page import report_html

__all__ = ["Counts", "History", "Judge", "LiveCounts", "Tally", "make_history", "read_evidence", "report_html"]
