"""A device with one bundle in memory: no store, no hub; and `run`, which begins whatever a command line asks for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from detectors.archive import load_bundle
from detectors.bundle import Bundle
from detectors.served import Served
from server.allocators import return_memory, settle_allocators
from server.bundle_readings import BundleFacts, Shown, show_bundles
from server.config import Budget, DetectorConfig, Settings, load_settings
from server.edge.agent import Agent, AgentOptions
from server.host import Host
from server.host_readings import HostReadings, times_of
from server.inference_service import inference_service
from server.listener import Listener, until_asked_to_stop
from server.logs import set_up
from server.metrics import Metrics
from server.page.edge import REMEMBERED, EdgeView
from server.scoring import scoring_service

logger = logging.getLogger("prunewatch.edge.app")


class Edge:
    """A process on a device that scores with one bundle.

    Args:
        bundle: What it scores with.
        settings: Addresses and limits.
        config: How it alarms and judges stamps.
        registry: Where its metrics go.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        config: DetectorConfig | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._bundle = bundle
        self._settings = settings
        self._config = config or DetectorConfig()
        self._class = bundle.manifest.device_class
        self._budget = budget = settings.device_classes.get(self._class, Budget())
        self.metrics = Metrics(registry or CollectorRegistry(), times_of(budget).values(), role="edge")
        self.host = Host(
            self.metrics,
            ring_points=settings.ring_points,
            budget=budget,
            remember=REMEMBERED if settings.page else 0,
        )
        manifest = bundle.manifest
        shown = Shown(manifest.detector, self._class, manifest.version, bundle.hash, BundleFacts.of(bundle))
        self._shown = {manifest.detector: shown}
        view = EdgeView(self.host, lambda: self._shown, settings, is_ready=lambda: self.listener.ready)
        self.listener = Listener(settings, self.metrics, self.host, view)

    async def start(self) -> None:
        """Loads the bundle, then listens."""
        manifest = self._bundle.manifest
        hosted = self.host.add(manifest.detector, self._config)
        await hosted.serve(Served.load(self._bundle), manifest.features)
        show_bundles(self.metrics, self._shown.values())
        self.metrics.budget.replace(
            {(manifest.detector, self._class, quantile): it for quantile, it in times_of(self._budget).items()}
        )
        self.metrics.read_with(HostReadings(self.metrics, self.host, self._class))
        limit = self._settings.max_message_bytes
        await self.listener.start(
            [
                scoring_service(self.host, self.metrics, self.listener.streams),
                inference_service(self.host, self.metrics, self.listener, limit),
            ]
        )
        logger.info("serving %s version %d on %s", manifest.detector, manifest.version, self._settings.listen)

    async def stop(self) -> None:
        """Drains."""
        await self.listener.announce_end()
        await self.listener.stop()


def run(
    what: Path | AgentOptions,
    listen: str | None = None,
    admin: str | None = None,
    *,
    config: DetectorConfig | None = None,
) -> None:
    """Serves one bundle, or what a store holds and a hub sends, until SIGTERM or SIGINT.

    Args:
        what: The bundle, or how an agent is to run.
        listen: gRPC address.
        admin: HTTP address.
        config: How the one bundle alarms; a release says that itself.

    Raises:
        InvalidInputError: an address can not be used.
        CorruptBundleError: the bundle is not whole.
        PreconditionError: the store is in use, or that of another device; or the hub refuses this one.
    """
    settings = load_settings(listen=listen, admin=admin)
    set_up(settings.log.format, settings.log.level)
    begin: Callable[[], Agent | Edge]
    if isinstance(what, AgentOptions):
        begin = partial(Agent, settings, what)
    else:
        begin = partial(Edge, load_bundle(what), settings, config=config)

    async def live() -> None:
        device = begin()
        await until_asked_to_stop(device.start, device.stop)

    settle_allocators(frugal=True)
    return_memory()  # of the imports
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live())
