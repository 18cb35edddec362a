"""The state machine of rollouts: what an event makes of an app's state, and what the journal shall say of it.

Called by `registry.controller`, which records what comes out in one transaction and then makes the pending writes.
Pure and level-triggered: an event that is lost is made up for by the next look, one that comes twice changes nothing
the second time, and a controller that dies anywhere goes on from what it recorded last.
"""

from __future__ import annotations

from dataclasses import replace

from registry.rollout import outbox
from registry.rollout.aliases import on_aliases
from registry.rollout.commands import on_command
from registry.rollout.draft import Draft
from registry.rollout.observed import on_observed
from registry.rollout.state import AliasesSeen, AppState, CommandSeen, Event, Observed
from registry.rollout.traffic import traffic_of
from registry.traffic import Command, Entry


def advance(state: AppState, event: Event, now: float) -> tuple[AppState, tuple[Entry, ...]]:
    """The next state and the entries, oldest first; the same state (the very object) where nothing changes.

    `now` is Unix time; a clock that steps does no harm (`Rollout.elapsed_s`). `generation` rises by one exactly when
    `traffic_of` changes otherwise. Nothing is raised for an event that makes no sense: a command that cannot be done
    gives an entry "refused-command", the rest is passed over.
    """
    draft = Draft(state, now)
    if isinstance(event, AliasesSeen):
        on_aliases(draft, event)
    elif isinstance(event, Command):
        on_command(draft, CommandSeen(event))
    elif isinstance(event, CommandSeen):
        on_command(draft, event)
    elif isinstance(event, Observed):
        on_observed(draft, event)
    else:
        draft.state = outbox.without(state, event)
    return _numbered(state, draft.state), tuple(draft.entries)


def _numbered(before: AppState, after: AppState) -> AppState:
    if after == before:
        return before
    if traffic_of(after) == traffic_of(before):
        return after
    generation = before.generation + 1
    rollout = after.rollout
    if rollout is not None and (before.rollout is None or before.rollout.id != rollout.id):
        rollout = replace(rollout, generation=generation)
    return replace(after, generation=generation, rollout=rollout)
