"""How long to wait before the next try: longer each time, and never two devices alike."""

from __future__ import annotations

import random

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 120.0
"""Devices that were cut off together come back within about so long."""


class Patience:
    """Exponential, with jitter over the upper half.

    Args:
        rng: Draws.
        first: Seconds of the first wait at most.
        longest: Of any.

    >>> patience = Patience(random.Random(0), first=1, longest=4)
    >>> [0.5 * bound <= patience.next() <= bound for bound in (1, 2, 4, 4)]
    [True, True, True, True]
    """

    def __init__(self, rng: random.Random, *, first: float = FIRST_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        self._rng = rng
        self._first = first
        self._longest = longest
        self._bound = first

    def next(self) -> float:
        """Seconds to wait now."""
        bound, self._bound = self._bound, min(2 * self._bound, self._longest)
        return bound * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self._bound = self._first
