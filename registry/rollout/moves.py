"""The moves of a rollout: begin, promote, take back, end. Each keeps traffic, aliases, tags and journal in step.

Called by `aliases`, `commands` and `observed`, which know when; here is only how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from registry.plan import RolloutPlan
from registry.rollout import outbox
from registry.rollout.draft import By, Draft
from registry.rollout.state import Rollout


def begin(draft: Draft, version: int, plan: RolloutPlan, by: By) -> None:
    """Try `version` against stable, from loading on. Whoever asks for it lifts its quarantine."""
    base = draft.state.stable
    assert base is not None, "callers refuse a canary while there is nothing to compare it with"
    details = lift(draft, version)
    _new_rollout(draft, Rollout(0, version, base, "loading", plan, draft.now, draft.now, by.who, by.why))
    draft.tell("started", by, version, base=base, steps_percent=list(plan.steps_percent), **details)
    draft.tag(version, "running", by)


def _new_rollout(draft: Draft, rollout: Rollout) -> None:
    number = draft.state.rollouts + 1
    draft.set(rollouts=number)
    draft.enter(rollout, id=number)


def lift(draft: Draft, version: int) -> dict[str, str]:
    """A person wants it in spite of its quarantine. Returns what the entry about it says of that."""
    quarantined = dict(draft.state.quarantined)
    reason = quarantined.pop(version, None)
    if reason is None:
        return {}
    draft.set(quarantined=quarantined)
    return {"quarantine_lifted": reason}


def promote(draft: Draft, rollout: Rollout, by: By) -> None:
    """It is stable now, whatever it is compared with afterwards. What a person promotes is watched, not undone."""
    draft.tell("promoted", by, rollout.version, previous=draft.state.stable, bake_s=rollout.plan.bake_s)
    draft.tag(rollout.version, "promoted", by)
    _free_canary(draft, rollout.version)
    before = draft.state.previous
    _set_stable(draft, rollout.version, previous=draft.state.stable)
    if rollout.plan.bake_s == 0:
        draft.set(rollout=None)
    else:
        draft.enter(rollout, phase="baking", alarm_only=by.person, previous=before, control_failed=False)


def baked(draft: Draft, rollout: Rollout, by: By) -> None:
    draft.tell("baked", by, rollout.version)
    if not rollout.alarmed:
        draft.tag(rollout.version, "promoted", by)
    draft.set(rollout=None)


def end(draft: Draft, rollout: Rollout, kind: Literal["aborted", "superseded"], by: By) -> None:
    """No more of it, and nothing held against the version. One that bakes stays stable."""
    draft.tell(kind, by, rollout.version)
    draft.tag(rollout.version, kind if rollout.trial else "promoted", by)
    _free_canary(draft, rollout.version)
    draft.set(rollout=None, ended_s=draft.now if rollout.trial else draft.state.ended_s)


def roll_back(draft: Draft, rollout: Rollout, by: By, kind: Literal["rolled-back", "refused"] = "rolled-back") -> None:
    """Stable is what it was before, and the version is not tried again until a person asks for it."""
    draft.tell(kind, by, rollout.version, to=rollout.base)
    draft.tag(rollout.version, f"refused: {by.why}" if kind == "refused" else "rolled back", by)
    _free_canary(draft, rollout.version)
    if not rollout.trial:
        _set_stable(draft, rollout.base, previous=rollout.previous)
    draft.set(rollout=None, ended_s=draft.now)
    _quarantine(draft, rollout.version, by)


def go_back(draft: Draft, to: int, by: By) -> None:
    """To `previous`, long after its rollout. There is no `previous` then: asking twice does not come back here."""
    bad = draft.state.stable
    assert bad is not None, "there is no previous release without a stable one"
    draft.tell("rolled-back", by, bad, to=to)
    draft.tag(bad, "rolled back", by)
    _set_stable(draft, to, previous=None)
    draft.set(ended_s=draft.now)
    _quarantine(draft, bad, by)


def switch(draft: Draft, version: int, plan: RolloutPlan, by: By, unusable: Mapping[int, str]) -> None:
    """A person moved stable: at once, and watched against the release before where that can still be run.

    Of a canary it is the promotion. A return to the previous release is not compared with the one that was left.
    `unusable` names versions that cannot be run any more.
    """
    rollout, old, before = draft.state.rollout, draft.state.stable, draft.state.previous
    details = lift(draft, version)
    if rollout is not None and rollout.trial and rollout.version == version:
        promote(draft, rollout, by)
        return
    if rollout is not None:
        end(draft, rollout, "aborted", By(by.who, f"stable was moved to version {version}", by.verdict))
    _set_stable(draft, version, previous=old)
    compared = plan.bake_s > 0 and version != before and old is not None and old not in unusable
    if compared and old is not None:
        bake = Rollout(0, version, old, "baking", plan, draft.now, draft.now, by.who, by.why, alarm_only=True)
        _new_rollout(draft, replace(bake, previous=before))
    draft.tell("switched", by, version, previous=old, **details)
    draft.tag(version, "switched", by)


def confirm_stable(draft: Draft) -> None:
    """A person set stable to what serves already. A trial against it goes on; a bake of it undoes nothing any more."""
    rollout = draft.state.rollout
    if rollout is not None and not rollout.trial:
        draft.set_rollout(rollout, alarm_only=True)


def refuse_stable(draft: Draft, version: int, by: By) -> None:
    """A person moved stable to what cannot be served. What serves goes on, and the machine does not move stable off
    there because of something that began before: a trial ends, a bake only alarms."""
    rollout = draft.state.rollout
    refuse(draft, version, by)
    if rollout is not None and rollout.trial:
        end(draft, rollout, "aborted", By(by.who, f"stable was moved to version {version}, which is refused"))
    elif rollout is not None:
        draft.set_rollout(rollout, alarm_only=True)


def refuse(draft: Draft, version: int, by: By) -> None:
    draft.tell("refused", by, version)
    draft.tag(version, f"refused: {by.why}", by)


def make_room(draft: Draft, canary: int, who: str) -> None:
    """End whatever runs, so that `canary` can begin. What bakes is kept: it is good as far as was seen."""
    rollout = draft.state.rollout
    if rollout is not None:
        kept = "instead" if rollout.trial else f"before the bake was over; version {rollout.version} is kept"
        end(draft, rollout, "superseded", By(who, f"version {canary} was started {kept}"))


def _set_stable(draft: Draft, version: int, previous: int | None) -> None:
    """Both aliases with it."""
    draft.write_alias("stable", version)
    draft.write_alias("previous", previous)
    draft.set(stable=version, previous=previous)


def _quarantine(draft: Draft, version: int, by: By) -> None:
    draft.set(quarantined={**draft.state.quarantined, version: by.why})
    if draft.state.previous == version:
        draft.write_alias("previous", None)
        draft.set(previous=None)


def _free_canary(draft: Draft, version: int) -> None:
    """The alias goes, unless a person, or the next rollout, put it on another version."""
    if outbox.aim(draft.state, "canary") == version:
        draft.write_alias("canary", None)
