"""What every Ranker does: the Wide & Deep one, a cross-encoder, and the stand-in; and the phase around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import ReleaseRefused
from serving.components.catalogue import Catalogue, build_catalogue
from serving.errors import PhaseFailed
from serving.fakes import FakeRanker
from serving.ports import Ranker, ToRank
from serving.rank.cross_encoder import CrossEncoderRanker
from serving.rank.phase import SCORE, Rank, make_rank, make_ranker
from serving.rank.wide_deep import WideDeepRanker
from serving.schema import AppSpec, Candidate, Item, Query, Result, Understood
from tests import wide_deep

ITEMS = wide_deep.ITEMS


def make_cross_encoder(folder: Path) -> Path:
    """A BERT of two small layers, untrained, with a vocabulary of a few words."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(1)
    bare = folder / "bare"
    bare.mkdir(parents=True)
    known = ["tea", "sweet", "bitter", "made", "up", "-", ".", *map(str, range(100))]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,  # so that what it reads shows
    )
    BertForSequenceClassification(config).save_pretrained(bare)
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(bare)
    CrossEncoder(str(bare), device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rankers")
    trained = wide_deep.train(wide_deep.task_in(root / "wide", wide_deep.taste(600), wide_deep.taste(100, 1)))
    return {"wide_deep": trained.components[0].folder, "cross_encoder": make_cross_encoder(root / "cross")}


@pytest.fixture(params=["fake", "wide_deep", "cross_encoder"])
def ranker(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Ranker:
    if request.param == "fake":
        return FakeRanker(lambda asked, item: 1 / (1 + len(item.id + asked.text)))
    if request.param == "wide_deep":
        return WideDeepRanker(folders["wide_deep"])
    return CrossEncoderRanker(folders["cross_encoder"], ["name"])


def asked(*items: Item, user: str = "u1", text: str = "made-up 3") -> ToRank:
    return ToRank(user, {}, items, text)


def test_gives_a_probability_for_each_item_of_each_request(ranker: Ranker) -> None:
    scores = ranker.score([asked(*ITEMS[:3]), asked(), asked(*ITEMS[5:10], user="")])
    assert [len(one) for one in scores] == [3, 0, 5]
    assert all(0 <= score <= 1 for one in scores for score in one)
    assert all(one.dtype == np.float32 for one in scores)
    assert ranker.score([]) == []


def test_a_request_is_scored_alike_alone_and_in_a_batch(ranker: Ranker) -> None:
    requests = [asked(*ITEMS[:4]), asked(*ITEMS[2:9], user="u7", text="x"), asked(*ITEMS[::-1], user="nobody knows")]
    together = ranker.score(requests)
    alone = [ranker.score([one])[0] for one in requests]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_items_and_users_that_nobody_knows_are_scored(ranker: Ranker) -> None:
    new = Item("new", {"name": "made-up 99"}, {"category": "good", "price": 3})
    [scores] = ranker.score([asked(new, ITEMS[0], user="never seen")])
    assert np.isfinite(scores).all()


def test_wide_deep_follows_an_item_that_changes(folders: dict[str, Path]) -> None:
    ranker = WideDeepRanker(folders["wide_deep"])
    new = Item("new", {"name": "x"}, {"category": "good", "price": 3})
    changed = Item("new", {"name": "x"}, {"category": "bad", "price": 3})
    first = ranker.score([asked(new, user="u1")])[0][0]
    assert ranker.score([asked(changed, user="u1")])[0][0] < first  # u1 likes good ones
    assert ranker.score([asked(new, user="u1")])[0][0] == first


# ---- the phase


def spec_of(**rank: Any) -> AppSpec:
    raw = wide_deep.spec_of(wide_deep.SMALL).model_dump(mode="json")
    return AppSpec.model_validate({**raw, "rank": rank or None})


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    build_catalogue(tmp_path / "catalogue", ITEMS, {"category": "keyword", "price": "number"})
    return Catalogue.load(tmp_path / "catalogue")


def found(*ids: str) -> Result:
    """In this order, with falling scores."""
    return Result([Candidate(one, 0.9 - 0.1 * n, "words", {"words": 2.0}, b"{}") for n, one in enumerate(ids)])


def ranked(phase: Rank, *results: Result, user: str | None = "u1") -> list[Result]:
    lines = [Understood(Query("tea", user=user), "tea") for _ in results]
    return asyncio.run(phase(lines, results))


def by_price(seen: list[ToRank]) -> Callable[[ToRank, Item], float]:
    def score(one: ToRank, item: Item) -> float:
        seen.append(one)
        return float(item.attributes["price"]) / 20

    return score


def test_the_phase_orders_anew_and_says_why(catalogue: Catalogue) -> None:
    seen: list[ToRank] = []
    phase = Rank(FakeRanker(by_price(seen)), catalogue, 1.0, lambda user: f"hidden {user}")
    first, second = ranked(phase, found("i01", "i09", "i05"), Result([], abstained=True))
    assert [one.id for one in first.candidates] == ["i09", "i05", "i01"]
    assert first.candidates[0].scores == {"words": 2.0, SCORE: pytest.approx(0.45)}
    assert first.candidates[0].score == pytest.approx(0.45)
    assert second == Result([], abstained=True)
    assert seen[0].user == "hidden u1"
    assert seen[0].text == "tea"


def test_the_weight_mixes_ranker_and_retrieval(catalogue: Catalogue) -> None:
    phase = Rank(FakeRanker(by_price([])), catalogue, 0.5, str)
    [result] = ranked(phase, found("i01", "i09"))
    assert [round(one.score, 3) for one in result.candidates] == [0.625, 0.475]
    kept = Rank(FakeRanker(by_price([])), catalogue, 0.0, str)
    assert [one.id for one in ranked(kept, found("i01", "i09"))[0].candidates] == ["i01", "i09"]


def test_an_item_that_left_meanwhile_is_left_out(catalogue: Catalogue) -> None:
    catalogue.apply([], ["i09"])
    [result] = ranked(Rank(FakeRanker(by_price([])), catalogue, 1.0, str), found("i01", "i09"))
    assert [one.id for one in result.candidates] == ["i01"]


def test_without_a_trained_ranker_the_order_of_retrieval_stands(catalogue: Catalogue, folders: dict[str, Path]) -> None:
    spec = spec_of(engine="wide_deep", top_k=3, candidates=50)
    assert make_rank(spec, None, catalogue, str) is None
    assert make_rank(spec_of(), folders["wide_deep"], catalogue, str) is None
    ranking = make_rank(spec, folders["wide_deep"], catalogue, str)
    assert ranking is not None
    assert (ranking.candidates, ranking.top_k) == (50, 3)


def test_what_holds_no_ranker_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(PhaseFailed, match="train the ranker again"):
        make_ranker(spec_of(engine="wide_deep"), tmp_path)
    cross = spec_of(engine="cross_encoder", model="somewhere")
    with pytest.raises(ReleaseRefused, match="palate index"):
        make_ranker(cross, None)
    with pytest.raises(PhaseFailed, match="cannot be loaded"):
        make_ranker(cross, tmp_path)
    assert isinstance(make_ranker(cross, folders["cross_encoder"]), CrossEncoderRanker)


def test_cross_encoder_reads_the_fields_it_is_given(folders: dict[str, Path]) -> None:
    items: Sequence[Item] = [Item("a", {"name": "tea", "note": "sweet"}), Item("b", {"name": "tea", "note": "bitter"})]
    by_name = CrossEncoderRanker(folders["cross_encoder"], ["name"]).score([asked(*items)])[0]
    by_both = CrossEncoderRanker(folders["cross_encoder"], ["name", "note"]).score([asked(*items)])[0]
    assert by_name[0] == pytest.approx(by_name[1], abs=1e-6)
    assert by_both[0] != pytest.approx(by_both[1], abs=1e-6)
