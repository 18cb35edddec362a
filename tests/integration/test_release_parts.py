"""A release with a lexicon, funnels, a cross-encoder and a prompt: built, published, loaded, and answering."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from registry.database import migrate, open_database
from registry.memory_store import MemoryStore
from registry.schema import ComponentRef
from serving import build
from serving.components.catalogue import Catalogue
from serving.config import ServingConfig
from serving.errors import BadRequest
from serving.fakes import MemoryItemStore
from serving.schema import AppSpec, FeedbackEvent, Item, Query, Trace
from serving.schema.pseudonym import pseudonym
from serving.store import SqlFeedbackStore
from serving.store.people import SqlPeople, ensure_people_secret
from tests.endpoint import quiet_progress
from training.config import TrainingConfig
from training.errors import TrainingRefused
from training.index import BuiltRelease, Inputs, ReleaseBuilder, work_folder
from training.interactions import of_home
from training.lineage import INTERACTIONS
from training.people import releases_of

LEXICON = """
default_intent: find
intents: {find: {patterns: ["추천"]}}
entities: {kind: {attribute: kind, values: {tea: [녹차, 홍차], ware: [찻잔]}}}
"""
PROMPT = """
user: "{% for item in items %}{{ item.name }}{% endfor %} {{ query }}"
template: "{{ query }}"
"""
FUNNELS: dict[str, Any] = {
    "popularity": {"engine": "popularity"},
    "content": {"engine": "content"},
    "collaborative": {"engine": "collaborative"},
    "contextual": {"engine": "contextual", "context": ["hour"]},
}
ITEMS = [Item(f"t{n}", {"name": f"made-up {n}"}, {"kind": ("tea", "ware")[n % 2], "price": n}) for n in range(6)]


class Bench:
    """A home with an app folder, a database, and six made-up items."""

    def __init__(self, home: Path) -> None:
        self.home, self.app = home, home / "app"
        self.app.mkdir()
        (self.app / "lexicon.yaml").write_text(LEXICON, encoding="utf-8")
        (self.app / "prompt.yaml").write_text(PROMPT, encoding="utf-8")
        did = [{"user": u, "item": f"t{n}", "event": "order", "at_s": n, "record": {"hour": n}}
               for u in ("ann", "bob") for n in range(0, 6, 2)]  # fmt: skip
        (self.app / "did.jsonl").write_text("".join(json.dumps(one) + "\n" for one in did))
        self.config = TrainingConfig(ServingConfig(home=home, threads=1))
        migrate(self.config.serving.database)
        self.database = open_database(self.config.serving.database)
        self.releases, self.items = MemoryStore(), MemoryItemStore()
        self.items.upsert("made-up", ITEMS)

    def spec(self, **changes: Any) -> AppSpec:
        return AppSpec.model_validate(
            {
                "name": "made-up",
                "items": {"text": ["name"], "attributes": {"kind": "keyword", "price": "number"}},
                "record": {"fields": {"hour": {"cycle": 24}}},
                "language_model": {"model": "tiny"},
                "understand": {"engine": "rules", "lexicon": "lexicon.yaml"},
                "retrieve": {"sources": FUNNELS},
                "generate": {"prompt": "prompt.yaml"},
                "feedback": {"source": "did.jsonl"},
                **changes,
            }
        )

    def build(self, spec: AppSpec, *, with_feedback: bool = False) -> tuple[BuiltRelease, dict[str, Path]]:
        """The folders outlive the build."""
        done = (lambda: of_home(spec, self.app, self.database, self.config.serving)) if with_feedback else None
        with work_folder(self.config, spec.name) as work:
            builder = ReleaseBuilder(spec, self.app, work, self.config, self.releases, quiet_progress(spec.name))
            built = builder.build(self.items, Inputs(interactions=done))
            version = self.releases.publish(built.release, built.folders)
        return built, dict(build.fetch_components(version, self.releases, self.home / "cache"))

    def answer(self, spec: AppSpec, folders: dict[str, Path], *queries: Query) -> list[list[str]]:
        catalogue, secret = Catalogue.load(folders["catalogue"]), ensure_people_secret(self.home)
        retrieval = build.build_retrieval(spec, folders, {}, catalogue, secret)
        ranking = build.build_ranking(spec, folders, catalogue, secret)
        pipeline = build.build_pipeline(build.build_understand(spec, folders), retrieval, ranking)
        answers = asyncio.run(pipeline.answer(queries))
        return [[one.id for one in answer.lines[0].result.candidates] for answer in answers]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def roles(built: BuiltRelease) -> dict[str, str]:
    def role(part: ComponentRef) -> str:
        return part.role

    return {part.name: role(part) for part in built.release.components}


def test_a_release_holds_what_its_phases_need_and_answers(bench: Bench) -> None:
    spec = bench.spec()
    built, folders = bench.build(spec)
    assert roles(built) == {
        "catalogue": "catalogue", "understand": "lexicon", "generate": "prompt",
        **{f"retrieve.{name}": "funnel" for name in FUNNELS},
    }  # fmt: skip
    asked = [Query("녹차 추천", user="ann", record={"hour": 4}), Query("찻잔 추천", user="ann"), Query("추천")]
    tea, ware, anything = bench.answer(spec, folders, *asked)
    assert set(tea) == {"t0", "t2", "t4"}
    assert set(ware) == {"t1", "t3", "t5"}  # content matches the filter; nobody ever ordered them
    assert set(anything) == {"t0", "t2", "t4"}
    again, _ = bench.build(spec)
    assert again.release.digest == built.release.digest


def test_what_users_do_later_makes_another_release_that_can_be_traced(bench: Bench) -> None:
    spec = bench.spec()
    first, _ = bench.build(spec, with_feedback=True)
    store, people = SqlFeedbackStore(bench.database), SqlPeople(bench.database)
    store.record_traces([Trace("t", "made-up", "1", 5.0, "x", [{"raw": "x"}], user="cid")])
    store.record(FeedbackEvent("e", "t", "made-up", "1", "order", 9.0, user="cid", selected="t1"))
    second, folders = bench.build(spec, with_feedback=True)
    assert first.release.digest != second.release.digest
    assert "t1" in bench.answer(spec, folders, Query("추천"))[0]
    name = pseudonym(ensure_people_secret(bench.home), "cid")
    trained = people.trained(name)
    assert trained == {"made-up": [second.release.lineage[INTERACTIONS]]}
    assert [one.version for one in releases_of(bench.releases, trained)] == [2]
    people.add_forgotten("made-up", name)
    third, _ = bench.build(spec, with_feedback=True)
    assert third.release.lineage[INTERACTIONS] == first.release.lineage[INTERACTIONS]


def test_what_cannot_be_built_says_which_key_to_mend(bench: Bench) -> None:
    with pytest.raises(BadRequest, match="there is no lexicon"):
        bench.build(bench.spec(understand={"engine": "rules", "lexicon": "none.yaml"}))
    with pytest.raises(TrainingRefused, match=r"generate\.prompt"):
        bench.build(bench.spec(generate={"prompt": "none.yaml"}))
    with pytest.raises(TrainingRefused, match=r"generate\.output_schema"):
        bench.build(bench.spec(generate={"prompt": "prompt.yaml", "output_schema": "none.json"}))
    (bench.app / "prompt.yaml").write_text("user: '{{ nothing.here }'", encoding="utf-8")
    with pytest.raises(BadRequest):
        bench.build(bench.spec())
