"""What an example counts: by its event, by how hard a negative was, and by how seldom its rank is looked at. Pure.

People look at the top of a list more than at its end, so a choice at rank 1 says less than one at rank 8. A choice is
therefore weighed with the inverse of the propensity with which its rank is examined (Joachims, Swaminathan, Schnabel
2017, "Unbiased Learning-to-Rank with Biased Feedback", arXiv 1608.04468). The propensities are that paper's power law
(1 / rank) ** EXPONENT, clipped so that a single choice far down cannot rule, and divided by their mean over all choices
(the self-normalised estimator, Swaminathan & Joachims 2015), so that an order still weighs what app.yaml says, on
average.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from serving.schema import DataSpec

RATING = "rating"
"""The event that carries a `value` from 1 (bad) to 5 (good)."""
LOWEST_RATING, HIGHEST_RATING = 1.0, 5.0
NEUTRAL_RATING = 3.0
EXPONENT = 1.0
MOST_FACTOR = 10.0


class Verdict(NamedTuple):
    """`label` 1 or 0, and what it weighs."""

    label: int
    weight: float


def rating_verdict(value: float, weight: float) -> Verdict | None:
    """A rating above 3 is a positive, below 3 a negative; 4 and 2 weigh half of 5 and 1. None for one that says
    nothing: 3, or a number off the scale."""
    if not LOWEST_RATING <= value <= HIGHEST_RATING or value == NEUTRAL_RATING:
        return None
    return Verdict(int(value > NEUTRAL_RATING), weight * abs(value - NEUTRAL_RATING) / 2)


def negative_weight(score: float | None, data: DataSpec) -> float:
    return data.hard_weight if score is not None and score > data.hard_score else 1.0


def position_factor(rank: int) -> float:
    """1 / propensity of being examined at `rank`, from 1; at most MOST_FACTOR."""
    return min(math.pow(rank, EXPONENT), MOST_FACTOR)
