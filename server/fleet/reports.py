"""What devices report, as the hub uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.fleet.records import State

LONGEST_STEP = 3600.0
"""Seconds; a device that says more is not believed."""


@dataclass(frozen=True)
class ProbeReport:
    """What graphs cost on a device.

    Attributes:
        device: Its name.
        probe_id: Of the probe.
        batch: Points in a step.
        costs: (median, 99th percentile) of a step in seconds, by SHA-256 of the graph; only figures that can be.
        conditions: What explains them: threads, governor, temperature.
        problem: Why there are none; empty where there are.
        time_ns: When, by the device's clock, in nanoseconds since the epoch.
    """

    device: str
    probe_id: str
    batch: int
    costs: dict[str, tuple[float, float]]
    conditions: dict[str, float | int | str]
    problem: str
    time_ns: int


@dataclass(frozen=True)
class FieldRun:
    """Points of a series that follow each other.

    Attributes:
        detector: The detector.
        series: As the device calls it.
        stamps: [N], ascending.
        values: [N, F] float32.
        scores: [N] float32; NaN: none.
        threshold: At that time.
        counter: Of the release that scored them.
        flagged: Whether they were sent because some were flagged.
        features: [F] names.
        size: Bytes on the wire.
    """

    detector: str
    series: str
    stamps: NDArray[np.int64]
    values: NDArray[np.float32]
    scores: NDArray[np.float32]
    threshold: float
    counter: int
    flagged: bool
    features: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class ReleaseNote:
    """What became of a release on a device."""

    detector: str
    bundle: str
    counter: int
    state: State
    reason: str


@dataclass(frozen=True)
class Report:
    """One thing that a device has seen.

    Attributes:
        sequence: Its number.
        said: What; None: something that this hub does not understand, or that can not be.
    """

    sequence: int
    said: FieldRun | ProbeReport | ReleaseNote | None


def believable(costs: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Without figures that can not be: not finite, not above nothing, beyond an hour, or a median above the 99th.

    >>> believable({"a": (1e-4, 2e-4), "b": (0.0, 1e-4), "c": (float("nan"), 1.0), "d": (2.0, 1.0)})
    {'a': (0.0001, 0.0002)}
    """
    return {
        name: (p50, p99)
        for name, (p50, p99) in costs.items()
        if math.isfinite(p50) and math.isfinite(p99) and 0 < p50 <= p99 < LONGEST_STEP
    }


def plain(conditions: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Conditions without what is neither a number nor a text."""
    return {key: it for key, it in conditions.items() if isinstance(it, int | float | str)}
