"""How long steps take in use, of those that a budget speaks of."""

from __future__ import annotations

from collections import deque

import numpy as np

from server.config import Budget

STEPS = 200
"""Steps that are looked at."""
TOLERATED = 0.05
"""Share of them that may lie above the 99th percentile of the budget: more than one in a hundred would be noise."""


class StepTimes:
    """The newest steps of at least half the budget's batch, and no more than the batch.

    Args:
        batch: Points in a step of the budget.
    """

    def __init__(self, batch: int) -> None:
        self._least, self._most = max(batch // 2, 1), batch
        self._seconds: deque[float] = deque(maxlen=STEPS)

    def add(self, seconds: float, points: int) -> None:
        """Takes one step."""
        if self._least <= points <= self._most:
            self._seconds.append(seconds)

    def clear(self) -> None:
        """Forgets them: something else was to blame, or another version serves."""
        self._seconds.clear()

    def quantiles(self) -> dict[str, float]:
        """Median and 99th percentile in seconds, by quantile; none while there are too few steps. For any thread."""
        seconds = list(self._seconds)  # one call into C: whoever adds meanwhile does not disturb it
        if len(seconds) < STEPS:
            return {}
        median, high = np.quantile(seconds, (0.5, 0.99)).tolist()
        return {"0.5": median, "0.99": high}

    def missed(self, budget: Budget) -> str:
        """How the budget is missed, in words; empty: it is met, or there were too few steps."""
        if len(self._seconds) < STEPS:
            return ""
        seconds = np.array(self._seconds)
        median = float(np.median(seconds))
        if budget.p50 is not None and median > budget.p50:
            return f"half of the last {STEPS} steps took {median * 1e6:.0f} us and more; {budget.p50 * 1e6:.0f} may be"
        if budget.p99 is not None and (share := float(np.mean(seconds > budget.p99))) > TOLERATED:
            return f"{share:.0%} of the last {STEPS} steps took more than the {budget.p99 * 1e6:.0f} us of the p99"
        return ""
