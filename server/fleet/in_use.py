"""Steps that a device takes in use with one detector: of the newest statuses, and with what it ran before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Self

from server.fleet.records import Served
from server.fleet.tables import LONGEST, SHORTEST

Steps = tuple[float, float]
"""p50 and p99 in seconds."""
REMEMBERED = 5
"""Statuses with steps, the newest."""
FEWEST = 3
"""A single slow moment says nothing of a bundle: there are so many statuses before they count."""


@dataclass(frozen=True)
class InUse:
    """What a device has said of its steps.

    Attributes:
        bundle: Hash of what it scores with.
        steps: Of each status, oldest first.
        before: Medians with the bundle before this one; None: nobody has heard of it.
    """

    bundle: str = ""
    steps: tuple[Steps, ...] = ()
    before: Steps | None = None

    def heard(self, served: Served) -> Self:
        """With one more status; nothing comes of one without a step, or with times that can not be."""
        known = self
        if served.bundle != self.bundle:
            known = replace(self, bundle=served.bundle, steps=(), before=medians(self.steps) or self.before)
        p50, p99 = served.step_p50, served.step_p99
        if p50 is None or p99 is None or not math.isfinite(p99) or not SHORTEST <= p50 <= p99 <= LONGEST:
            return known
        return replace(known, steps=(*known.steps, (p50, p99))[-REMEMBERED:])

    @property
    def usual(self) -> Steps | None:
        """Medians with what it scores with; None: too little was heard."""
        return medians(self.steps) if len(self.steps) >= FEWEST else None


def medians(steps: Sequence[Steps]) -> Steps | None:
    """Of p50 and p99, each; None of nothing.

    >>> medians([(1.0, 5.0), (2.0, 4.0), (3.0, 9.0)])
    (2.0, 5.0)
    """
    if not steps:
        return None
    return median(p50 for p50, _ in steps), median(p99 for _, p99 in steps)
