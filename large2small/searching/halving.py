"""Successive halving: many candidates trained for a short time, the best of them for longer.

In:  how many candidates there are, how long the winner trains, one in how many stays.
Out: the rounds; the best of what a round found.
Elsewhere: the trainings (large2small.searching.search).

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016
(arXiv:1502.07943). A round trains from the beginning, with a whole schedule of its own: a training that was
cut off at a high learning rate says little about the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Round:
    """All that are left train for so many epochs, and the best stay."""

    entering: int
    epochs: int
    kept: int


def rounds(candidates: int, epochs: int, one_in: int) -> list[Round]:
    """The rounds before the winner trains for all `epochs`; none for one candidate.

    The last round has 1/one_in of the epochs, the one before 1/one_in of these, and at least 1. Rounds of the
    same length are one, for a second one would train the same again.
    """
    sizes = [candidates]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / one_in))
    found: list[Round] = []
    for place, (entering, kept) in enumerate(itertools.pairwise(sizes)):
        length = max(1, epochs // one_in ** (len(sizes) - 1 - place))
        if found and found[-1].epochs == length:
            found[-1] = replace(found[-1], kept=kept)
        else:
            found.append(Round(entering, length, kept))
    return found


def best(accuracies: Mapping[Name, float], latencies: Mapping[Name, float], count: int) -> Sequence[Name]:
    """The `count` most accurate, the most accurate first; of equals the faster one."""
    return sorted(accuracies, key=lambda name: (-accuracies[name], latencies[name]))[:count]
