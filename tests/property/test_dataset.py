"""What holds for every data set: its parts share nothing, its bytes do not depend on the order of rows, its weights are
those of app.yaml, and it is balanced."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.fakes import MemoryFeedbackStore
from serving.schema import DataSpec, FeedbackEvent, Trace
from training.dataset import PARTS, DatasetInfo, DatasetRequest, Example, build_dataset, read_examples
from training.dataset.keys import is_unseen, normalise
from training.dataset.resolve import resolve

UNSEEN = 0.3
ITEMS = [f"item {n}" for n in range(12)]
EVENTS = ("order", "select", "favorite", "click", "reject", "rating", "look")

answers = st.builds(
    lambda query, at_s, user, shown, status: (query, at_s, user, shown, status),
    query=st.sampled_from(["red", "Red ", "white", "ＷＨＩＴＥ", "rosé", "blanc", "noir", "x", "y", "z"]),
    at_s=st.integers(1, 50).map(float),
    user=st.sampled_from([None, "ann", "bob", "cy"]),
    shown=st.lists(st.tuples(st.sampled_from(ITEMS), st.sampled_from([0.2, 0.79, 0.8, 0.81, 0.99])), max_size=6,
                   unique_by=lambda pair: pair[0]),
    status=st.sampled_from(["ok", "replayed"]),
)  # fmt: skip
clicks = st.tuples(
    st.sampled_from(EVENTS), st.sampled_from([*ITEMS, None]), st.integers(0, 30).map(float),
    st.sampled_from([None, "ann", "dee"]), st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.booleans(),
)  # fmt: skip
logs = st.lists(st.tuples(answers, st.lists(clicks, max_size=4)), min_size=1, max_size=25)
extras = st.lists(
    st.builds(
        Example, st.sampled_from(["red", "port", "sherry", "q"]), st.sampled_from(ITEMS), st.sampled_from([0, 1]),
        st.sampled_from([0.5, 1.0]), at_s=st.sampled_from([0.0, 20.0]), user=st.sampled_from(["", "eve"]),
    ),
    max_size=8,
)  # fmt: skip

Log = list[tuple[Trace, list[FeedbackEvent]]]


def log_of(drawn: Sequence[object]) -> Log:
    log: Log = []
    for n, ((query, at_s, user, shown, status), events) in enumerate(drawn):  # type: ignore[misc]
        line = {"raw": query, "shown": [[i, s, "dense", {"dense": s}] for i, s in shown]}
        trace = Trace(f"t{n}", "shop", "1", at_s, query, [line], user, status=status)
        log.append((trace, [
            FeedbackEvent(f"e{n}.{k}", f"t{n}", "shop", "1", name, at_s + later, who or user, 0, None, item,
                          value=value, rejected=tuple(i for i, _ in shown[:2] if i != item) if rejects else ())
            for k, (name, item, later, who, value, rejects) in enumerate(events)
        ]))  # fmt: skip
    return log


def build(log: Log, extra: Sequence[Example], data: DataSpec, order: int = 0) -> tuple[DatasetInfo, list[bytes]]:
    """In the order that `order` shuffles the rows into; the bytes of the three files."""
    traces, events = [trace for trace, _ in log], [event for _, several in log for event in several]
    more, random = list(extra), Random(order)
    if order:
        for rows in (traces, events, more):
            random.shuffle(rows)
    store = MemoryFeedbackStore()
    store.record_traces(traces)
    store.record_many(events)
    request = DatasetRequest("shop", data, frozenset(ITEMS[:-1]), b"k" * 32, 100.0, feedback=store, extra=more)
    with tempfile.TemporaryDirectory() as folder:
        info = build_dataset(request, Path(folder))
        return info, [(Path(folder) / f"{part}.jsonl").read_bytes() for part in PARTS]


def examples_of(files: Sequence[bytes]) -> list[list[Example]]:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "x").touch()
        found = []
        for content in files:
            path.write_bytes(content)
            found.append(list(read_examples(path)))
        return found


data_specs = st.builds(
    DataSpec, unseen_items_ratio=st.sampled_from([0.0, UNSEEN]), position_bias=st.booleans(),
    negatives_per_positive=st.sampled_from([0.5, 1.0, 2.0]), min_examples=st.just(1),
    train_ratio=st.sampled_from([0.5, 0.8]),
)  # fmt: skip
SEEN = next(i for i in ITEMS if not is_unseen(i, UNSEEN))
SURE = [Example("always there", SEEN, 1, at_s=0.1), Example("there as well", SEEN, 1, at_s=0.2)]
"""The earliest queries that there are: at least one is in the training part, so no data set is refused."""


@settings(max_examples=40)
@given(logs, extras, data_specs)
def test_nothing_leaks_and_every_part_is_balanced(drawn: list[object], extra: list[Example], data: DataSpec) -> None:
    info, files = build(log_of(drawn), [*SURE, *extra], data)
    parts = examples_of(files)
    queries = [{normalise(e.query) for e in part} for part in parts]
    assert sum(map(len, queries)) == len(set().union(*queries))
    pairs = Counter((normalise(e.query), e.item) for part in parts for e in part)
    assert max(pairs.values(), default=1) == 1
    assert not any(is_unseen(e.item, data.unseen_items_ratio) for e in parts[0])
    assert ITEMS[-1] not in {e.item for part in parts for e in part}
    for name, part in zip(PARTS, parts, strict=True):
        positives = sum(e.label for e in part)
        assert len(part) - positives <= data.negatives_per_positive * positives
        assert (info.counts.get(name, 0), info.counts.get(f"{name}_positives", 0)) == (len(part), positives)


@settings(max_examples=40)
@given(logs, extras, data_specs)
def test_the_order_of_rows_does_not_matter(drawn: list[object], extra: list[Example], data: DataSpec) -> None:
    log = log_of(drawn)
    first = build(log, [*SURE, *extra], data)
    second = build(log, [*SURE, *extra], data, order=1)
    assert first == second


@settings(max_examples=40)
@given(logs, data_specs)
def test_weights_are_those_of_app_yaml(drawn: list[object], data: DataSpec) -> None:
    _, files = build(log_of(drawn), SURE, data.model_copy(update={"position_bias": False}))
    for example in (e for part in examples_of(files) for e in part if e.event != "extra"):
        hard = data.hard_weight if (example.score or 0) > data.hard_score else 1.0
        if example.event == "rating":
            assert example.weight in ((0.5 * hard, hard) if not example.label else (1.0,))
        elif example.label:
            assert example.weight == data.event_weights[example.event]
        else:
            assert example.weight == hard


@settings(max_examples=25)
@given(logs, data_specs)
def test_correcting_for_position_changes_weights_of_choices_only_and_keeps_the_mean_factor(
    drawn: list[object], data: DataSpec
) -> None:
    with_bias = [build(log_of(drawn), SURE, data.model_copy(update={"position_bias": on}))[1] for on in (False, True)]
    plain, corrected = ([e for part in examples_of(files) for e in part] for files in with_bias)
    assert [replace(e, weight=1) for e in plain] == [replace(e, weight=1) for e in corrected]
    factors = [c.weight / p.weight for p, c in zip(plain, corrected, strict=True) if p.label and p.rank is not None]
    others = [(p, c) for p, c in zip(plain, corrected, strict=True) if not (p.label and p.rank is not None)]
    assert all(p == c for p, c in others)
    assert abs(sum(factors) - len(factors)) < 1e-6 * max(len(factors), 1)


rows = st.lists(
    st.builds(
        Example, st.just("q"), st.just("a"), st.sampled_from([0, 1]), st.sampled_from([1.0, 1.5, 2.0]),
        at_s=st.integers(1, 5).map(float), user=st.sampled_from(["", "ann", "bob"]),
        event=st.sampled_from(["shown", "order", "reject"]), rank=st.sampled_from([None, 1, 2]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(rows, st.randoms(use_true_random=False))
def test_a_pair_comes_to_the_same_label_in_any_order(several: list[Example], random: Random) -> None:
    one = resolve(several)
    assert one.kept in several
    assert one.dropped == len(several) - 1
    random.shuffle(several)
    assert resolve(several) == one
