"""Children that wait for devices: measured there before their class gets them. In the book, over restarts.

A cycle for a class that has devices ends with a published version that nobody serves yet, and the outcome
`awaiting_device`. What it waits with stands in the result of the cycle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from detectors.bundle import GRAPH
from server.records import AWAITING, CycleRow
from server.store import Store

Costs = dict[str, tuple[float, float]]
WAITING = "waiting"
"""Where in the result of a cycle it stands."""


@dataclass(frozen=True)
class Waiting:
    """What a child waits with.

    Attributes:
        budget: What was asked for, as `pruning.outcome.Budget` takes it.
        parent: SHA-256 of the parent's step graph: what the child is measured beside.
        child: SHA-256 of its own.
        serving: The version that served when it began to wait; None: none did.
        expires: Seconds since the epoch.
        correction: How many children before it were measured, and missed the budget.
        probe_id: Of what devices were asked; empty: none was yet.
        answered: When the first answer came; 0: none has.
        answers: Costs by device.
    """

    budget: dict[str, Any]
    parent: str
    child: str
    serving: int | None
    expires: float
    correction: int = 0
    probe_id: str = ""
    answered: float = 0.0
    answers: dict[str, Costs] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Points in a step."""
        return int(self.budget["batch"])

    @classmethod
    def of(cls, row: CycleRow) -> Self:
        """That of a cycle in the book."""
        content = row.result[WAITING]
        answers = {
            device: {sha256: (p50, p99) for sha256, (p50, p99) in costs.items()}
            for device, costs in content["answers"].items()
        }
        return cls(**{**content, "answers": answers})

    def within(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A cycle's result with it."""
        return {**result, WAITING: asdict(self)}


@dataclass(frozen=True)
class Wait:
    """What is known before a child is made.

    Attributes:
        budget: See `Waiting`; by device class.
        expires: The same.
        correction: The same.
    """

    budgets: Mapping[str, dict[str, Any]]
    expires: float
    correction: int = 0


def awaiting(store: Store, name: str, result: dict[str, Any], wait: Wait) -> dict[str, Any]:
    """A trainer's result in which children for classes with devices wait instead of being adopted.

    Args:
        store: Where their bundles lie.
        name: The detector.
        result: Of a `cycle` or `round` job.
        wait: Names those classes.
    """
    serving = {it.device_class: it.version for it in store.catalog.all_serving(name)}

    def waits(made: dict[str, Any], device_class: str) -> dict[str, Any]:
        if made["outcome"] != "adopted" or device_class not in wait.budgets:
            return made
        bundles = [store.read_bundle(made[key]["hash"]) for key in ("parent", "child")]
        parent, child = (bundle.manifest.files[GRAPH].sha256 for bundle in bundles)
        waiting = Waiting(
            budget=wait.budgets[device_class],
            parent=parent,
            child=child,
            serving=serving.get(device_class),
            expires=wait.expires,
            correction=wait.correction,
        )
        return waiting.within({**made, "outcome": AWAITING, "reason": f"waits for devices of {device_class}"})

    if "children" not in result:
        (device_class,) = wait.budgets
        return waits(result, device_class)
    children = [waits(it, it["device_class"]) for it in result["children"]]
    return {**result, "children": children, "outcome": overall(result, children)}


def overall(result: Mapping[str, Any], children: Collection[Mapping[str, Any]]) -> str:
    """How a round ended: something is adopted, or at least waits."""
    outcomes = {it["outcome"] for it in children}
    if "adopted" in outcomes or (result["updated"] and result["unpruned"]):
        return "adopted"
    return AWAITING if AWAITING in outcomes else "rejected"
