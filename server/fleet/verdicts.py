"""What devices say of a child beside its parent: whether it keeps its budget there, and what to ask for if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruning.limits import limits, said, within
from pruning.outcome import Budget, Latency
from server import config
from server.fleet.tables import of_class
from server.waiting import Waiting


@dataclass(frozen=True)
class Verdict:
    """What the devices of a class measured.

    Attributes:
        parent: Medians over devices.
        child: The same.
        devices: How many of them.
        fits: Whether the child keeps the budget.
        reason: By what it is missed; empty: it is kept.
    """

    parent: Latency
    child: Latency
    devices: int
    fits: bool
    reason: str

    @property
    def on(self) -> str:
        """How many devices, in words.

        >>> Verdict(Latency(1, 1, 1), Latency(1, 1, 1), 1, True, "").on
        '1 device'
        """
        return f"{self.devices} device{'s' * (self.devices != 1)}"


def verdict(waiting: Waiting, size: int) -> Verdict:
    """What the answers to a waiting child come to.

    Args:
        waiting: With at least one answer.
        size: Bytes of the child's graph.
    """
    budget = Budget(**waiting.budget)
    costs = of_class(list(waiting.answers.values()), waiting.parent)
    parent, child = (Latency(*costs[it], waiting.batch) for it in (waiting.parent, waiting.child))
    missed = [it for it in limits(child, size, parent, budget) if it.value > it.limit]
    reason = ", ".join(f"{it.name} {said(it.value, it.timed)} (budget {said(it.limit, it.timed)})" for it in missed)
    return Verdict(parent, child, len(waiting.answers), within(child, size, parent, budget), reason)


def corrected(waiting: Waiting, found: Verdict, result: Mapping[str, Any]) -> config.Budget:
    """The budget to ask for, so that what devices will measure meets the real one.

    Each limit on time is moved by as much as was foretold wrongly: where the child was to take 100 us and takes 130,
    110 us are asked for as 110 * 100 / 130.

    Args:
        waiting: What missed the budget, with that.
        found: What devices measured.
        result: Of its cycle, with what was foretold.
    """
    budget, foretold = dict(waiting.budget), {name: result[name] for name in ("parent", "child")}
    for key, measured in (("p50_seconds", found.child.p50_seconds), ("p99_seconds", found.child.p99_seconds)):
        if budget[key] is not None:
            budget[key] *= foretold["child"][key] / measured
    if budget["speedup"] is not None:
        promised = foretold["parent"]["p50_seconds"] / foretold["child"]["p50_seconds"]
        budget["speedup"] *= max(1.0, promised * found.child.p50_seconds / found.parent.p50_seconds)
    return config.Budget(
        p50=budget["p50_seconds"],
        p99=budget["p99_seconds"],
        speedup=budget["speedup"],
        size=budget["size_bytes"],
        batch=budget["batch"],
    )


def reachable(found: Verdict, child: Mapping[str, Any]) -> dict[str, Any]:
    """The best that was reached, as outcomes say it."""
    return {
        "units": child["units"],
        "p50_seconds": found.child.p50_seconds,
        "p99_seconds": found.child.p99_seconds,
        "bytes": child["bytes"],
        "speedup": found.parent.p50_seconds / found.child.p50_seconds,
        "hint": f"Measured on {found.on}. What is left: a larger budget, more points a step, or a faster device.",
    }
