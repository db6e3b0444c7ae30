"""What there is to see of a device: its detectors and what scores them. No catalog, so no cycles and no frontier."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from detectors.errors import NotFoundError
from server.bundle_readings import Shown
from server.config import Settings
from server.host import Host
from server.page.live import Live, anomaly_shown, process_shown
from server.page.site import Make

ON_HUB = "A device has its bundles and no history. Look at the page of its hub."
REMEMBERED = 50
"""Anomalies of a detector that the page shows, the newest; nothing else keeps them on a device."""


class EdgeView:
    """Detectors that a device scores.

    Args:
        host: What scores.
        shown: What serves, by detector.
        settings: Addresses.
        is_ready: Whether the device serves.
        device: More of the device, as JSON; None: there is only what scores.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        host: Host,
        shown: Callable[[], Mapping[str, Shown]],
        settings: Settings,
        *,
        is_ready: Callable[[], bool],
        device: Callable[[], dict[str, Any]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._shown = shown
        self._settings = settings
        self._is_ready = is_ready
        self._device = device
        self._clock = clock
        self._started = clock()

    async def overview(self) -> Make:
        """The detectors, and what was found last."""
        lives = [(Live.of(hosted), self._host.remembered(hosted.name)) for hosted in self._host]
        shown, process, device = dict(self._shown()), self._process(), self._device() if self._device else None

        def make() -> dict[str, Any]:
            found = [(it, live.time) for live, kept in lives for it in kept]
            found.sort(key=lambda it: -it[0].found)
            return {
                "process": process,
                "device": device,
                "device_classes": [],
                "detectors": [self._card(live, shown.get(live.name)) for live, _ in lives],
                "left_out": 0,
                "operations": [],
                "decisions": [],
                "anomalies": [anomaly_shown(it, stamps) for it, stamps in found[:10]],
            }

        return make

    async def detector(self, name: str) -> Make:
        """One with everything that is known of its bundle."""
        hosted = self._host.get(name)
        live, found, process = Live.of(hosted), self._host.remembered(name), self._process()
        shown, config = self._shown().get(name), hosted.config

        def make() -> dict[str, Any]:
            return {
                "process": process,
                **self._card(live, shown),
                "feature_names": live.named_features(),
                "false_alarm_rate": config.false_alarm_rate,
                "device_classes": [],
                **_bundle_shown(shown),
                "versions_left_out": 0,
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

    def _card(self, live: Live, shown: Shown | None) -> dict[str, Any]:
        network = shown.facts.manifest.network if shown is not None else None
        return {
            **live.shown(self._clock()),
            "network": network.kind if network is not None else live.network,
            "state": "failed" if live.problem else "ready",
            "problem": live.problem,
            "frozen": False,
            "from_configuration": False,
            "served": [] if shown is None else [_served(shown)],
        }


def _served(shown: Shown) -> dict[str, Any]:
    network = shown.facts.manifest.network
    return {
        "device_class": shown.device_class,
        "version": shown.version,
        "pinned": False,
        "previous_version": None,
        "created_seconds": None,
        "on_probation": False,
        "bundle": {
            "hash": shown.bundle_hash[:12],
            "units": sum(network.units.values()),
            "parameters": network.parameters,
            "bytes": shown.facts.bytes["step"],
            "p50_seconds": None,
            "p99_seconds": None,
        },
        "parent": None,
        "budget": None,
    }


def _bundle_shown(shown: Shown | None) -> dict[str, Any]:
    """`served`, `versions` and `bundles` as a hub has them."""
    if shown is None:
        return {"served": [], "versions": [], "bundles": []}
    network, lineage, bundle = shown.facts.manifest.network, shown.facts.manifest.lineage, shown.bundle_hash[:12]
    version, device_class = shown.version, shown.device_class
    parent = lineage.parent[:12] if lineage.parent else None
    return {
        "served": [
            {
                "device_class": device_class,
                "version": version,
                "bundle": bundle,
                "pinned": False,
                "previous_version": None,
            }
        ],
        "versions": [
            {
                "version": version,
                "cause": lineage.cause,
                "created_seconds": None,
                "parent": parent or bundle,
                "bundles": {device_class: bundle},
            }
        ],
        "bundles": [
            {
                "hash": bundle,
                "version": version,
                "device_class": device_class,
                "units": network.units,
                "parameters": network.parameters,
                "bytes": shown.facts.bytes["step"],
                "error": None,
                "derived_from": parent,
                "measurements": [],
            }
        ],
    }
