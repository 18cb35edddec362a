"""Judges a canary against its control, at any time and as often as one likes. Pure.

`registry.scoreboard` feeds an `Analysis` with what routers saw and asks it for a `Verdict`.
"""

from registry.analysis.analysis import Analysis
from registry.analysis.verdict import GuardResult, GuardState, LiveVerdict, ShadowCounts, Verdict

__all__ = ["Analysis", "GuardResult", "GuardState", "LiveVerdict", "ShadowCounts", "Verdict"]
