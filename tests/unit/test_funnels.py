"""The funnels: what each learns from interactions, and how it scores over a catalogue that changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.content import digest_folder
from serving.components.catalogue import Catalogue, build_catalogue
from serving.errors import BadRequest, PhaseFailed
from serving.fakes import MemoryFeedbackStore
from serving.ports import Source
from serving.retrieve.funnels import make_funnel as load_funnel
from serving.schema import AppSpec, FeedbackEvent, Item, Query, Trace, parse_app_spec
from serving.schema.pseudonym import pseudonym
from training.errors import DatasetInvalid
from training.funnels import DAY_S, make_funnel
from training.interactions import Collecting, Interaction, Interactions

SECRET = b"s" * 32
KINDS = {"category": "keyword", "price": "number", "card": "bool"}
ITEMS = [
    Item(f"i{n}", {"name": f"made up {n}"}, {"category": ("chicken", "pizza")[n % 2], "price": 1000 * n, "card": n < 4})
    for n in range(6)
]
ENGINES = ("popularity", "content", "collaborative", "contextual")


def spec_of(**options: dict[str, float]) -> AppSpec:
    sources: dict[str, Any] = {name: {"engine": name, "options": options.get(name, {})} for name in ENGINES}
    sources["contextual"] |= {"context": ["hour", "place"]}
    return AppSpec.model_validate(
        {
            "name": "made-up",
            "items": {"text": ["name"], "attributes": KINDS},
            "record": {"fields": {"hour": {"cycle": 24}, "place": {"choices": ["school", "home"]}}},
            "retrieve": {"sources": sources},
            "feedback": {"reward": {"click": 0.2, "order": 1.0, "reject": -0.5}},
        }
    )


def did(user: str, item: int, event: str = "order", day: float = 0, **record: Any) -> Interaction:
    return Interaction(user, f"i{item}", event, day * DAY_S, record)


class Shop:
    """A catalogue of `ITEMS`, and funnels of these interactions over it. Users go by their own names."""

    def __init__(self, folder: Path, rows: Sequence[Interaction], **options: dict[str, float]) -> None:
        build_catalogue(folder / "catalogue", ITEMS, KINDS)  # type: ignore[arg-type]
        self.catalogue = Catalogue.load(folder / "catalogue")
        spec = spec_of(**options)
        self.sources: dict[str, Source] = {}
        for name in ENGINES:
            made = make_funnel(spec, spec.retrieve.sources[name], ITEMS, Interactions(tuple(rows)))
            made.save(folder / name)
            self.sources[name] = load_funnel(name, folder / name, self.catalogue, str)

    def ask(self, engine: str, top_k: int = 10, **query: Any) -> dict[str, float]:
        asked = Query("x", **query)
        [hits] = self.sources[engine].search([asked], [self.catalogue.allowed(asked.filters)], top_k)
        return {self.catalogue.ids[row]: round(float(s), 3) for row, s in zip(hits.rows, hits.scores, strict=True)}


def test_popularity_counts_orders_and_views_and_forgets_with_time(tmp_path: Path) -> None:
    rows = [did("a", 0), did("b", 0), did("a", 1, "click"), did("b", 1, "click"), did("c", 2, "reject")]
    shop = Shop(tmp_path, rows)
    assert shop.ask("popularity") == {"i0": 0.6, "i1": 0.4}
    rows = [did("a", 0, day=0), did("b", 1, day=30), did("c", 1, day=30)]
    assert Shop(tmp_path / "decayed", rows).ask("popularity") == {"i1": 0.6, "i0": 0.15}  # 0.6 * (1/2) / 2


def test_what_is_filtered_out_is_not_proposed(tmp_path: Path) -> None:
    shop = Shop(tmp_path, [did("a", n) for n in range(6)])
    assert set(shop.ask("popularity", filters={"category": "pizza"})) == {"i1", "i3", "i5"}
    assert list(shop.ask("popularity", top_k=2)) == ["i0", "i1"]  # equals go by row


def test_collaborative_knows_who_chose_alike_and_what_goes_together(tmp_path: Path) -> None:
    rows = [did("ann", 0), did("bob", 0), did("bob", 1), did("cid", 0), did("cid", 1), did("dan", 5)]
    shop = Shop(tmp_path, rows, collaborative={"shrinkage": 0})
    found = shop.ask("collaborative", user="ann")
    assert list(found) == ["i1", "i0"]  # i1 goes along with i0, too
    assert "i5" not in found
    assert shop.ask("collaborative", user="nobody knows") == {}
    assert shop.ask("collaborative") == {}


def test_neighbours_that_share_little_are_shrunk(tmp_path: Path) -> None:
    rows = [did("ann", 0), did("bob", 0), did("bob", 1), did("cid", 1), did("cid", 2), did("dan", 1), did("dan", 2)]
    many = Shop(tmp_path / "a", rows, collaborative={"shrinkage": 0, "users": 0})
    few = Shop(tmp_path / "b", rows, collaborative={"shrinkage": 5, "users": 0})
    by_items, shrunk = many.ask("collaborative", user="cid"), few.ask("collaborative", user="cid")
    assert by_items["i1"] == pytest.approx(shrunk["i1"])  # both lists are relative to their best
    assert by_items["i0"] > shrunk["i0"]  # one chose both, of whom little can be said


def test_contextual_knows_what_is_chosen_then_and_there(tmp_path: Path) -> None:
    noon = [did(f"u{n}", 0, hour=12, place="school") for n in range(30)]
    night = [did(f"u{n}", 1, hour=20, place="home") for n in range(30)]
    shop = Shop(tmp_path, [*noon, *night], contextual={"smoothing": 1})
    assert list(shop.ask("contextual", record={"hour": 13})) == ["i0", "i1"]
    assert list(shop.ask("contextual", record={"place": "home"})) == ["i1", "i0"]
    assert shop.ask("contextual", record={}) == {}
    assert shop.ask("contextual", record={"place": "the moon"}) == {}


def test_content_matches_what_was_asked_and_what_was_liked(tmp_path: Path) -> None:
    shop = Shop(tmp_path, [did("ann", 0), did("ann", 2)])
    asked = shop.ask("content", prefer={"category": "pizza", "price": {"lte": 1000}})
    assert asked == {"i1": 1.0, "i0": 0.5, "i3": 0.5, "i5": 0.5}
    liked = shop.ask("content", user="ann")
    assert set(list(liked)[:2]) == {"i0", "i2"}
    assert shop.ask("content", user="nobody knows") == {}
    assert set(shop.ask("content", user="nobody knows", filters={"category": "pizza"})) == {"i1", "i3", "i5"}


@pytest.mark.parametrize("engine", ENGINES)
def test_items_that_change_keep_what_was_learnt_and_new_ones_wait(tmp_path: Path, engine: str) -> None:
    shop = Shop(tmp_path, [did("ann", 0, hour=12), did("bob", 0, hour=12), did("bob", 2, hour=12)])
    query: dict[str, Any] = {"user": "ann", "record": {"hour": 12}}
    before = shop.ask(engine, **query)
    assert before["i0"] > 0
    changed = replace(ITEMS[0], fields={"name": "another name"})
    first = shop.catalogue.apply([changed, Item("new", {"name": "n"}, ITEMS[0].attributes)], ["i2"])
    shop.sources[engine].add(first, [changed, Item("new", {"name": "n"}, ITEMS[0].attributes)])
    after = shop.ask(engine, **query)
    assert after["i0"] == before["i0"]
    assert "i2" not in after
    assert ("new" in after) == (engine == "content")  # its attributes say what it is like


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_interactions_make_the_same_bytes(tmp_path: Path, engine: str) -> None:
    rows = [did("bob", n % 6, day=n, hour=n % 24, place="home") for n in range(20)]
    spec = spec_of()
    for name in ("one", "two"):
        made = make_funnel(spec, spec.retrieve.sources[engine], ITEMS, Interactions(tuple(rows)))
        made.save(tmp_path / name)
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")
    other = make_funnel(spec, spec.retrieve.sources[engine], ITEMS, Interactions(tuple(rows[:-1])))
    other.save(tmp_path / "three")
    assert digest_folder(tmp_path / "one") != digest_folder(tmp_path / "three")


@pytest.mark.parametrize("engine", ENGINES)
def test_without_interactions_nobody_is_proposed(tmp_path: Path, engine: str) -> None:
    assert Shop(tmp_path, []).ask(engine, user="ann", record={"hour": 3}) == {}


def test_a_component_of_another_engine_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path, [])
    with pytest.raises(PhaseFailed, match="of engine 'content'"):
        load_funnel("popularity", tmp_path / "content", shop.catalogue, str)
    with pytest.raises(PhaseFailed, match="build the release again"):
        load_funnel("popularity", tmp_path, shop.catalogue, str)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"engine": "popularity", "options": {"speed": 1}}, "has the options"),
        ({"engine": "popularity", "embedder": "x"}, "for engine `dense`"),
        ({"engine": "popularity", "fields": {"name": 1}}, "reads none"),
        ({"engine": "content", "options": {"asked": -1}}, "0 or more"),
        ({"engine": "contextual"}, "needs `context`"),
        ({"engine": "content", "context": ["hour"]}, "has no `context`"),
        ({"engine": "contextual", "context": ["weather"]}, "record.fields has"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source: dict[str, Any], says: str) -> None:
    raw = spec_of().model_dump(mode="json")
    raw["retrieve"]["sources"] = {"one": source}
    with pytest.raises(BadRequest, match=says):
        parse_app_spec(raw)


def test_interactions_come_from_the_app_and_from_feedback(tmp_path: Path) -> None:
    spec = spec_of()
    (tmp_path / "seed.jsonl").write_text(
        "".join(json.dumps({"user": u, "item": "i1", "event": "order", "at_s": 1.0}) + "\n" for u in ("ann", "bob"))
    )
    raw = spec.model_dump(mode="json")
    raw["feedback"]["source"] = "seed.jsonl"
    spec = AppSpec.model_validate(raw)
    store = MemoryFeedbackStore()
    line = {"raw": "x", "record": {"hour": 12}}
    store.record_traces([Trace("t", "made-up", "1", 5.0, "x", [line], user="ann")])
    store.record(FeedbackEvent("e", "t", "made-up", "1", "click", 9.0, selected="i2", rejected=("i3",)))
    ann = pseudonym(SECRET, "ann")
    all_of_it = Collecting(spec, tmp_path, SECRET, store).collect()
    assert [(row.user, row.item, row.event, row.at_s) for row in all_of_it.rows if row.user == ann] == [
        (ann, "i1", "order", 1.0), (ann, "i2", "click", 9.0), (ann, "i3", "reject", 9.0),
    ]  # fmt: skip
    assert all_of_it.rows[-1].record == {"hour": 12}
    assert "ann" not in repr(all_of_it.rows)
    forgotten = Collecting(spec, tmp_path, SECRET, store, forgotten=[ann]).collect()
    assert forgotten.people == [pseudonym(SECRET, "bob")]
    early = Collecting(spec, tmp_path, SECRET, store, until_s=1.0).collect()
    assert {row.item for row in early.rows} == {"i1"}
    assert len({all_of_it.fingerprint, forgotten.fingerprint, early.fingerprint}) == 3


@pytest.mark.parametrize("line", ["{}", "no", '{"user": "a", "item": "i", "event": "nods", "at_s": 1}'])
def test_interactions_that_are_none_are_refused_with_their_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "seed.jsonl").write_text(line)
    raw = spec_of().model_dump(mode="json")
    raw["feedback"]["source"] = "seed.jsonl"
    with pytest.raises(DatasetInvalid, match="line 1"):
        Collecting(AppSpec.model_validate(raw), tmp_path, SECRET).collect()


def test_scores_are_shares(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [
        did(f"u{rng.integers(9)}", int(rng.integers(6)), str(rng.choice(["click", "order"])), float(n), hour=n % 24)
        for n in range(80)
    ]
    shop = Shop(tmp_path, rows)
    for engine in ENGINES:
        scores = shop.ask(engine, user="u1", record={"hour": 5}, prefer={"card": True}).values()
        assert scores
        assert all(0 < score <= 1 for score in scores)
