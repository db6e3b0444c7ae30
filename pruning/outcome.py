"""What is asked of a cycle and what it answers. Free of torch: the service and the command line speak these words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from detectors.errors import InvalidInputError

MARGIN = 0.9  # the search aims at this share of a budget: the device must not live on the edge of it


@dataclass(frozen=True)
class Budget:
    """What a step of the detector may cost on a device class. At least one finite limit is set.

    Attributes:
        p50_seconds: Median time of a step of `batch` points.
        p99_seconds: Its 99th percentile (the median over measurement rounds of each round's p99).
        speedup: The parent's p50, measured in the same run, divided by this.
        size_bytes: Bytes of the step graph on disk.
        batch: Points a step.
    """

    p50_seconds: float | None = None
    p99_seconds: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None
    batch: int = 256

    def __post_init__(self) -> None:
        limits = {
            "p50": self.p50_seconds,
            "p99": self.p99_seconds,
            "speedup": self.speedup,
            "size": self.size_bytes,
        }
        if all(limit is None for limit in limits.values()):
            raise InvalidInputError(
                "no budget is given.", field="budget", hint="Give at least one of p99, p50, speedup or size."
            )
        for name, limit in limits.items():
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidInputError(f"{limit} is not a positive, finite number.", field=f"budget.{name}")
        if self.speedup is not None and self.speedup < 1:
            raise InvalidInputError(
                f"{self.speedup} would make it slower.", field="budget.speedup", hint="Give 1 or more."
            )
        if not 1 <= self.batch <= 65536:
            raise InvalidInputError(f"{self.batch} is not between 1 and 65536.", field="budget.batch")


@dataclass(frozen=True)
class Latency:
    """Measured time of a step.

    Attributes:
        p50_seconds: Median of all timed steps.
        p99_seconds: Median over rounds of each round's 99th percentile.
        batch: Points a step.
    """

    p50_seconds: float
    p99_seconds: float
    batch: int


@dataclass(frozen=True)
class Sized:
    """Size, speed and error of one detector, as reports show it.

    Attributes:
        version: The version it belongs to.
        hash: Of its bundle; None while it is only planned.
        units: Hidden units by group.
        parameters: Trainable numbers.
        bytes: Of the step graph.
        p50_seconds: See `Latency`.
        p99_seconds: See `Latency`.
        error: Trimmed mean squared residual on held-out points, in the parent's scaled units; None if not evaluated.
    """

    version: int
    hash: str | None
    units: dict[str, int]
    parameters: int
    bytes: int
    p50_seconds: float
    p99_seconds: float
    error: float | None


@dataclass(frozen=True)
class Reachable:
    """The best that pruning can do towards a budget, with the lever that is left."""

    units: dict[str, int]
    p50_seconds: float
    p99_seconds: float
    bytes: int
    speedup: float
    hint: str

    def said(self) -> str:
        """In one line."""
        times = f"p50 {self.p50_seconds * 1e6:.0f} us, {self.speedup:.1f} times as fast, {self.bytes} bytes"
        return f"{times}. {self.hint}"


@dataclass(frozen=True)
class Check:
    """One line of the gate: a measured value against its limit."""

    name: str
    value: float
    limit: float
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Gate:
    """The decision about a candidate."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Why not, in one sentence; empty when it passed."""
        return "; ".join(check.detail for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """As manifests, `prune --json` and the service carry it."""
        return {
            "passed": self.passed,
            "checks": {
                check.name: {"value": check.value, "limit": check.limit, "passed": check.passed, "detail": check.detail}
                for check in self.checks
            },
        }


@dataclass(frozen=True)
class Outcome:
    """What a cycle proposes.

    Attributes:
        outcome: `adopted` (the candidate passed), `rejected`, or `planned` (dry run).
        reason: Why it was rejected, or what is planned; empty when adopted.
        parent: The dense parent, measured in the same run as the child.
        child: The candidate; None when the budget can not be met.
        best_reachable: The floor, when the budget can not be met.
        gate: Its checks; None when no candidate was built.
        stages: Seconds by stage of the cycle.
        plan: What was chosen: layers that are bypassed and levers that are pulled, widths of each group before and
            after with the predicted rise of the loss, stages, updates; None when the budget can not be met.
        report: What was removed and what it responded to (`pruning.report`); None where no child was built.
    """

    outcome: str
    reason: str
    parent: Sized
    child: Sized | None = None
    best_reachable: Reachable | None = None
    gate: Gate | None = None
    stages: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    report: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `prune --json` prints it."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "best_reachable": asdict(self.best_reachable) if self.best_reachable else None,
            "parent": asdict(self.parent),
            "child": asdict(self.child) if self.child else None,
            "gate": self.gate.to_dict() if self.gate else None,
            "stages": self.stages,
            "plan": self.plan,
            "report": self.report,
        }
