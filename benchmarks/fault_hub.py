"""A hub whose versions come one after the other, and that is ended and started anew while devices depend on it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import fault_bundles
import numpy as np
from fault_bundles import DETECTOR
from faulty_link import free_address

from detectors.bundle import write_bundle
from prunewatch.client import Client
from server.app import Hub
from server.config import Settings
from server.publish import publish_fit
from server.releases import Release

CLASS = "device"
STATUS_SECONDS = 3.0
WINDOW_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
NO_TRAINER = (sys.executable, "-c", "")
"""Nothing here can be trained on."""


class FaultHub:
    """The hub.

    Args:
        folder: For its store.
        devices: That it will have; a new version goes to all of them at once.
        download_bytes_per_second: For all together, so that deliveries take long enough to be harmed.

    Attributes:
        address: Where devices dial.
        published: Hashes of bundles by version: nothing else may ever serve.
        restarts: So far.
    """

    def __init__(self, folder: Path, devices: int, download_bytes_per_second: int) -> None:
        listen = free_address()
        rollout = {"canaries": devices, "window": WINDOW_SECONDS, "patience": PATIENCE_SECONDS}
        fleet = {"status_every": STATUS_SECONDS, "download_rate": download_bytes_per_second, "rollout": rollout}
        given: dict[str, Any] = {"device_classes": {"hub": {}, CLASS: {}}, "fleet": fleet, "drain_seconds": 0.3}
        self._settings = Settings(listen=listen, admin="127.0.0.1:0", store=folder / "hub", **given)
        self._up = asyncio.Lock()
        self._hub: Hub | None = None
        self.address = listen
        self.published: dict[int, str] = {}
        self.restarts = 0

    async def start(self) -> None:
        """Begins to serve."""
        self._hub = Hub(self._settings, trainer=NO_TRAINER)
        await self._hub.start()

    async def stop(self) -> None:
        """Ends in order."""
        assert self._hub is not None
        await self._hub.stop()
        self._hub = None

    async def restart(self, away_seconds: float) -> None:
        """Ends, is away for a while, and starts on the same store and address."""
        async with self._up:
            await self.stop()
            await asyncio.sleep(away_seconds)
            await self.start()
            self.restarts += 1

    async def token(self, device: str) -> str:
        """With which a device enrols."""
        async with self._client() as client:
            made: str = (await client.fleet.create_token(CLASS, device=device))["token"]
        return made

    async def publish(self) -> int:
        """Publishes the next version, which serves from now on; returns its number."""
        async with self._up:
            hub = self._hub
            assert hub is not None
            if DETECTOR not in hub.host:
                features = [f"f{i + 1}" for i in range(fault_bundles.FEATURES)]
                config = {"features": features, "device_classes": ["hub", CLASS], "time": "index"}
                await hub.roster.create(DETECTOR, config)
                async with self._client() as client:
                    await client.freeze(DETECTOR)
            version = 1 + max((it.version for it in hub.store.catalog.versions(DETECTOR)), default=0)
            made = fault_bundles.bundle(version)
            self.published[version] = made.hash
            await asyncio.to_thread(write_bundle, made, hub.store.bundle_folder(made.hash))
            facts = {
                "hash": made.hash,
                "version": version,
                "units": dict(made.manifest.network.units),
                "parameters": made.manifest.network.parameters,
                "bytes": made.size,
                "p50_seconds": None,
                "p99_seconds": None,
                "error": float(np.float32(0.5)),
            }
            await asyncio.to_thread(publish_fit, hub.store, DETECTOR, {"parent": facts})
            await hub.roster.follow(DETECTOR)
            await hub.fleet.settle([DETECTOR])  # the hub would do so within a second
            return version

    async def roll_back(self) -> int:
        """Has devices go back to what they served before; returns its number."""
        async with self._up, self._client() as client:
            await client.roll_back(DETECTOR, device_class=CLASS)
            assert self._hub is not None
            await self._hub.fleet.settle([DETECTOR])
            serving = self._hub.store.catalog.serving(DETECTOR, CLASS)
            assert serving is not None
            return serving.version

    async def wanted(self, device: str) -> Release | None:
        """What a device is to run, by the hub's own word; waits while the hub is away."""
        async with self._up:
            assert self._hub is not None
            found = self._hub.fleet.desired.meant.of(device, CLASS)
            return Release.model_validate_json(found[0].payload) if found else None

    async def stopped_rollouts(self) -> int:
        """How many went back because devices gave them up; those that a newer version overtook do not count."""
        async with self._up, self._client() as client:
            found = await client.fleet.rollouts(DETECTOR)
            return sum(it["stage"].lower() == "stopped" and "took its place" not in it["reason"] for it in found)

    def _client(self) -> Client:
        return Client(self.address, timeout_seconds=20)
