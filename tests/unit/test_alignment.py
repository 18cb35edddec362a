"""Which words go together: dictionaries that are known are found again, and what says nothing is left out."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from training.contrastive.alignment import meanings


def sentences(dictionary: list[int], count: int, noise: int, rng: Random) -> list[tuple[list[int], list[int]]]:
    """Four words each, their translations in another order, and the word `noise` on the right of all."""
    pairs = []
    for _ in range(count):
        left = rng.sample(range(len(dictionary)), 4)
        right = [dictionary[word] for word in left]
        rng.shuffle(right)
        pairs.append((left, [*right, noise]))
    return pairs


def test_a_dictionary_is_found_again() -> None:
    rng = Random(3)
    dictionary = rng.sample(range(60), 60)
    found = meanings(sentences(dictionary, 400, 60, rng), [1.0] * 400, 60, 61, most=3)
    assert [int(words[0]) for words, _ in found] == dictionary
    for words, shares in found:
        assert shares.sum() == pytest.approx(1)
        assert (shares[:-1] >= shares[1:]).all()
        assert shares[0] > 0.9
        assert 60 not in words, "it stands on the right of everything, and says nothing"


def test_an_example_of_more_weight_says_more() -> None:
    pairs = [([0], [0]), ([0], [1]), ([1], [2]), ([1], [3])]
    first, second = meanings(pairs, [3.0, 1.0, 1.0, 3.0], 2, 4, most=1)
    assert (first[0].tolist(), second[0].tolist()) == ([0], [3])


def test_words_without_a_pair_mean_nothing() -> None:
    found = meanings([([0], [1]), ([], [0]), ([2], [])], [1.0] * 3, 4, 2, most=5)
    assert [words.tolist() for words, _ in found] == [[1], [], [], []]
    assert [len(words) for words, _ in meanings([], [], 3, 2, most=5)] == [0, 0, 0]


def test_the_order_of_the_pairs_says_nothing() -> None:
    rng = Random(5)
    pairs = sentences(rng.sample(range(20), 20), 60, 20, rng)
    one = meanings(pairs, [1.0] * 60, 20, 21, most=4)
    other = meanings(pairs[::-1], [1.0] * 60, 20, 21, most=4)
    for (words, shares), (same, close) in zip(one, other, strict=True):
        assert words.tolist() == same.tolist()
        np.testing.assert_allclose(shares, close, atol=1e-9)
