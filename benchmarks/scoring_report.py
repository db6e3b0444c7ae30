"""What a part of the benchmark of scoring found, and how its tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import harness


@dataclass(frozen=True)
class Part:
    """Of one part.

    Attributes:
        title: Of its table.
        figures: Times, rates and sizes; units stand in the names.
        ratios: Comparisons within the run.
        table: Markdown.
    """

    title: str
    figures: dict[str, Any]
    ratios: dict[str, float] = field(default_factory=dict)
    table: str = ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def at_least(value: float, target: float, unit: str = "") -> str:
    """A target and whether it was met.

    >>> at_least(0.5, 0.4), at_least(90, 100, "x")
    ('>= 0.4: met', '>= 100x: **missed**')
    """
    return f">= {target:g}{unit}: {harness.verdict(value >= target)}"


def at_most(value: float, target: float, unit: str = "") -> str:
    """A target and whether it was met."""
    return f"<= {target:g}{unit}: {harness.verdict(value <= target)}"


def us(seconds: float) -> str:
    """Microseconds."""
    return f"{seconds * 1e6:,.0f} us"


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{seconds * 1e3:.2f} ms"


def rate(points_per_second: float) -> str:
    """Points a second.

    >>> rate(1_234_567), rate(3456.7)
    ('1.23 M', '3,457')
    """
    return f"{points_per_second / 1e6:.2f} M" if points_per_second >= 1e6 else f"{points_per_second:,.0f}"
