"""What the encoder of records is given: words of taste, metrics and moments as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from serving.components.record import compose
from serving.components.taste import Floats, SenseReader, TasteInputs, TasteReader
from tests.tiny_taste import VOCABULARY, info

READER = SenseReader(VOCABULARY)


def named(text: str) -> set[str]:
    return {READER.senses[number] for number in READER.find(text)}


@pytest.mark.parametrize(
    ("text", "senses"),
    [
        ("Red and reddish", {"red"}),
        ("빨강색이 나는", {"red"}),
        ("어두운 WHITE", {"dark", "white"}),
        ("sacred darkly", set()),
        ("not red, but dark", {"dark"}),
        ("without a red note", set()),
        ("빨강은 없고 하양이 있다", {"white"}),
        ("", set()),
    ],
)
def test_senses_are_found_in_both_languages(text: str, senses: set[str]) -> None:
    assert named(text) == senses


def test_the_longest_spelling_wins() -> None:
    reader = SenseReader({"g": {"bitter": ["chocolate"], "sweet": ["milk chocolate"]}})
    assert reader.find("milk chocolate") == {1}
    assert reader.find("chocolate") == {0}


def read(*values: str) -> TasteInputs:
    def embed(texts: Sequence[str]) -> Floats:
        assert all(texts)  # an empty text has no vector
        return np.ones((len(texts), 16), np.float32)

    return TasteReader(info(), embed).read(list(values))


def test_what_is_missing_is_zero_and_says_so() -> None:
    inputs = read(compose("red", {"metrics": {"gloss": 5}}), "", compose(" ", {"context": [{"hour": 6}]}))
    assert inputs.metrics.tolist() == [[5, 0], [0, 0], [0, 0]]
    assert inputs.metrics_there.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert inputs.context_there.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(inputs.context[2, 0], [1, 0, 1, 0, 0, 0, 0, 0], atol=1e-6)
    assert inputs.text.any(axis=1).tolist() == [True, False, False]


def test_a_day_is_a_circle_and_a_range_goes_from_minus_one_to_one() -> None:
    moments = [{"hour": 0, "mood": 0}, {"hour": 23.9, "mood": 10}, {"hour": 12, "place": "shop"}]
    context = read(compose("", {"context": moments})).context[0]
    assert np.linalg.norm(context[0, :2] - context[1, :2]) < 0.1 < np.linalg.norm(context[0, :2] - context[2, :2])
    assert (context[0, 3:5].tolist(), context[1, 3:5].tolist()) == ([-1, 1], [1, 1])
    assert context[2, 5:].tolist() == [0, 1, 1]


def test_records_of_items_are_read_whatever_they_hold() -> None:
    wild = {"metrics": {"gloss": 99, "weight": "heavy", "x": 1}, "context": [{"hour": True, "place": ["home"]}, 3]}
    inputs = read(compose("a", wild), compose("a", {"metrics": [1], "context": {"hour": 1}}))
    assert inputs.metrics.tolist() == [[10, 0], [0, 0]]
    assert inputs.context_there.sum() == 1
    assert not inputs.context.any()


def test_of_many_moments_the_newest_are_read() -> None:
    inputs = read(compose("", {"context": [{"mood": 0}, {"mood": 0}, {"mood": 10}, {"mood": 10}]}))
    assert inputs.context[0, :, 3].tolist() == [-1, 1, 1]
