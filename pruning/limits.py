"""A budget against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pruning.outcome import Budget, Latency


class Limit(NamedTuple):
    """One limit of a budget.

    Attributes:
        name: As people read it.
        value: Measured.
        limit: At most this.
        timed: Whether it is a time.
    """

    name: str
    value: float
    limit: float
    timed: bool


def limits(latency: Latency, size: int, dense: Latency, budget: Budget) -> Iterator[Limit]:
    """Each limit that is set.

    Args:
        latency: Of the network in question.
        size: Bytes of its graph.
        dense: Of the dense parent, in the same run.
        budget: What is asked.
    """
    if budget.p50_seconds is not None:
        yield Limit("p50", latency.p50_seconds, budget.p50_seconds, True)
    if budget.p99_seconds is not None:
        yield Limit("p99", latency.p99_seconds, budget.p99_seconds, True)
    if budget.speedup is not None:
        yield Limit(f"p50 at speedup {budget.speedup:g}", latency.p50_seconds, dense.p50_seconds / budget.speedup, True)
    if budget.size_bytes is not None:
        yield Limit("size", float(size), float(budget.size_bytes), False)


def within(latency: Latency, size: int, dense: Latency, budget: Budget, margin: float = 1.0) -> bool:
    """Whether times stay inside `margin` of the budget and the size inside all of it."""
    return all(it.value <= it.limit * (margin if it.timed else 1.0) for it in limits(latency, size, dense, budget))


def said(value: float, timed: bool) -> str:
    """A limit as people read it."""
    return f"{value * 1e6:.0f} us" if timed else f"{value:.0f} bytes"
