"""What a device has to say to its hub: how it is, and what it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.releases import Probe


class ReleaseState(IntEnum):
    """Where a device stands with the newest release that it was asked to take; the numbers of the wire."""

    FETCHING = 1
    TRYING = 2
    SERVING = 3
    FELL_BACK = 4
    REFUSED = 5


@dataclass(frozen=True)
class FieldPoints:
    """A run of points of a series that follow each other.

    Attributes:
        detector: Name of the detector.
        series: Name of the series.
        stamps: [N], ascending.
        values: [N, F].
        scores: [N]; NaN where there is none.
        threshold: At that time.
        counter: Of the release that scored them.
        flagged: Whether they are sent because some were flagged.
        features: [F] names.
        time_ns: When they were put together.
    """

    detector: str
    series: str
    stamps: NDArray[np.int64]
    values: FloatArray
    scores: FloatArray
    threshold: float
    counter: int
    flagged: bool
    features: tuple[str, ...]
    time_ns: int


@dataclass(frozen=True)
class ReleaseEvent:
    """What became of a release.

    Attributes:
        detector: Name of the detector.
        bundle_hash: Of its bundle.
        counter: Of the release.
        state: Where it got to.
        reason: Why.
        time_ns: When.
    """

    detector: str
    bundle_hash: str
    counter: int
    state: ReleaseState
    reason: str
    time_ns: int


@dataclass(frozen=True)
class Measured:
    """What graphs cost here.

    Attributes:
        probe_id: Of the probe.
        batch: Points in a step.
        costs: Seconds of a step by the graph's hash: median, and median of the rounds' 99th percentiles.
        conditions: What explains the figures.
        problem: Why there are none; empty where there are.
        time_ns: When.
    """

    probe_id: str
    batch: int
    costs: Mapping[str, tuple[float, float]]
    conditions: Mapping[str, float | int | str]
    problem: str
    time_ns: int


Report = FieldPoints | ReleaseEvent | Measured


@dataclass(frozen=True)
class Standing:
    """Where a device stands with a detector.

    Attributes:
        detector: Name of the detector.
        bundle_hash: What scores; empty: nothing does.
        counter: Of the release that asked for it.
        state: With the newest release.
        reason: Why, where something went wrong.
        asked_counter: Of the newest release.
        points: Scored since the start of the process.
        flagged: The same.
        step_p50_seconds: Of the steps since the last status; NaN: there was none.
        step_p99_seconds: The same.
        series: With a state.
    """

    detector: str
    bundle_hash: str
    counter: int
    state: ReleaseState
    reason: str
    asked_counter: int
    points: int
    flagged: int
    step_p50_seconds: float
    step_p99_seconds: float
    series: int


@dataclass(frozen=True)
class DeviceStatus:
    """How a device is.

    Attributes:
        served: Each detector.
        temperature_celsius: Of the processor; NaN: not to be read.
        uptime_seconds: Since the start of the process.
        dropped_reports: Since it was enrolled.
        waiting_bytes: Of reports.
        resident_bytes: Of memory.
    """

    served: list[Standing]
    temperature_celsius: float
    uptime_seconds: float
    dropped_reports: int
    waiting_bytes: int
    resident_bytes: int


class ProbeOutcome(Protocol):
    """What came of measuring (`server.edge.prober`); fields as of `Measured`."""

    @property
    def costs(self) -> Mapping[str, tuple[float, float]]:
        """Seconds by graph."""

    @property
    def conditions(self) -> Mapping[str, float | int | str]:
        """What explains them."""

    @property
    def problem(self) -> str:
        """Why there are none."""


class Measures(Protocol):
    """Measures graphs off the event loop, in small slices that let scoring go first."""

    async def measure(self, probe: Probe, graphs: Mapping[str, bytes]) -> ProbeOutcome:
        """Times a step of each graph; `graphs` are verified, by their hashes."""
