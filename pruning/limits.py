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
        asked = f"p50 (asked: {budget.speedup:g} times as fast as the parent)"
        yield Limit(asked, latency.p50_seconds, dense.p50_seconds / budget.speedup, True)
    if budget.size_bytes is not None:
        yield Limit("size", float(size), float(budget.size_bytes), False)


def within(latency: Latency, size: int, dense: Latency, budget: Budget, margin: float = 1.0) -> bool:
    """Whether times stay inside `margin` of the budget and the size inside all of it."""
    return all(it.value <= it.limit * (margin if it.timed else 1.0) for it in limits(latency, size, dense, budget))


def said(value: float, timed: bool) -> str:
    """A limit as people read it.

    >>> said(145e-6, True), said(8e-8, True), said(4.334e-3, True), said(1, False)
    ('145 us', '0.08 us', '4.33 ms', '1 byte')
    """
    if timed and value >= 1e-3:
        return f"{value * 1e3:.3g} ms"
    if timed:
        return f"{value * 1e6:.0f} us" if value >= 1e-5 else f"{value * 1e6:.2g} us"
    return f"{value:.0f} byte{'s' * (round(value) != 1)}"
