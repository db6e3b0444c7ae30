"""Devices of the hub: how many, what is on its way to them, what they refuse, what they send. None has a name here."""

from __future__ import annotations

from server.metrics.family import counter, gauge, reading
from server.metrics.labels import CLASS, DETECTOR
from server.metrics.registry import Registered


class FleetMetrics(Registered):
    """Of all devices of a class together."""

    devices = gauge("prunewatch_devices", "Enrolled devices, connected or away.", CLASS, "state")
    rollouts = gauge("prunewatch_rollouts", "Roll-outs that go on, by stage.", CLASS, "state")
    rollouts_ended = counter("prunewatch_rollouts_ended", "Roll-outs that were completed or stopped.", CLASS, "outcome")
    bundle_rejections = counter(
        "prunewatch_bundle_rejections", "Releases that devices refused, or fell back from.", CLASS, "reason"
    )
    probes = counter(
        "prunewatch_probes",
        "Answers of devices that were asked what graphs cost, by what became of them.",
        *(CLASS, "outcome"),
    )
    field_points = counter(
        "prunewatch_field_points", "Points that devices sent, by what became of them.", DETECTOR, "outcome"
    )
    in_use = reading(
        "prunewatch_devices_step_seconds",
        "Step in use as devices say it themselves: the median over those that were heard of in a day.",
        *(DETECTOR, CLASS, "quantile"),
    )
    table_devices = reading(
        "prunewatch_class_table_devices",
        "Devices whose measurements, not too old, the latency table of a class rests on.",
        *(DETECTOR, CLASS),
    )
    waiting_since = reading(
        "prunewatch_child_waiting_since_timestamp_seconds",
        "Since when a child waits for devices to measure it; absent where none does.",
        *(DETECTOR, CLASS),
    )
    waiting_expires = reading(
        "prunewatch_child_waiting_expires_timestamp_seconds",
        "When it is rejected if no device has answered.",
        *(DETECTOR, CLASS),
    )
