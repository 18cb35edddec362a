"""What MLflow's aliases say: `stable` moved switches, `canary` set starts, `canary` removed aborts. Our own writes say
nothing (`outbox`)."""

from __future__ import annotations

from registry.rollout import moves, outbox
from registry.rollout.draft import CONTROLLER, IN_MLFLOW, By, Draft
from registry.rollout.state import AliasesSeen


def on_aliases(draft: Draft, event: AliasesSeen) -> None:
    _stable(draft, event)
    _canary(draft, event)


def _stable(draft: Draft, event: AliasesSeen) -> None:
    version = event.stable
    if not outbox.moved(draft.state, "stable", version):
        if outbox.aim(draft.state, "stable") == version:
            draft.state = outbox.settled(draft.state, "stable", version)
        return
    known = version is None or version == draft.state.stable or version in event.refused or version in event.plans
    if not known:
        return
    draft.state = outbox.settled(draft.state, "stable", version)
    if version is None:
        draft.tell("note", By(IN_MLFLOW, "stable alias is gone: what serves goes on serving"), draft.state.stable)
    elif version == draft.state.stable:
        moves.confirm_stable(draft)
    elif version in event.refused:
        moves.refuse_stable(draft, version, By(CONTROLLER, event.refused[version]))
    elif draft.state.stable is None:
        draft.set(stable=version)
        draft.tell("adopted", By(IN_MLFLOW, f"version {version} had the alias stable at first sight"), version)
    else:
        by = By(IN_MLFLOW, f"the alias stable was set to version {version}")
        moves.switch(draft, version, event.plans[version], by, event.refused)


def _canary(draft: Draft, event: AliasesSeen) -> None:
    """A canary that is set before there is any stable release waits for one."""
    if draft.state.stable is None:
        return
    version = event.canary
    if not outbox.moved(draft.state, "canary", version):
        if outbox.aim(draft.state, "canary") == version:
            draft.state = outbox.settled(draft.state, "canary", version)
        return
    if version is None:
        draft.state = outbox.settled(draft.state, "canary", None)
        _removed(draft)
    elif version == draft.state.stable or version in event.refused:
        draft.state = outbox.settled(draft.state, "canary", version)
        _refused(draft, version, event)
    elif version in event.plans:
        draft.state = outbox.settled(draft.state, "canary", version)
        _set(draft, version, event)


def _removed(draft: Draft) -> None:
    rollout = draft.state.rollout
    if rollout is not None and rollout.trial:
        moves.end(draft, rollout, "aborted", By(IN_MLFLOW, "the alias canary was removed"))


def _refused(draft: Draft, version: int, event: AliasesSeen) -> None:
    rollout = draft.state.rollout
    if rollout is not None and rollout.trial:
        moves.end(draft, rollout, "superseded", By(IN_MLFLOW, f"the alias canary was set to version {version}"))
    if version == draft.state.stable:
        draft.tell("refused", By(CONTROLLER, f"nothing to try: version {version} is stable already"), version)
    else:
        moves.refuse(draft, version, By(CONTROLLER, event.refused[version]))
    draft.write_alias("canary", None)


def _set(draft: Draft, version: int, event: AliasesSeen) -> None:
    rollout = draft.state.rollout
    if rollout is not None and rollout.trial and rollout.version == version:
        return
    moves.make_room(draft, version, IN_MLFLOW)
    by = By(IN_MLFLOW, f"the alias canary was set to version {version}")
    moves.begin(draft, version, event.plans[version], by)
