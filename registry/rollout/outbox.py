"""What is still to be written in MLflow, and how a person's move of an alias is told from our own.

Nothing in MLflow says who moved an alias. So a write stands in the state before it is made and until it is known to be
made, and an alias that stands where a pending write of ours puts it, or where an earlier one that it replaced may have
put it, was moved by us. Whatever else differs from `seen_*` was moved by a person. One thing cannot be told: a person
who, while a write is pending, moves the alias to one of exactly these places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from registry.rollout.state import AliasName, AliasWrite, AppState, TagWrite, Written


def pending(state: AppState, alias: AliasName) -> AliasWrite | None:
    return next((write for write in state.alias_writes if write.alias == alias), None)


def seen(state: AppState, alias: AliasName) -> int | None:
    """Where it stood when it was last acted upon; for `previous`, which nobody else moves, where it stands."""
    return {"stable": state.seen_stable, "canary": state.seen_canary, "previous": state.previous}[alias]


def aim(state: AppState, alias: AliasName) -> int | None:
    """Where the alias will stand once everything is written."""
    write = pending(state, alias)
    return seen(state, alias) if write is None else write.version


def moved(state: AppState, alias: AliasName, now_at: int | None) -> bool:
    """Whether a person moved it there."""
    write = pending(state, alias)
    ours = () if write is None else (write.version, *write.replaces)
    return now_at != seen(state, alias) and now_at not in ours


def settled(state: AppState, alias: AliasName, now_at: int | None) -> AppState:
    """It stands at `now_at`, and that is known now: by a person's will, or because our write arrived."""
    state = replace(state, alias_writes=tuple(write for write in state.alias_writes if write.alias != alias))
    if alias == "stable":
        return replace(state, seen_stable=now_at)
    return replace(state, seen_canary=now_at) if alias == "canary" else state


def with_alias(state: AppState, alias: AliasName, version: int | None) -> AppState:
    """The alias shall stand at `version`. A write that is pending is replaced: it may have been made or not."""
    write = pending(state, alias)
    if write is None and seen(state, alias) == version:
        return state
    places = [seen(state, alias)] if write is None else [seen(state, alias), write.version, *write.replaces]
    replaces = tuple(dict.fromkeys(place for place in places if place != version))
    others = tuple(other for other in state.alias_writes if other.alias != alias)
    return replace(state, alias_writes=(*others, AliasWrite(alias, version, replaces)))


def with_tags(state: AppState, version: int, tags: Mapping[str, str]) -> AppState:
    """One write a version: newer tags replace older ones."""
    older = next((write.tags for write in state.tag_writes if write.version == version), {})
    others = tuple(write for write in state.tag_writes if write.version != version)
    return replace(state, tag_writes=(*others, TagWrite(version, {**older, **tags})))


def without(state: AppState, written: Written) -> AppState:
    """MLflow has them. A write that is no longer pending says nothing: a later one took its place, or it came twice.

    A dropped write counts as made, so that wherever the person's alias is seen next, it differs.
    """
    for write in (*written.aliases, *written.dropped):
        if write in state.alias_writes:
            state = settled(state, write.alias, write.version)
    left = tuple(write for write in state.tag_writes if write not in written.tags)
    return state if left == state.tag_writes else replace(state, tag_writes=left)
