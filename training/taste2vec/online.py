"""Online learning: what a run learns from when it begins with what serves.

An update is a run of `palate train` with `start: stable`, started by a number of new feedback events
(`train.NAME.trigger`). It learns from the examples that the stable encoder has not seen, each beside old ones from the
replay buffer, with the old vectors held in place; and it ends as every run does, with a candidate, gates and a canary.
What serves never changes under its index: vectors of two encoders do not compare, so an encoder and the index built by
it move as one release.

The cost of an update depends on the new feedback, not on all of history. What an encoder has seen is written in it
(`learned_until_s`); examples without a time, from `data.extra`, count as seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.dataset.example import Example
from training.taste2vec.replay import ReplayBuffer


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a run learns: `fresh` in every epoch, and from `old` as many as the replay ratio says. `until_s` is the
    time of the newest example; `update` is False for a training from the beginning, which has only fresh ones."""

    fresh: tuple[Example, ...]
    old: tuple[Example, ...]
    until_s: float
    update: bool


def first_lesson(examples: Sequence[Example]) -> Lesson:
    return Lesson(tuple(examples), (), max((e.at_s for e in examples), default=0.0), False)


def next_lesson(examples: Sequence[Example], learned_until_s: float, buffer: Path, size: int, seed: int) -> Lesson:
    """`examples` are all that the run may train on; the buffer is kept in the file `buffer`. Safe to repeat."""
    fresh = tuple(e for e in examples if e.at_s > learned_until_s)
    replay = ReplayBuffer(buffer, size, seed)
    replay.add(e for e in examples if e.at_s <= learned_until_s)
    return Lesson(fresh, tuple(replay), max((e.at_s for e in fresh), default=learned_until_s), True)
