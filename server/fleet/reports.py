"""What devices report, as the hub uses it."""

from __future__ import annotations

from dataclasses import dataclass


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
