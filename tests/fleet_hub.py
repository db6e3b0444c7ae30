"""A hub with a device class `pi4` and a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from conftest import NOW, QUICK_TRAINER, Hub, hub_settings, publish
from graphs import ewma_bundle

CLASSES = {"hub": {}, "pi4": {"p99": "1ms", "batch": 64}, "pi3": {}}


class Clock:
    """Seconds since the epoch; stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW / 1e9

    def __call__(self) -> float:
        """The time."""
        return self.now


@asynccontextmanager
async def fleet_hub(folder: Path, clock: Clock | None = None, **fields: Any) -> AsyncIterator[Hub]:
    """A running hub."""
    given = {"device_classes": CLASSES, **fields}
    hub = Hub(hub_settings(folder, **given), trainer=QUICK_TRAINER, clock=clock or Clock())
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


async def offer(hub: Hub, version: int = 1, name: str = "pump", **graph: Any) -> str:
    """Publishes a version that serves on the hub and on `pi4`, and settles; returns its hash."""
    bundle = ewma_bundle(name, version, gain=float(version), **graph)
    await publish(hub, bundle, device_classes=["hub", "pi4"])
    await hub.fleet.settle([name])
    return bundle.hash
