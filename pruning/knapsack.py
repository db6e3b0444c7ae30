"""The multiple-choice knapsack: one choice for each group, inside every limit, with the least loss. Exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

TURNS = 100  # of looking for prices
TINY = 1e-9  # relative: what a bound may be off by rounding


@dataclass(frozen=True)
class Choice:
    """One of the things a group can be.

    Attributes:
        value: What is chosen.
        costs: One for each limit; they add up over groups. May be negative.
        loss: Adds up over groups.
    """

    value: int
    costs: tuple[float, ...]
    loss: float


def solve(groups: Sequence[Sequence[Choice]], limits: Sequence[float]) -> list[int] | None:
    """The values with the least total loss whose costs stay inside all limits; None where there are none.

    Partial sums are carried from group to group. Dropped are those that another one beats in every cost and in loss
    (Nemhauser & Ullmann 1969), those that can not get inside the limits any more, and those that can not get below a
    loss that is known to be reachable, even where costs over the limits are paid for at a price (a Lagrangian bound).
    What is left at the end holds the optimum: nothing is rounded.

    Args:
        groups: For each group what it can be.
        limits: Of the sums of costs.
    """
    room = np.asarray(limits, np.float64)
    options = [np.array([(*choice.costs, choice.loss) for choice in choices]) for choices in groups]
    prices, reachable = _priced(options, room)
    weights = np.append(prices, 1.0)
    cheapest = _rest([each[:, :-1].min(axis=0) for each in options], len(room))
    least = _rest([(each @ weights).min(keepdims=True) for each in options], 1)
    allowed = reachable + prices @ room
    allowed += TINY * (1 + abs(allowed))
    sums = np.zeros((1, len(room) + 1))  # costs and loss of each partial choice
    chosen: NDArray[np.int64] = np.zeros((1, 0), np.int64)
    for turn, (choices, steps) in enumerate(zip(groups, options, strict=True)):
        sums = (sums[:, None] + steps[None]).reshape(-1, len(room) + 1)
        values = np.array([choice.value for choice in choices])
        chosen = np.concatenate([np.repeat(chosen, len(values), 0), np.tile(values, len(chosen))[:, None]], axis=1)
        hopeful = (sums[:, :-1] + cheapest[turn + 1] <= room + 1e-15).all(axis=1)
        hopeful &= sums @ weights + least[turn + 1] <= allowed
        sums, chosen = sums[hopeful], chosen[hopeful]
        keep = undominated(sums)
        sums, chosen = sums[keep], chosen[keep]
    if not len(sums):
        return None
    return [int(value) for value in chosen[int(sums[:, -1].argmin())]]


def undominated(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the rows that no other row equals or beats in every column (of equal rows the first)."""
    order = np.lexsort(points.T[::-1])  # by the first column, then the second, ...: only earlier rows can beat
    kept: list[int] = []
    front = np.empty((0, points.shape[1]))
    for index in order:
        row = points[index]
        if not (front <= row).all(axis=1).any():
            kept.append(int(index))
            front = np.concatenate([front, row[None]])
    return np.array(sorted(kept), np.int64)


def _priced(options: Sequence[FloatArray], room: FloatArray) -> tuple[FloatArray, float]:
    """A price in loss for each limited cost, and the least loss inside the limits that was met on the way.

    Subgradient steps on the Lagrangian dual: what is over its limit becomes dearer, what is not becomes cheaper. Any
    prices give a valid bound, these a tight one. The loss is infinite where nothing inside the limits was met.
    """
    span = sum(np.ptp(each, axis=0) for each in options)
    span = np.where(span > 0, span, 1.0)
    prices, best, bound, reachable = np.zeros(len(room)), np.zeros(len(room)), -np.inf, np.inf
    for turn in range(TURNS):
        picked = sum(each[(each[:, -1] + each[:, :-1] @ prices).argmin()] for each in options)
        over = picked[:-1] - room
        if (over <= 0).all():
            reachable = min(reachable, float(picked[-1]))
        now = float(picked[-1] + prices @ over)
        if now > bound:
            best, bound = prices, now
        prices = np.maximum(prices + span[-1] * over / span[:-1] ** 2 / (1 + turn), 0)
    return best, reachable


def _rest(least: Sequence[FloatArray], size: int) -> list[FloatArray]:
    """For each turn the least that all groups from there on add up to."""
    rest = [np.zeros(size)]
    for each in reversed(least):
        rest.append(rest[-1] + each)
    return rest[::-1]
