"""What the catalog knows, as frozen values; never a live database row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from detectors.bundle import Bundle

DetectorState = Literal["learning", "fitting", "ready", "failed"]
OperationState = Literal["running", "succeeded", "failed", "cancelled"]
Cause = Literal["fit", "update", "prune"]
Trigger = Literal["manual", "schedule", "drift", "missed_budget", "config_change", "shift"]
Label = Literal["anomaly", "normal"]
AWAITING = "awaiting_device"
"""Outcome of a cycle whose child waits until devices have measured it."""
CORRECTED = "corrected"
"""Of one whose child missed the budget there, so that a narrower one is made."""
AdoptionState = Literal["probation", "kept", "rolled_back"]


@dataclass(frozen=True)
class DetectorRow:
    """A hosted detector.

    Attributes:
        name: Its name.
        config: `server.config.DetectorConfig` as JSON.
        state: `learning` (no version yet), `fitting` (its first), `ready`, or `failed` (the first fit failed).
        features: Column names in order; None until configured or seen.
        created: Seconds since the epoch.
        problem: Why it failed; empty otherwise.
        frozen: No fit or cycle begins by itself.
    """

    name: str
    config: dict[str, Any]
    state: DetectorState
    features: list[str] | None
    created: float
    problem: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class BundleRow:
    """What is worth knowing of a bundle without opening it.

    Attributes:
        hash: Its name.
        version: The version it was made for; a parent goes on into later ones.
        device_class: The class it was made for; `parent` for a dense parent.
        units: Hidden units by group.
        parameters: Weights of the network.
        bytes: Length of the step graph.
        error: Mean normalised error on held-out points when it was made; None if not known.
        derived_from: Hash of the bundle it was made from; None for a fit.
    """

    hash: str
    version: int
    device_class: str
    units: dict[str, int]
    parameters: int
    bytes: int
    error: float | None = None
    derived_from: str | None = None

    @classmethod
    def of(cls, bundle: Bundle, error: float | None = None) -> Self:
        """What a bundle says of itself; `error` is not in its manifest."""
        manifest, network = bundle.manifest, bundle.manifest.network
        return cls(
            hash=bundle.hash,
            version=manifest.version,
            device_class=manifest.device_class,
            units=network.units,
            parameters=network.parameters,
            bytes=bundle.size,
            error=error,
            derived_from=manifest.lineage.parent,
        )


@dataclass(frozen=True)
class VersionRow:
    """One published version: a parent and one bundle for each device class it was made for."""

    detector: str
    version: int
    parent_hash: str
    cause: Cause
    created: float
    bundles: Mapping[str, str]
    """Bundle hash by device class."""


@dataclass(frozen=True)
class Serving:
    """What serves on a device class, and what `rollback` goes back to."""

    detector: str
    device_class: str
    version: int
    bundle_hash: str
    pinned: bool
    previous_version: int | None


@dataclass(frozen=True)
class DetectorFacts:
    """A detector with its versions and what serves: all that scoring needs to go on."""

    detector: DetectorRow
    bundles: Sequence[BundleRow]
    versions: Sequence[VersionRow]
    serving: Sequence[Serving]


@dataclass(frozen=True)
class CycleRow:
    """One cycle.

    `outcome` is `running`, `awaiting_device`, `adopted`, `rejected`, `corrected` (devices measured that the child
    misses the budget, and a narrower one is made), `planned` (dry run), `cancelled` or `failed`.
    """

    id: int
    detector: str
    device_class: str
    trigger: str
    started: float
    ended: float | None = None
    outcome: str = "running"
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    cause: str = ""
    """The trigger in words; empty: nothing to add."""
    operation: str = ""
    """That it ran in."""


@dataclass(frozen=True)
class Ended:
    """How a cycle that runs ends, in the transaction that publishes what it made.

    Attributes:
        cycle: Its number.
        device_class: The class it was for.
        outcome: `adopted`, `rejected`, or `awaiting_device`: then it has not ended yet.
        reason: Why.
        result: As the book keeps it.
    """

    cycle: int
    device_class: str
    outcome: str
    reason: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OperationRow:
    """A long-running operation.

    Attributes:
        name: `operations/{id}`.
        kind: `fit`, `prune` or `frontier`.
        detector: The detector's name (the operation outlives it).
        state: Where it stands.
        stage: What it is doing.
        done: How much of the stage is done, 0 to 1.
        message: The same for people.
        error: `type` (class name in `detectors.errors`), `problem`, `field`, `hint` when it failed.
        result: What it came to when it succeeded.
        created: Seconds since the epoch.
        ended: The same; None while it runs.
    """

    name: str
    kind: str
    detector: str
    state: OperationState
    stage: str
    done: float
    message: str
    error: dict[str, str] | None
    result: dict[str, Any] | None
    created: float
    ended: float | None


@dataclass(frozen=True)
class Measurement:
    """How long a step of `batch` points of a bundle takes on a device class."""

    bundle_hash: str
    device_class: str
    batch: int
    p50_seconds: float
    p99_seconds: float
    measured: float
    """When, in seconds since the epoch."""


@dataclass(frozen=True)
class FeedbackRow:
    """What somebody said of the points of a stretch of time; `series` is empty for all of them."""

    id: int
    detector: str
    series: str
    first_stamp: int
    last_stamp: int
    label: Label
    note: str
    created: float


@dataclass(frozen=True)
class WindowRow:
    """A maintenance window: no alarms, no learning; `series` is empty for all of them."""

    id: int
    detector: str
    series: str
    first_stamp: int
    last_stamp: int
    note: str
    created: float


@dataclass(frozen=True)
class PaceRow:
    """How much has passed since something last began.

    Attributes:
        detector: The detector.
        what: A device class, or another name of `server.pace`.
        seconds: That have passed; negative where it began before it was due.
        points: That the detector has taken; the same.
        begun: How often it has begun.
        due: It is due whatever has passed.
        budget: Of the device class when it began, in words.
        saved: When this was written, in seconds since the epoch.
    """

    detector: str
    what: str
    seconds: float = 0.0
    points: int = 0
    begun: int = 0
    due: bool = False
    budget: str = ""
    saved: float = 0.0


@dataclass(frozen=True)
class AdoptionRow:
    """A version that a cycle made serve on a device class.

    Attributes:
        id: Its number.
        detector: The detector.
        device_class: The class.
        version: What was adopted.
        previous_version: What served before; it serves again after a roll back.
        cycle: That made it.
        began: Seconds since the epoch.
        ended: When its probation ended; None while it lasts.
        state: `probation`, `kept`, or `rolled_back` because it misbehaved.
        reason: Why it was rolled back.
    """

    id: int
    detector: str
    device_class: str
    version: int
    previous_version: int | None
    cycle: int | None
    began: float
    ended: float | None = None
    state: AdoptionState = "probation"
    reason: str = ""
