"""`build_dataset`: feedback and extra examples become the data set that a model is trained on.

`training.run` calls it. It goes over the examples three times, on disk, one bucket of queries in memory at a time:
collect (`collect`, `join`), bring each pair to one label (`resolve`), write what `split` and `balance` decided, with
what the miner adds. Then the files are checked for leaks (`leakage`). The same feedback, extra examples, catalogue,
release that mines and seed make the same bytes, in whatever order the rows came.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from training.dataset import balance, split
from training.dataset.collect import Collected, Collector
from training.dataset.example import PARTS, PEOPLE_FILE, DatasetInfo, Example, read_examples, save_info
from training.dataset.keys import is_unseen, pair_key
from training.dataset.leakage import find_leaks, footprint
from training.dataset.request import DatasetRequest
from training.dataset.resolve import resolve
from training.dataset.stage import Group, Stage, write_groups
from training.dataset.weigh import position_factor
from training.dataset.write import Decided, PartFiles, Writer
from training.errors import DatasetInvalid, TrainingRefused

STAGE = "stage"


def build_dataset(request: DatasetRequest, folder: Path) -> DatasetInfo:
    """Write the data set into `folder`, which is made, and which holds `dataset.json` once all of it is there; what was
    in it before is replaced.

    Raises DatasetInvalid for extra examples that cannot be read, TrainingRefused where there are fewer positives to
    train on than `data.min_examples`, StoreUnavailable, OSError for a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", PEOPLE_FILE, *(f"{part}.jsonl" for part in PARTS)):
        (folder / name).unlink(missing_ok=True)
    raw, single = Stage(folder / STAGE / "collected"), Stage(folder / STAGE / "resolved")
    try:
        with raw:
            collected = Collector(request, raw).collect()
        plan = _Plan(request, collected)
        with (folder / PEOPLE_FILE).open("w", encoding="ascii") as people:
            write_groups(single, plan.resolved(raw.groups(), people))
        raw.clear()
        parts = plan.decide()
        with PartFiles(folder) as files:
            writer = Writer(request, plan.counts, files)
            writer.write(plan.decided(single.as_added(), parts))
        _refuse_leaks(request, folder, plan.counts)
        counts = {name: int(count) for name, count in sorted(plan.counts.items())}
        info = DatasetInfo(files.fingerprint(), counts, collected.feedback_seq, tuple(sorted(writer.unseen)))
        save_info(folder, info)
        return info
    finally:
        with suppress(OSError):
            shutil.rmtree(folder / STAGE)


@dataclass(slots=True)
class _Plan:
    """What the second pass learns of every query, and the third goes by."""

    request: DatasetRequest
    collected: Collected
    queries: split.Queries = field(default_factory=split.Queries)
    negatives: balance.Negatives = field(default_factory=balance.Negatives)
    positives: list[int] = field(default_factory=list)
    factor_sum: float = 0.0
    factor_count: int = 0
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def counts(self) -> Counter[str]:
        return self.collected.counts

    def resolved(self, groups: Iterator[Group], people: TextIO) -> Iterator[Group]:
        """Every query with one example per pair; whoever had a say is written to `people`."""
        ratio = self.request.data.unseen_items_ratio
        for group in groups:
            times = [one.at_s for one in group.examples if one.at_s > 0]
            people.writelines(f"{user}\n" for user in sorted({one.user for one in group.examples} - {""}))
            kept = self._single(group.examples)
            self.queries.add(group.key, min(times, default=0.0), kept, self.request.seed, self.request.data)
            wrong = [one for one in kept if not one.label]
            unseen = [is_unseen(one.item, ratio) for one in wrong]
            self.negatives.add(len(self.queries.size) - 1, wrong, len(kept) - len(wrong), unseen)
            self.positives.append(len(kept) - len(wrong))
            for one in kept:
                if (rank := _chosen_at(one)) is not None:
                    self.factor_sum += position_factor(rank)
                    self.factor_count += 1
            yield Group(group.key, kept)

    def _single(self, examples: list[Example]) -> list[Example]:
        kept = []
        for _, rows in groupby(sorted(examples, key=pair_key), key=pair_key):
            one = resolve(list(rows))
            self.counts["duplicates"] += one.dropped
            self.counts["contradictions"] += one.contradicted
            kept.append(one.kept)
        return kept

    def decide(self) -> NDArray[np.int8]:
        """(queries,): the part of each. Raises TrainingRefused."""
        data = self.request.data
        parts = split.assign(self.queries, data)
        positives = np.array(self.positives, np.int64)
        per_part = [int(positives[parts == number].sum()) for number in range(len(PARTS))]
        if per_part[split.TRAIN] < data.min_examples:
            raise TrainingRefused(_too_few(self.request, self.counts, per_part))
        self.kept, barred = balance.keep(self.negatives, parts, per_part, data.negatives_per_positive)
        self.counts["negatives_about_unseen_items"] = barred
        self.counts["negatives_over_balance"] = len(self.kept) - int(self.kept.sum()) - barred
        return parts

    def decided(self, groups: Iterator[Group], parts: NDArray[np.int8]) -> Iterator[Decided]:
        """Each query's part and the examples it keeps, weighed for their rank."""
        mean = self.factor_sum / self.factor_count if self.request.data.position_bias and self.factor_count else None
        at = 0
        for number, group in enumerate(groups):
            examples = []
            for one in group.examples:
                if not one.label:
                    at += 1
                if one.label or self.kept[at - 1]:
                    examples.append(_weighed(one, mean))
            yield Decided(int(parts[number]), examples)


def _chosen_at(example: Example) -> int | None:
    """The rank at which it was shown and chosen."""
    return example.rank if example.label else None


def _weighed(example: Example, mean_factor: float | None) -> Example:
    rank = _chosen_at(example)
    if mean_factor is None or rank is None:
        return example
    return replace(example, weight=example.weight * position_factor(rank) / mean_factor)


def _too_few(request: DatasetRequest, counts: Counter[str], positives: list[int]) -> str:
    return (
        f"{request.app}: {positives[split.TRAIN]} positives to train on, {request.data.min_examples} are needed "
        f"(min_examples). There are {counts['events']} feedback events and {counts['extra']} extra examples, which "
        f"make {sum(positives)} positives ({', '.join(f'{p}: {n}' for p, n in zip(PARTS, positives, strict=True))}); "
        f"left out: {_left_out(counts)}. Wait for more feedback, add examples (data.extra), or lower min_examples"
    )


def _left_out(counts: Counter[str]) -> str:
    reasons = {
        "events_too_old": "too old",
        "events_forgotten": "of people who are forgotten",
        "events_without_weight": "events without a weight",
        "events_without_item": "events without an item",
        "events_without_query": "events whose query is not known",
        "items_gone": "examples of items that are not in the catalogue",
        "held_out_queries": "examples of evaluation queries",
        "duplicates": "duplicates",
    }
    return ", ".join(f"{counts[name]} {reason}" for name, reason in reasons.items() if counts[name]) or "nothing"


def _refuse_leaks(request: DatasetRequest, folder: Path, counts: Counter[str]) -> None:
    """Raises DatasetInvalid: it says that this module is wrong, not that the data are."""
    ratio = request.data.unseen_items_ratio
    parts = {part: footprint(read_examples(folder / f"{part}.jsonl"), request.per_user, ratio) for part in PARTS}
    leaks = find_leaks(parts)
    counts.update({f"leaked_{name}": count for name, count in leaks._asdict().items()})
    if any(leaks):
        raise DatasetInvalid(f"the data set in {folder} leaks between its parts: {leaks}. Please report it")
