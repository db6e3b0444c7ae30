"""A device: one bundle, scored with the same path as on the hub. No training framework, no store, no catalog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path

from prometheus_client import CollectorRegistry

from detectors.bundle import MANIFEST, Bundle, read_bundle
from detectors.served import Served
from server.allocators import settle_allocators
from server.archive import unpack_bundle
from server.config import DetectorConfig, Settings, load_settings
from server.host import Host
from server.inference_service import inference_service
from server.listener import Listener, until_asked_to_stop
from server.metrics import Metrics
from server.scoring import scoring_service

logger = logging.getLogger(__name__)


class Edge:
    """A process on a device.

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
        self.metrics = Metrics(registry or CollectorRegistry())
        self.host = Host(self.metrics, ring_points=settings.ring_points)
        self.listener = Listener(settings, self.metrics, self.host)

    async def start(self) -> None:
        """Loads the bundle, then listens."""
        manifest = self._bundle.manifest
        hosted = self.host.add(manifest.detector, self._config)
        await hosted.serve(Served.load(self._bundle), manifest.features)
        labels = manifest.detector, manifest.device_class
        self.metrics.parameters.labels(*labels).set(manifest.network.parameters)
        self.metrics.units.labels(*labels).set(sum(manifest.network.units.values()))
        self.metrics.bundle_bytes.labels(*labels, "step").set(self._bundle.size)
        self.metrics.detector_info.labels(
            *labels, str(manifest.version), self._bundle.hash[:12], manifest.network.kind
        ).set(1)
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


def load_bundle(path: Path) -> Bundle:
    """Reads and verifies a bundle from its folder or from the file that `prunewatch export` wrote.

    Raises:
        NotFoundError: there is no such file.
        CorruptBundleError: it is not a whole bundle.
    """
    if path.is_dir() or path.name == MANIFEST:
        return read_bundle(path if path.is_dir() else path.parent)
    with tempfile.TemporaryDirectory() as folder:
        unpack_bundle(path, Path(folder))
        return read_bundle(Path(folder))


def run(
    bundle: Path, listen: str | None = None, admin: str | None = None, *, config: DetectorConfig | None = None
) -> None:
    """Serves one bundle until SIGTERM or SIGINT.

    Raises:
        InvalidInputError: an address can not be used.
        CorruptBundleError: the bundle is not whole.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(listen=listen, admin=admin)
    loaded = load_bundle(bundle)

    async def live() -> None:
        edge = Edge(loaded, settings, config=config)
        await until_asked_to_stop(edge.start, edge.stop)

    settle_allocators()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live())
