"""The widest network that meets a budget: a ladder of widths, measured side by side in the serving runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from detectors.training.export import step_graph
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from pruning.groups import prunable
from pruning.latency import measure
from pruning.outcome import MARGIN, Budget, Latency, Reachable

Units = dict[str, int]

GRID = 8  # widths are multiples of a vector register; between them a network is not faster ("hysteresis", Yin 2019)
RUNGS = 16
STAGE = 0.5  # a single cut removes at most this share; deeper ones are taken in geometric stages
MAXIMUM_STAGES = 4


@dataclass(frozen=True)
class Rung:
    """One set of widths, measured with untrained weights (time does not depend on them)."""

    units: Units
    latency: Latency
    bytes: int


@dataclass(frozen=True)
class Ladder:
    """Rungs from the dense parent (first) down to the floor (last), measured in one run."""

    rungs: tuple[Rung, ...]

    @property
    def dense(self) -> Rung:
        """The parent's own widths."""
        return self.rungs[0]

    @property
    def floor(self) -> Rung:
        """The narrowest widths."""
        return self.rungs[-1]

    def meets(self, rung: Rung, budget: Budget, margin: float = 1.0) -> bool:
        """Whether a rung stays inside `margin` of the budget's times, and inside its size."""
        return within(rung.latency, rung.bytes, self.dense.latency, budget, margin)

    def widest(self, budget: Budget) -> Rung | None:
        """The widest rung inside `MARGIN` of the budget, else the floor if it is inside the budget, else None."""
        for rung in self.rungs:
            if self.meets(rung, budget, MARGIN):
                return rung
        return self.floor if self.meets(self.floor, budget) else None

    def below(self, units: Units) -> Rung | None:
        """The next narrower rung."""
        index = next(i for i, rung in enumerate(self.rungs) if rung.units == units)
        return self.rungs[index + 1] if index + 1 < len(self.rungs) else None

    def best_reachable(self, budget: Budget) -> Reachable:
        """The floor, and what else could help."""
        floor = self.floor
        speedup = self.dense.latency.p50_seconds / floor.latency.p50_seconds
        return Reachable(
            units=floor.units,
            p50_seconds=floor.latency.p50_seconds,
            p99_seconds=floor.latency.p99_seconds,
            bytes=floor.bytes,
            speedup=speedup,
            hint=(
                f"Below {_named(floor.units)} the runtime itself is the floor at batch {budget.batch}. Raise the "
                "budget, use a larger batch a step, fewer layers or a shorter window, or a faster device."
            ),
        )


def climb(parent: Fitted, budget: Budget) -> Ladder:
    """Measures every rung of the parent's ladder at the budget's batch, interleaved."""
    widths = list(ladder_units(parent.network))
    graphs = [step_graph(parent.with_network(parent.network.resized(units))) for units in widths]
    times = measure(graphs, budget.batch)
    return Ladder(
        tuple(Rung(units, latency, len(graph)) for units, latency, graph in zip(widths, times, graphs, strict=True))
    )


def ladder_units(network: Network) -> Iterator[Units]:
    """Widths from dense to floor: the same share of every prunable group, rounded up to the grid, each set once.

    Sixteenths down to one, then halves down to the grid.
    """
    groups = prunable(network)
    last: Units | None = None
    for rung in range(RUNGS, 0, -1):
        units = {g.name: min(g.width, GRID * math.ceil(g.width * rung / RUNGS / GRID)) for g in groups}
        if units != last:
            yield units
        last = units
    while last and max(last.values()) > GRID:  # wide parents: the sixteenth is not yet the floor
        last = {name: min(width, max(GRID, GRID * math.ceil(width / 2 / GRID))) for name, width in last.items()}
        yield last


def stages(dense: Units, target: Units) -> list[Units]:
    """Widths to prune to one after the other: one shot while half the units stay, else geometric steps."""
    ratio = min(target[name] / dense[name] for name in target)
    count = min(MAXIMUM_STAGES, max(1, math.ceil(math.log(ratio) / math.log(STAGE) - 1e-9)))
    steps = [
        {name: max(target[name], round(dense[name] * (target[name] / dense[name]) ** (i / count))) for name in target}
        for i in range(1, count)
    ]
    return [*steps, dict(target)]


def within(latency: Latency, size: int, dense: Latency, budget: Budget, margin: float = 1.0) -> bool:
    """Whether times stay inside `margin` of the budget and the size inside all of it."""
    return all(
        value <= limit * (margin if timed else 1.0) for _, value, limit, timed in limits(latency, size, dense, budget)
    )


def limits(latency: Latency, size: int, dense: Latency, budget: Budget) -> Iterator[tuple[str, float, float, bool]]:
    """Each limit that is set: (name, measured, limit, whether it is a time)."""
    if budget.p50_seconds is not None:
        yield "p50", latency.p50_seconds, budget.p50_seconds, True
    if budget.p99_seconds is not None:
        yield "p99", latency.p99_seconds, budget.p99_seconds, True
    if budget.speedup is not None:
        yield f"p50 at speedup {budget.speedup:g}", latency.p50_seconds, dense.p50_seconds / budget.speedup, True
    if budget.size_bytes is not None:
        yield "size", float(size), float(budget.size_bytes), False


def said(value: float, timed: bool) -> str:
    """A limit as people read it."""
    return f"{value * 1e6:.0f} us" if timed else f"{value:.0f} bytes"


def _named(units: Units) -> str:
    return ", ".join(f"{name}={width}" for name, width in units.items())
