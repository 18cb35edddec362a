"""Lexical search: what words are found by, what is returned, and what a live row does to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from registry.content import digest_folder
from serving.components.lexical import build_lexical, terms, words
from serving.errors import BadRequest, PhaseFailed
from serving.ports import Mask
from serving.retrieve.lexical import LexicalSource
from serving.schema import Item, Query

WEIGHTS = {"name": 2.0, "short": 3.0, "long": 1.0}


def item(name: str, short: str = "", long: str = "") -> Item:
    return Item(name, {"name": name, "short": short, "long": long})


ITEMS = [
    item("gimp", "image editor", "Edit and retouch photos."),
    item("gimp-data", "data files for the image editor", "Files that gimp needs."),
    item("libstdc++6", "C++ standard library", "Needed by programs written in C++."),
    item("at", "run jobs later", "Delayed execution of jobs."),
    item("python3-numpy", "arrays for Python", "Fast array facility."),
    item("hangul-tool", "한글 편집기", "문서편집기 모음"),
    item("screen", "terminal multiplexer", "Several terminals in one."),
]


def loaded(folder: Path, items: Sequence[Item] = ITEMS) -> LexicalSource:
    build_lexical(folder, items, WEIGHTS, {})
    return LexicalSource.load(folder)


def names(source: LexicalSource, text: str, items: Sequence[Item] = ITEMS, mask: Mask | None = None) -> list[str]:
    (hits,) = source.search([Query(text)], [mask], 10)
    return [items[row].id for row in hits.rows]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Editing", ["edit"]),
        ("the", []),
        ("python3-numpy", ["python3-numpy", "python", "numpi"]),
        ("libstdc++6", ["libstdc++6", "libstdc"]),
        ("C++", ["c++"]),
        ("camelCase", ["camelcase", "camel", "case"]),
        ("GNOME", ["gnome"]),
        ("mp3", ["mp3", "mp"]),
        ("편집기", ["편집기", "편집", "집기"]),
        ("편집", ["편집"]),
        ("PDF를", ["pdf를", "pdf", "를"]),
        ("ＰＤＦ", ["pdf"]),
        ("café", ["café"]),
    ],
)
def test_a_word_is_found_by_its_terms(word: str, expected: list[str]) -> None:
    (normal,) = words(word)
    assert terms(normal) == expected


@pytest.mark.parametrize("name", [i.id for i in ITEMS])
def test_an_exact_name_comes_first_even_if_it_is_a_stop_word(tmp_path: Path, name: str) -> None:
    assert names(loaded(tmp_path), name)[0] == name


def test_a_name_inside_a_question_lifts_its_item(tmp_path: Path) -> None:
    items = [*ITEMS, item("gimp-help", "gimp gimp", "gimp manual for gimp")]
    assert names(loaded(tmp_path, items), "how do I install gimp", items)[0] == "gimp"


def test_inflections_compounds_and_bigrams_are_found(tmp_path: Path) -> None:
    source = loaded(tmp_path)
    assert names(source, "editing a photo")[0] == "gimp"
    assert names(source, "numpy arrays") == ["python3-numpy"]
    assert names(source, "편집기를") == ["hangul-tool"]
    assert names(source, "nothing-of-the-kind") == []


@pytest.mark.parametrize("text", ["", "   ", "the of and", "!!!"])
def test_a_query_without_features_finds_nothing(tmp_path: Path, text: str) -> None:
    assert names(loaded(tmp_path), text) == []


def test_a_batch_answers_each_query_with_its_own_mask(tmp_path: Path) -> None:
    source = loaded(tmp_path)
    without_gimp = np.ones(len(ITEMS), np.bool_)
    without_gimp[0] = False
    all_hits = source.search([Query("image editor"), Query("image editor")], [None, without_gimp], 10)
    assert [h.rows.tolist() for h in all_hits] == [[0, 1], [1]]
    assert all(h.rows.dtype == np.int64 and h.scores.dtype == np.float32 for h in all_hits)


def test_top_k_cuts_and_ties_go_to_the_lower_row(tmp_path: Path) -> None:
    same = [item(f"n{i}", "twin") for i in range(9)]
    (hits,) = loaded(tmp_path, same).search([Query("twin")], [None], 4)
    assert hits.rows.tolist() == [0, 1, 2, 3]
    assert len(set(hits.scores.tolist())) == 1


def test_added_rows_are_found_masked_and_named(tmp_path: Path) -> None:
    source = loaded(tmp_path)
    new = [item("zzuf", "fuzzing with image files"), item("frobnicator", "unheard-of word: blorb")]
    source.add(len(ITEMS), new)
    everything = [*ITEMS, *new]
    assert names(source, "zzuf", everything) == ["zzuf"]
    assert names(source, "blorb", everything) == ["frobnicator"]
    assert "zzuf" in names(source, "image", everything)
    mask = np.ones(len(everything), np.bool_)
    mask[len(ITEMS)] = False
    assert "zzuf" not in names(source, "image", everything, mask)


def test_a_mask_older_than_the_rows_hides_the_newer_ones(tmp_path: Path) -> None:
    source = loaded(tmp_path)
    source.add(len(ITEMS), [item("newer", "image editor")])
    assert names(source, "image", mask=np.ones(len(ITEMS), np.bool_)) == ["gimp", "gimp-data"]


def test_a_mask_newer_than_the_rows_is_cut(tmp_path: Path) -> None:
    assert names(loaded(tmp_path), "image", mask=np.ones(len(ITEMS) + 5, np.bool_)) == ["gimp", "gimp-data"]


def test_a_row_of_the_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 3 is the snapshot's"):
        loaded(tmp_path).add(3, [item("late")])


def test_rows_that_are_added_again_are_replaced(tmp_path: Path) -> None:
    source, once = loaded(tmp_path), loaded(tmp_path)
    source.add(len(ITEMS), [item("first", "zzuf image"), item("second", "zzuf"), item("third", "image quux")])
    source.add(len(ITEMS) + 1, [item("second", "image editor")])
    once.add(len(ITEMS), [item("first", "zzuf image"), item("second", "image editor")])
    for text in ("image", "zzuf", "quux", "third", "image editor zzuf"):
        [again], [wanted] = (s.search([Query(text)], [None], 10) for s in (source, once))
        assert again.rows.tolist() == wanted.rows.tolist()
        assert again.scores.tolist() == wanted.scores.tolist()


def test_rows_show_whole_or_not_at_all_while_they_are_added(tmp_path: Path) -> None:
    """A reader during `add` must never see a row that has only some of its words."""
    source = loaded(tmp_path)
    stop = threading.Event()
    scores: set[float] = set()

    def read() -> None:
        while not stop.is_set():
            (hits,) = source.search([Query("alpha beta gamma delta")], [None], 10_000)
            scores.update(hits.scores.tolist())

    reader = threading.Thread(target=read)
    reader.start()
    for batch in range(150):
        source.add(len(ITEMS) + 20 * batch, [item(f"x{batch}y{i}", "alpha beta gamma delta") for i in range(20)])
    stop.set()
    reader.join()
    (final,) = source.search([Query("alpha beta gamma delta")], [None], 10_000)
    assert len(final.rows) == 3000
    assert scores <= set(final.scores.tolist())


def test_the_same_items_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        build_lexical(tmp_path / folder, iter(ITEMS), WEIGHTS, {"k1": 1.0})
    build_lexical(tmp_path / "other", ITEMS, WEIGHTS, {"k1": 1.1})
    digests = [digest_folder(tmp_path / f)[0] for f in ("one", "two", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_an_empty_catalogue_can_be_built_searched_and_added_to(tmp_path: Path) -> None:
    assert build_lexical(tmp_path, [], WEIGHTS, {}) == 0
    source = LexicalSource.load(tmp_path)
    assert names(source, "image") == []
    source.add(0, ITEMS[:1])
    assert names(source, "gimp") == ["gimp"]


def test_fields_that_are_lists_numbers_or_missing_are_read(tmp_path: Path) -> None:
    items = [Item("1", {"name": ["red", "wine"], "short": 1984}), Item("2", {"name": None})]
    source = loaded(tmp_path, items)
    assert names(source, "wine", items) == ["1"]
    assert names(source, "1984", items) == ["1"]


def test_progress_is_heard(tmp_path: Path) -> None:
    heard: list[int] = []
    build_lexical(tmp_path, (item(f"n{i}") for i in range(2500)), WEIGHTS, {}, heard.append)
    assert heard == [1000, 2000, 2500]


@pytest.mark.parametrize(
    ("weights", "options", "field"),
    [
        (WEIGHTS, {"k2": 1.0}, "options"),
        (WEIGHTS, {"b": 1.5}, "options.b"),
        (WEIGHTS, {"k1": float("nan")}, "options.k1"),
        ({}, {}, "fields"),
        ({"name": 0.0}, {}, "fields.name"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, weights: dict[str, float], options: dict[str, float], field: str
) -> None:
    with pytest.raises(BadRequest) as error:
        build_lexical(tmp_path, ITEMS, weights, options)
    assert error.value.field == field


def test_a_component_of_another_format_is_refused(tmp_path: Path) -> None:
    loaded(tmp_path)
    about = json.loads((tmp_path / "lexical.json").read_text())
    (tmp_path / "lexical.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(PhaseFailed, match="format 99"):
        LexicalSource.load(tmp_path)
