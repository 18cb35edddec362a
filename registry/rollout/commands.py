"""What a person asks for, from the shell or the admin routes. What cannot be done is refused with the reason, in an
entry that the person is shown; nothing else happens then, so that a command that comes twice does no harm."""

from __future__ import annotations

from collections.abc import Callable

from registry.plan import RolloutPlan
from registry.rollout import moves, outbox
from registry.rollout.draft import By, Draft
from registry.rollout.state import CommandSeen, Rollout

ROLLED_BACK_JUST_NOW_S = 60.0
"""Who sees a canary fail and rolls back must not take stable back because the machine was quicker."""

Answer = str | None
"""Why not; None: done."""


def on_command(draft: Draft, event: CommandSeen) -> None:
    command = event.command
    draft.command = command.id
    before, told = draft.state, len(draft.entries)
    answer = _VERBS[command.verb](draft, event, By(command.who, command.why))
    if answer is not None:
        assert draft.state is before, "a refused command changes nothing"
        assert len(draft.entries) == told, "and tells nothing else"
        why = f"{command.verb}: {answer}"
        draft.tell("refused-command", By(command.who, why), command.version, asked=command.why)


def _start(draft: Draft, event: CommandSeen, by: By) -> Answer:
    version, stable, rollout = event.command.version, draft.state.stable, draft.state.rollout
    if version is None:
        return "name the version to start"
    if stable is None:
        return "there is no stable release to compare it with; switch to one first"
    if version == stable:
        return f"nothing to try: version {version} is stable already"
    plan = _plan(event, version)
    if isinstance(plan, str):
        return plan
    if rollout is not None and rollout.trial and rollout.version == version:
        return f"version {version} is on its way already" + ("; resume it" if rollout.paused else "")
    draft.write_alias("canary", version)  # first, so that ending the other one does not remove the alias
    moves.make_room(draft, version, by.who)
    moves.begin(draft, version, plan, by)
    return None


def _pause(draft: Draft, event: CommandSeen, by: By) -> Answer:
    rollout = _running(draft, event)
    if isinstance(rollout, str):
        return rollout
    if rollout.paused:
        return "it is paused already"
    draft.tell("paused", by, rollout.version)
    draft.set_rollout(rollout, paused=True)
    return None


def _resume(draft: Draft, event: CommandSeen, by: By) -> Answer:
    rollout = _running(draft, event)
    if isinstance(rollout, str):
        return rollout
    if not rollout.paused:
        return "it is not paused"
    draft.tell("resumed", by, rollout.version)
    draft.enter(rollout)
    return None


def _promote(draft: Draft, event: CommandSeen, by: By) -> Answer:
    rollout = _running(draft, event)
    if isinstance(rollout, str):
        return rollout
    if not rollout.trial:
        return f"version {rollout.version} is stable already; it bakes"
    if rollout.phase == "loading":
        return f"version {rollout.version} is being loaded; wait until it is ready"
    moves.promote(draft, rollout, by)
    return None


def _abort(draft: Draft, event: CommandSeen, by: By) -> Answer:
    rollout = _running(draft, event)
    if isinstance(rollout, str):
        return rollout
    if not rollout.trial:
        return f"version {rollout.version} is stable already; roll back to return to version {rollout.base}"
    moves.end(draft, rollout, "aborted", by)
    return None


def _rollback(draft: Draft, event: CommandSeen, by: By) -> Answer:
    rollout, previous, stable = draft.state.rollout, draft.state.previous, draft.state.stable
    if rollout is not None:
        if event.command.version not in (None, rollout.version):
            return f"the rollout is of version {rollout.version}"
        moves.roll_back(draft, rollout, by)
        return None
    if event.command.version not in (None, stable):
        return f"version {stable} is stable; to go to a version, switch to it"
    if previous is None:
        return "there is no previous release to return to; switch to a version"
    ended_s = draft.state.ended_s
    if event.command.version is None and ended_s is not None and 0 <= draft.now - ended_s < ROLLED_BACK_JUST_NOW_S:
        return f"a rollout ended just now, and version {stable} serves; to leave that one too, name it"
    moves.go_back(draft, previous, by)
    return None


def _switch(draft: Draft, event: CommandSeen, by: By) -> Answer:
    version = event.command.version
    if version is None:
        return "name the version to switch to"
    if version == draft.state.stable:
        if outbox.aim(draft.state, "stable") == version:
            return f"version {version} is stable already"
        draft.write_alias("stable", version)
        draft.tell("note", by, version)
        moves.confirm_stable(draft)
        return None
    plan = _plan(event, version)
    if isinstance(plan, str):
        return plan
    moves.switch(draft, version, plan, by, {})
    return None


def _plan(event: CommandSeen, version: int) -> RolloutPlan | str:
    if event.refused is not None:
        return event.refused
    return f"there is no version {version}" if event.plan is None else event.plan


def _running(draft: Draft, event: CommandSeen) -> Rollout | str:
    rollout = draft.state.rollout
    if rollout is None:
        return "there is no rollout"
    if event.command.version not in (None, rollout.version):
        return f"the rollout is of version {rollout.version}"
    return rollout


_VERBS: dict[str, Callable[[Draft, CommandSeen, By], Answer]] = {
    "start": _start,
    "pause": _pause,
    "resume": _resume,
    "promote": _promote,
    "abort": _abort,
    "rollback": _rollback,
    "switch": _switch,
}
