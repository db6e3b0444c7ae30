"""A hub with something to see on its page: detectors that were really fitted and pruned, and points that stream in.

`python benchmarks/page_scene.py` keeps it up until Ctrl-C, to be looked at while the page is worked on;
`benchmarks/page_picture.py` takes the picture of the README from it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
from numpy.typing import NDArray

from prunewatch.client import Client
from server.app import Hub
from server.config import Settings

FEATURES = ("flow", "pressure", "load", "heat")
STEP_SECONDS = 0.25
"""Between two points of a series."""
SERIES = ("north", "south", "east")
CLASSES = {
    "hub": {"p50": "150us", "batch": 64},
    "pi4": {"p50": "60us", "size": "20KiB", "batch": 64},
}
FITS: dict[str, dict[str, Any]] = {
    "pump": {"network": "lstm", "options": {"layers": 2, "width": 32}, "device_classes": ["hub", "pi4"]},
    "press": {"network": "autoencoder", "options": {"window": 16, "width": 48, "bottleneck": 6}},
    "mixer": {"network": "isolation_forest", "options": {"window": 4, "trees": 40, "samples": 64}},
}
LEARNING = "kiln"
"""A detector that has no version yet."""


def machine(points: int, seed: int) -> NDArray[np.float32]:
    """Four sensors of one machine, [points, 4]: two cycles, a mixture of both, and an echo; a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(points) + rng.uniform(0, 100)
    fast, slow = np.sin(t / 4), np.sin(t / 17)
    clean = np.stack(
        [10 + fast, 200 + 30 * slow, 0.6 * fast + 0.8 * slow * fast, 0.5 * np.roll(fast, 3) + slow], axis=1
    )
    return (clean + 0.08 * np.array([1, 30, 1, 1]) * rng.standard_normal(clean.shape)).astype(np.float32)


def free_address() -> str:
    """A port of loopback that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.asynccontextmanager
async def hub_on(folder: Path, **fields: Any) -> AsyncIterator[tuple[Hub, Client]]:
    """A hub on free ports, and a client of it."""
    given = {"listen": free_address(), "admin": free_address(), "store": folder / "store", "drain_seconds": 0.5}
    hub = Hub(Settings(**{"device_classes": CLASSES, **given, **fields}))
    await hub.start()
    try:
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            yield hub, client
    finally:
        await hub.stop()


async def fit(client: Client, name: str, points: int = 2000) -> None:
    """Fits one of `FITS` on points of the past."""
    stamps = (time.time_ns() // 10**9 - 86_400 + np.arange(points)) * 10**9
    values, config = machine(points, seed=1), {"false_alarm_rate": 0.002, **FITS[name]}
    operation = await client.fit_upload(name, features=FEATURES, stamps=stamps, values=values, config=config)
    await client.wait_operation(operation)


async def prune(client: Client, name: str, **budget: Any) -> None:
    """One cycle; whatever comes of it is to be seen."""
    await client.wait_operation(await client.prune(name, **budget))


class Stream:
    """Points of all series, one after the other, as sensors send them; `disturbed` ones for a moment are not normal.

    Args:
        client: Where they go.
        detectors: Each gets all of them.
    """

    def __init__(self, client: Client, detectors: tuple[str, ...]) -> None:
        self._client = client
        self._detectors = detectors
        self._rows = {name: machine(20_000, seed=10 + i) for i, name in enumerate(SERIES)}
        self._sent = 0
        self._disturbed = 0

    def disturb(self, points: int = 6) -> None:
        """The next points of the first series lose their flow."""
        self._disturbed = points

    async def send(self, points: int = 1) -> None:
        """The next points of every series, now."""
        now = time.time_ns()
        rows = [it[self._sent : self._sent + points].copy() for it in self._rows.values()]
        if self._disturbed:
            rows[0][:, 0] -= 6.0
            self._disturbed = max(self._disturbed - points, 0)
        self._sent += points
        step = int(STEP_SECONDS * 1e9)
        stamps = np.tile(now - step * np.arange(points)[::-1], len(SERIES))
        series = np.repeat(np.array(SERIES), points).tolist()
        for name in self._detectors:
            await self._client.score(name, series=series, stamps=stamps, values=np.concatenate(rows))

    async def run(self, *, disturb_every: float) -> None:
        """Goes on until cancelled."""
        began = disturbed = time.monotonic()
        for turn in range(10**9):
            if time.monotonic() - disturbed > disturb_every:
                disturbed = time.monotonic()
                self.disturb()
            await self.send()
            await asyncio.sleep(max(0.0, began + (turn + 1) * STEP_SECONDS - time.monotonic()))


@contextlib.asynccontextmanager
async def scene(folder: Path, **fields: Any) -> AsyncIterator[Hub]:
    """Everything that the page can show: versions, a frontier, cycles that were let in and not, labels, live points."""
    async with hub_on(folder, **fields) as (hub, client):
        await client.create(LEARNING, {"network": "gru"})
        for name in FITS:
            await fit(client, name)
        stream = Stream(client, tuple(FITS))
        await stream.send(150)
        streaming = asyncio.create_task(stream.run(disturb_every=50.0))
        try:
            await prune(client, "pump", speedup=1.5)
            await client.wait_operation(await client.build_frontier("pump", points=6))
            await prune(client, "pump", device_class="pi4")
            await prune(client, "press", p50_seconds=2e-6)  # nothing is so fast
            await prune(client, "press", speedup=1.3)
            hour = 3600 * 10**9
            await client.add_label(
                "pump", "normal", time.time_ns() - 9 * hour, time.time_ns() - 8 * hour, note="filter changed"
            )
            await client.add_window(
                "pump", time.time_ns() + 9 * hour, time.time_ns() + 11 * hour, note="yearly service"
            )
            yield hub
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)


async def _until_stopped(admin: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder), admin=admin) as hub:
            print(f"http://127.0.0.1:{hub.listener.admin_port}/", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--admin", default="127.0.0.1:8002", help="where the page is; default 127.0.0.1:8002")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_until_stopped(parser.parse_args().admin))
