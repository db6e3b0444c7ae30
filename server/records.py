"""What the catalog knows, as frozen values; never a live database row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DetectorState = Literal["learning", "fitting", "ready", "failed"]
OperationState = Literal["running", "succeeded", "failed", "cancelled"]
Cause = Literal["fit", "update", "prune"]


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
    """

    name: str
    config: dict[str, Any]
    state: DetectorState
    features: list[str] | None
    created: float
    problem: str = ""


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
class CycleRow:
    """One cycle: `outcome` is `running`, `adopted`, `rejected`, `planned` (dry run) or `failed`."""

    id: int
    detector: str
    device_class: str
    trigger: str
    started: float
    ended: float | None = None
    outcome: str = "running"
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)


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
