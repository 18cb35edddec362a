"""What a data set is asked to be: `training.run` fills a `DatasetRequest` and hands it to `build_dataset`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from serving.schema import DataSpec, FeedbackEvent, Trace
from training.dataset.example import Example
from training.dataset.mining import Miner


class FeedbackSource(Protocol):
    """What is read of a `serving.ports.FeedbackStore`."""

    def events(self, app: str, after: int, limit: int) -> list[tuple[int, FeedbackEvent]]: ...

    def traces(self, trace_ids: Sequence[str]) -> Mapping[str, Trace]: ...


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """`catalogue`: the ids of all live items. `secret` keys the pseudonyms, and `forgotten` holds those of the people
    who are left out (`training.people`). `now_s`, Unix time, is what `data.max_age_days` counts from.

    `feedback` None: none is read. `until_seq`: events after it are not read, so that a resumed job sees what it saw
    before. `extra` None: the examples that `data.extra` names, relative to `app_folder`; examples given here take their
    place. `held_out`: texts of frozen evaluation sets; examples with such a query are left out. `per_user`: each
    person's own choice counts (for rankers that know the user), else people decide together what is right for a query.
    `miner` finds `data.mined` hard negatives per positive of the training part.
    """

    app: str
    data: DataSpec
    catalogue: Collection[str]
    secret: bytes
    now_s: float
    feedback: FeedbackSource | None = None
    app_folder: Path = Path()
    extra: Iterable[Example] | None = None
    miner: Miner | None = None
    forgotten: Collection[str] = field(default=frozenset())
    held_out: Collection[str] = field(default=frozenset())
    until_seq: int | None = None
    per_user: bool = False
    seed: int = 0
