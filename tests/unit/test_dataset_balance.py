"""Which negatives stay: of equally hard ones none is favoured by its id."""

from __future__ import annotations

import numpy as np

from training.dataset.balance import Negatives, keep
from training.dataset.example import Example


def test_of_equally_hard_negatives_chance_decides_and_not_their_ids() -> None:
    negatives = Negatives()
    shown = [f"i{n}" for n in range(8)]
    for query in range(400):
        rows = [Example("", item, 0, at_s=float(query), user=f"u{query}", event="shown") for item in shown]
        negatives.add(query, rows, 1, [False] * len(rows))
    kept, _ = keep(negatives, np.zeros(400, np.int8), [400, 0, 0], 2.0)
    share = kept.reshape(400, 8).mean(axis=0)
    assert kept.sum() == 800
    assert np.abs(share - 0.25).max() < 0.08  # four standard deviations of a fair lot
    again = Negatives()
    again.add(0, [Example("", item, 0, user="u0", event="shown") for item in shown], 1, [False] * 8)
    other = Negatives()
    other.add(0, [Example("", item, 0, user="u0", event="shown") for item in shown], 1, [False] * 8)
    assert list(again.turn) == list(other.turn)
