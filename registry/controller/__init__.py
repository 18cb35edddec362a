"""The controller of rollouts: observe, decide, record, apply, over and over; safe to run twice, safe to kill anywhere.

`palate controller` (in `serving.commands`, which also knows where feedback is stored) makes a `Controller` and calls
`run`. It decides nothing itself: `registry.rollout` does.
"""

from registry.controller.loop import Controller, Ports, Settings, Ticks, run
from registry.controller.switchboard import Found, Switchboard, Visit

__all__ = ["Controller", "Found", "Ports", "Settings", "Switchboard", "Ticks", "Visit", "run"]
