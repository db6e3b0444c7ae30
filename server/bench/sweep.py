"""Looks for the most points a second that a service answers in time: open loops at one rate after another."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.bench.outcome import Outcome
from server.quantities import format_duration

UP, DOWN = 1.5, 2.0  # factors until there is a rate that is too much, and one that is not
NEAR = 1.1  # a rate that is kept and one that is too much need be no nearer to each other
GOOD_SHARE = 0.95  # of what is offered; the rest are answers that come after the end, and errors
MOST_STEPS = 20


@dataclass(frozen=True)
class Step:
    """One rate.

    Attributes:
        rate: Points a second that were asked for.
        outcome: What became of them.
        reason: Why it was too much; empty: it was kept.
    """

    rate: float
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Sweep:
    """All rates that were tried.

    Attributes:
        limit_seconds: What the 99th percentile of latency had to keep.
        steps: In the order they were tried.
    """

    limit_seconds: float
    steps: tuple[Step, ...]

    @property
    def knee(self) -> Step | None:
        """The highest rate that was kept below all that were too much; None: there is none."""
        too_much = min((it.rate for it in self.steps if it.reason), default=math.inf)
        return max((it for it in self.steps if it.rate < too_much), key=lambda it: it.rate, default=None)

    @property
    def is_bracketed(self) -> bool:
        """Whether a rate was too much for the service; else it can do more than the highest that was tried."""
        return any(it.reason and not it.outcome.client_limit for it in self.steps)

    @property
    def client_limit(self) -> str:
        """Why the lowest rate that was too much may have been so for this program only; empty: it was not."""
        missed = min((it for it in self.steps if it.reason), key=lambda it: it.rate, default=None)
        return "" if missed is None else missed.outcome.client_limit


def too_much(outcome: Outcome, limit_seconds: float) -> str:
    """Why a rate was too much; empty: it was kept."""
    measured = outcome.measured
    if not measured.due:
        return "no message was due"
    share = outcome.answered_rate / outcome.offered_rate
    p99 = measured.from_due.quantile(0.99)
    reasons = []
    if not measured.from_due.count or p99 > limit_seconds:
        reasons.append(f"p99 {format_duration(p99)}" if measured.from_due.count else "no answers")
    if share < GOOD_SHARE:
        reasons.append(f"{share:.0%} answered")
    if reasons and outcome.client_limit:
        reasons.append("this program was the limit")
    return ", ".join(reasons)


async def sweep(measure: Callable[[float], Awaitable[Outcome]], first: float, limit_seconds: float) -> Sweep:
    """Raises the rate until it is too much, then closes in on the highest that is kept.

    Args:
        measure: Runs an open loop of so many points a second.
        first: Points a second to begin with.
        limit_seconds: What the 99th percentile of latency has to keep.
    """
    steps: list[Step] = []
    kept, missed, rate = 0.0, math.inf, first
    while len(steps) < MOST_STEPS:
        outcome = await measure(rate)
        if outcome.interrupted or (steps and not outcome.measured.due):
            break  # the latter: so low a rate that no message was due
        steps.append(Step(rate, outcome, too_much(outcome, limit_seconds)))
        if steps[-1].reason:
            missed = min(missed, rate)
        else:
            kept = max(kept, rate)
        if missed == math.inf:
            rate *= UP
        elif not kept:
            rate /= DOWN
        elif missed <= kept * NEAR:
            break
        else:
            rate = math.sqrt(kept * missed)
    return Sweep(limit_seconds, tuple(steps))
