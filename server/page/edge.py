"""What there is to see of a device: one detector and what scores it. No catalog, so no cycles, frontier or lineage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from detectors.bundle import Manifest
from detectors.errors import NotFoundError
from server.config import Settings
from server.host import Host
from server.hosted import HostedDetector
from server.page.live import Live, anomaly_shown, process_shown
from server.page.site import Make

ON_HUB = "A device has one bundle and no history. Look at the page of its hub."


class EdgeView:
    """A detector that a device scores.

    Args:
        host: What scores.
        manifest: Of the bundle.
        size: Bytes of its step graph.
        bundle_hash: Its name.
        settings: Addresses.
        is_ready: Whether the device serves.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        host: Host,
        manifest: Manifest,
        size: int,
        bundle_hash: str,
        settings: Settings,
        *,
        is_ready: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._manifest = manifest
        self._size = size
        self._hash = bundle_hash[:12]
        self._settings = settings
        self._is_ready = is_ready
        self._clock = clock
        self._started = clock()

    async def overview(self) -> Make:
        """The detector, and what was found last."""
        lives = [(Live.of(hosted), self._host.remembered(hosted.name)) for hosted in self._host]
        process = self._process()

        def make() -> dict[str, Any]:
            return {
                "process": process,
                "device_classes": [],
                "detectors": [self._card(live) for live, _ in lives],
                "left_out": 0,
                "operations": [],
                "decisions": [],
                "anomalies": [anomaly_shown(it, live.time) for live, found in lives for it in found[:10]],
            }

        return make

    async def detector(self, name: str) -> Make:
        """The same with everything that is known of its bundle."""
        hosted: HostedDetector = self._host.get(name)
        live, found, manifest, process = Live.of(hosted), self._host.remembered(name), self._manifest, self._process()
        lineage = manifest.lineage

        def make() -> dict[str, Any]:
            return {
                "process": process,
                **self._card(live),
                "feature_names": live.named_features(),
                "false_alarm_rate": hosted.config.false_alarm_rate,
                "device_classes": [],
                "served": [
                    {
                        "device_class": manifest.device_class,
                        "version": manifest.version,
                        "bundle": self._hash,
                        "pinned": False,
                        "previous_version": None,
                    }
                ],
                "versions": [
                    {
                        "version": manifest.version,
                        "cause": lineage.cause,
                        "created_seconds": None,
                        "parent": lineage.parent[:12] if lineage.parent else self._hash,
                        "bundles": {manifest.device_class: self._hash},
                    }
                ],
                "versions_left_out": 0,
                "bundles": [
                    {
                        "hash": self._hash,
                        "version": manifest.version,
                        "device_class": manifest.device_class,
                        "units": manifest.network.units,
                        "parameters": manifest.network.parameters,
                        "bytes": self._size,
                        "error": None,
                        "derived_from": lineage.parent[:12] if lineage.parent else None,
                        "measurements": [],
                    }
                ],
                "anomalies": [anomaly_shown(it, live.time) for it in found],
                **{key: [] for key in ("cycles", "adoptions", "operations", "labels", "windows")},
            }

        return make

    async def frontier(self, name: str, _device_class: str) -> Make:
        """None is here."""
        self._host.get(name)
        raise NotFoundError("there is no frontier on a device.", hint=ON_HUB)

    async def report(self, name: str, _device_class: str, _cycle: int | None) -> Make:
        """None is here."""
        self._host.get(name)
        raise NotFoundError("there are no cycles on a device.", hint=ON_HUB)

    def _process(self) -> dict[str, Any]:
        settings = self._settings
        return process_shown("edge", settings.listen, self._started, ready=self._is_ready(), insecure=settings.insecure)

    def _card(self, live: Live) -> dict[str, Any]:
        manifest = self._manifest
        network = manifest.network
        return {
            **live.shown(self._clock()),
            "network": network.kind,
            "state": "failed" if live.problem else "ready",
            "problem": live.problem,
            "frozen": False,
            "from_configuration": False,
            "served": [
                {
                    "device_class": manifest.device_class,
                    "version": manifest.version,
                    "pinned": False,
                    "previous_version": None,
                    "created_seconds": None,
                    "on_probation": False,
                    "bundle": {
                        "hash": self._hash,
                        "units": sum(network.units.values()),
                        "parameters": network.parameters,
                        "bytes": self._size,
                        "p50_seconds": None,
                        "p99_seconds": None,
                    },
                    "parent": None,
                    "budget": None,
                }
            ],
        }
