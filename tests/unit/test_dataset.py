"""What a data set makes of feedback: weights, negatives, duplicates, balance, splits, and what it leaves out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.fakes import MemoryFeedbackStore
from serving.schema import DataSpec, FeedbackEvent, Trace
from serving.schema.pseudonym import pseudonym
from tests.feedback_log import NOW, PLAIN, event, many, trace
from training.dataset import PARTS, DatasetInfo, DatasetRequest, Example, build_dataset, load_info, read_examples
from training.dataset.keys import is_unseen
from training.dataset.leakage import find_leaks, footprint
from training.dataset.mining import Mined, MiningQuery
from training.errors import DatasetInvalid, TrainingRefused

SECRET = b"s" * 32


def built(
    tmp_path: Path, events: Iterable[FeedbackEvent] = (), traces: Iterable[Trace] = (), data: DataSpec = PLAIN,
    **changes: Any,
) -> tuple[DatasetInfo, dict[str, list[Example]]]:  # fmt: skip
    store = MemoryFeedbackStore()
    store.record_traces(traces)
    store.record_many(list(events))
    request = DatasetRequest("shop", data, [*"abcdef", *map(str, range(1000))], SECRET, NOW, feedback=store)
    info = build_dataset(replace(request, **changes), tmp_path)
    return info, {part: list(read_examples(tmp_path / f"{part}.jsonl")) for part in PARTS}


def everything(parts: dict[str, list[Example]]) -> list[Example]:
    return [one for part in PARTS for one in parts[part]]


def test_answers_of_arms_and_replayed_and_abstained_ones_teach_alike(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"rollout": 3, "arm": "canary"}, {"status": "replayed"}]
    traces = [trace(f"t{n}", f"query {n}", **kind) for n, kind in enumerate(kinds)]
    silent = trace("t3", "query 3")
    traces.append(replace(silent, lines=[{**silent.lines[0], "abstained": True}]))
    info, parts = built(tmp_path, [event(event_id=f"e{n}", trace_id=f"t{n}") for n in range(4)], traces)
    assert len(everything(parts)) == 4 * 3  # two negatives per positive
    assert (info.counts["answers_replayed"], info.counts["answers_abstained"]) == (1, 1)


# ---- The same pair said twice


def test_duplicates_and_contradictions_are_counted_and_spelling_is_no_difference(tmp_path: Path) -> None:
    traces = [trace("t1", "Red  wine", [["a", 0.5]]), trace("t2", "red ＷＩＮＥ", [["a", 0.5]])]
    events = [
        event("click", "a", trace_id="t1", user="bob"), event("order", "a", trace_id="t2"),
        event("reject", "a", trace_id="t1", user="cy"),
    ]  # fmt: skip
    info, parts = built(tmp_path, events, traces)
    assert [(e.item, e.label, e.event) for e in everything(parts)] == [("a", 1, "order")]
    assert (info.counts["duplicates"], info.counts["contradictions"]) == (2, 1)


def test_for_a_ranker_that_knows_people_each_keeps_their_own_choice(tmp_path: Path) -> None:
    traces = [trace("t1", "lunch", [["a", 0.5]], user="ann"), trace("t2", "lunch", [["a", 0.5]], user="bob")]
    events = [event("order", "a", trace_id="t1"), event("reject", "a", trace_id="t2", user="bob")]
    events.append(event("order", "b", trace_id="t2", user="bob"))
    data = DataSpec(**{**PLAIN.model_dump(), "train_ratio": 0.98, "validation_ratio": 0.01})
    _, parts = built(tmp_path, events, traces, data, per_user=True)
    pairs = {(e.user, e.item, e.label) for e in everything(parts)}
    ann, bob = pseudonym(SECRET, "ann"), pseudonym(SECRET, "bob")
    assert pairs == {(ann, "a", 1), (bob, "b", 1), (bob, "a", 0)}


# ---- Balance, position, mining


def test_two_negatives_per_positive_the_hardest_are_kept(tmp_path: Path) -> None:
    info, parts = built(tmp_path, *many(50))
    for part in PARTS:
        labels = Counter(e.label for e in parts[part])
        assert labels[0] == 2 * labels[1] > 0
    assert {e.score for e in everything(parts) if not e.label} == {0.8, 0.7}
    assert info.counts["negatives_over_balance"] == 50 * 2  # 4 of an answer's 5 were collected


def test_every_query_gives_its_hardest_negative_before_any_gives_its_second(tmp_path: Path) -> None:
    hard = [Example("hard", "a", 1), *(Example("hard", i, 0, score=0.9) for i in "bcdef")]
    easy = [Example("easy", "a", 1), Example("easy", "b", 0, score=0.1)]
    data = PLAIN.model_copy(update={"negatives_per_positive": 1.0, "train_ratio": 0.98, "validation_ratio": 0.01})
    _, parts = built(tmp_path, data=data, extra=[*hard, *easy])
    assert Counter(e.query for e in parts["train"] if not e.label) == {"hard": 1, "easy": 1}


def test_a_choice_far_down_weighs_more_and_the_mean_stays_as_app_yaml_says(tmp_path: Path) -> None:
    data = PLAIN.model_copy(update={"position_bias": True})
    top, low = many(10), many(20, selected=3)
    events = [*top[0], *low[0][10:]]
    _, parts = built(tmp_path, events, low[1], data)
    weights = {(e.rank, round(e.weight, 6)) for e in everything(parts) if e.label}
    assert weights == {(1, 2 * 1 / 2.5), (4, 2 * 4 / 2.5)}
    _, plain = built(tmp_path, events, low[1])
    assert {e.weight for e in everything(plain) if e.label} == {2.0}


class _Miner:
    def __init__(self, found: Sequence[Mined]) -> None:
        self.found = found
        self.asked: list[MiningQuery] = []

    def mine(self, queries: Sequence[MiningQuery], count: int) -> list[list[Mined]]:
        self.asked += queries
        return [list(self.found) for _ in queries]


def test_mined_negatives_join_the_training_part_only(tmp_path: Path) -> None:
    events, traces = many(50)
    miner = _Miner([Mined("gone", 0.95), Mined("a", 0.9), Mined("b", 0.7), Mined("c", 0.6)])
    data = PLAIN.model_copy(update={"mined": 3})
    info, parts = built(tmp_path, events, traces, data, miner=miner)
    mined = [e for e in everything(parts) if e.event == "mined"]
    assert {(e.item, e.label, e.score, e.weight) for e in mined} == {("a", 0, 0.9, 1.5), ("b", 0, 0.7, 1.0)}
    assert len(mined) == info.counts["mined"] == 2 * info.counts["train_positives"]
    assert {e.query for e in mined} == {q.text for q in miner.asked} == {e.query for e in parts["train"]}
    assert all(q.right == {e.item for e in parts["train"] if e.query == q.text and e.label} for q in miner.asked)


def test_nothing_is_mined_that_was_seen_for_the_query_already(tmp_path: Path) -> None:
    miner = _Miner([Mined("a", 0.9), Mined("b", 0.8)])
    data = PLAIN.model_copy(update={"mined": 2, "train_ratio": 0.98, "validation_ratio": 0.01})
    _, parts = built(tmp_path, data=data, miner=miner, extra=[Example("q", "a", 1), Example("q", "b", 0)])
    assert [(e.item, e.event) for e in parts["train"]] == [("a", "extra"), ("b", "extra")]


# ---- Parts


def test_queries_are_split_by_the_time_they_were_first_asked(tmp_path: Path) -> None:
    _, parts = built(tmp_path, *many(100))
    queries = {part: sorted({int(e.query.split()[1]) for e in parts[part]}) for part in PARTS}
    assert queries == {"train": list(range(80)), "validation": list(range(80, 90)), "test": list(range(90, 100))}


def test_a_query_that_is_asked_again_stays_where_it_was_first(tmp_path: Path) -> None:
    events, traces = many(100)
    again = trace("again", "QUERY 0", [["a", 0.5]], at_s=NOW + 500)
    later = event("order", "a", event_id="again", trace_id="again", at_s=NOW + 500)
    _, parts = built(tmp_path, [*events, later], [*traces, again])
    assert [part for part in PARTS if any(e.item == "a" for e in parts[part])] == ["train"]


def test_no_training_example_names_an_unseen_item(tmp_path: Path) -> None:
    data = PLAIN.model_copy(update={"unseen_items_ratio": 0.2})
    info, parts = built(tmp_path, *many(200), data)
    unseen = {e.item for part in ("validation", "test") for e in parts[part] if is_unseen(e.item, 0.2)}
    assert unseen == set(info.unseen_items)
    assert len(unseen) > 10
    assert not unseen & {e.item for e in parts["train"]}
    early = [e for e in parts["test"] if e.label and int(e.query.split()[1]) < 80]
    assert early
    assert all(e.item in unseen for e in early)
    assert info.counts["negatives_about_unseen_items"] > 0


def test_examples_without_a_time_are_split_by_a_hash_that_the_seed_changes(tmp_path: Path) -> None:
    extra = [Example(f"question {n}", str(n % 1000), 1) for n in range(2000)]
    _, parts = built(tmp_path / "1", extra=extra)
    assert [len(parts[part]) / 2000 for part in PARTS] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    _, other = built(tmp_path / "2", extra=extra, seed=1)
    assert {e.query for e in parts["test"]} != {e.query for e in other["test"]}


# ---- What is left out, and what is said of it


def test_items_that_left_the_catalogue_and_old_events_are_dropped_and_counted(tmp_path: Path) -> None:
    events, traces = many(30)
    data = PLAIN.model_copy(update={"max_age_days": 1.0})
    old = event("order", "a", event_id="old", trace_id="old", at_s=NOW - 90_000)
    gone = event("order", "left", event_id="gone", trace_id="t0", user="zed")
    info, parts = built(tmp_path, [*events, old, gone], [*traces, trace("old", "old")], data)
    assert (info.counts["events_too_old"], info.counts["items_gone"]) == (1, 1)
    assert "old" not in {e.query for e in everything(parts)}


def test_queries_of_frozen_evaluation_sets_are_left_out(tmp_path: Path) -> None:
    info, parts = built(tmp_path, *many(30), held_out=["Query 3"])
    assert "query 3" not in {e.query for e in everything(parts)}
    assert info.counts["held_out_queries"] == 5


def test_user_ids_are_nowhere_in_the_folder(tmp_path: Path) -> None:
    traces = [trace(f"t{n}", f"query {n}", user="ann-7f3") for n in range(20)]
    events = [event(event_id=f"e{n}", trace_id=f"t{n}", user="ann-7f3" if n % 2 else None) for n in range(20)]
    _, parts = built(tmp_path, events, traces, extra=[Example("mine", "a", 1, user="ann-7f3")])
    assert {e.user for e in everything(parts)} == {pseudonym(SECRET, "ann-7f3")}
    assert all("ann-7f3" not in file.read_text() for file in tmp_path.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["dataset.json", "people.txt", *(f"{p}.jsonl" for p in PARTS)]
    )


def test_the_forgotten_are_left_out(tmp_path: Path) -> None:
    events, traces = many(70)
    forgotten = frozenset([pseudonym(SECRET, "u3")])
    info, parts = built(tmp_path, events, [replace(t, user=None) for t in traces], forgotten=forgotten,
                        extra=[Example("mine", "a", 1, user="u3")])  # fmt: skip
    assert (info.counts["events_forgotten"], info.counts["extra_forgotten"]) == (10, 1)
    assert not forgotten & {e.user for e in everything(parts)}
    of_trace, _ = built(tmp_path, [event(user=None), *events], [trace(user="u3"), *traces], forgotten=forgotten)
    assert of_trace.counts["events_forgotten"] == 11


def test_reading_can_stop_where_a_run_began(tmp_path: Path) -> None:
    events, traces = many(1200)
    info, _ = built(tmp_path / "1", events, traces, until_seq=700)
    other, _ = built(tmp_path / "2", events[:700], traces)
    assert info == other
    assert info.feedback_seq == 700


def test_too_few_positives_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused, match=r"8 positives to train on, 50 are needed .* 10 feedback events"):
        built(tmp_path, *many(10), PLAIN.model_copy(update={"min_examples": 50}))
    with pytest.raises(DatasetInvalid, match="no complete data set"):
        load_info(tmp_path)
    with pytest.raises(TrainingRefused, match="0 positives to train on"):
        built(tmp_path)


def test_feedback_can_be_left_out(tmp_path: Path) -> None:
    data = PLAIN.model_copy(update={"feedback": False})
    info, parts = built(tmp_path, *many(30), data, extra=[Example(f"q{n}", "a", 1) for n in range(30)])
    assert {e.event for e in everything(parts)} == {"extra"}
    assert info.feedback_seq == 0


def test_extra_examples_are_read_of_a_file_and_of_a_script(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "item": "a"} for n in range(20)]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "more.py").write_text(
        "import json, sys\nfor n in range(int(sys.argv[1])): print(json.dumps({'query': f'q{n}', 'item': 'a'}))\n"
    )
    infos = []
    for source in ("more.jsonl", "more.py 20"):
        data = PLAIN.model_copy(update={"extra": source})
        infos.append(built(tmp_path / "out", data=data, app_folder=tmp_path)[0])
    assert infos[0] == infos[1]
    assert infos[0].counts["extra"] == 20


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"query": "q"}', "line 2: an example is an object"),
        ('{"query": "q", "item": 3}', "line 2: `item` cannot be 3"),
        ('{"query": "q", "item": "a", "weight": "x"}', "line 2: `weight` cannot be 'x'"),
        ('{"query": "q", "item": "a", "weight": 0}', "line 2: `label` is 0 or 1 and `weight` is above 0"),
        ('{"query": "q", "item": "a", "labels": 1}', "line 2: unknown keys"),
        ("{", "line 2: not JSON"),
    ],
)
def test_an_extra_example_that_is_none_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "more.jsonl").write_text('{"query": "q", "item": "a"}\n' + line)
    data = PLAIN.model_copy(update={"extra": "more.jsonl"})
    with pytest.raises(DatasetInvalid, match=complaint):
        built(tmp_path / "out", data=data, app_folder=tmp_path)


def test_a_finished_data_set_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    events, traces = many(100)
    info, _ = built(tmp_path, events, traces)
    assert load_info(tmp_path) == info
    with pytest.raises(TrainingRefused):
        built(tmp_path, events[:1], traces, PLAIN.model_copy(update={"min_examples": 50}))
    with pytest.raises(DatasetInvalid):
        load_info(tmp_path)


def test_leaks_are_found() -> None:
    def check(train: Sequence[Example], test: Sequence[Example]) -> tuple[int, int, int]:
        prints = {"train": train, "validation": (), "test": test}
        return find_leaks({part: footprint(prints[part], False, 0.1) for part in PARTS})

    unseen = next(str(n) for n in range(1000) if is_unseen(str(n), 0.1))
    assert check([Example("q", "a", 1)], [Example("r", "a", 1)]) == (0, 0, 0)
    assert check([Example("q", "a", 1)], [Example("Q ", "b", 1)]) == (1, 0, 0)
    assert check([Example("q", "a", 1)], [Example("q", "a", 0)]) == (1, 1, 0)
    assert check([Example("q", unseen, 1)], [Example("r", unseen, 1)]) == (0, 0, 1)
