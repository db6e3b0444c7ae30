"""The agent of a device: the only place that builds its parts, and their life from start to drain.

It scores with what its slots hold, from the first second and whether or not the hub is there. The hub is heard when it
is there; what is to be told to it waits in the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from detectors.archive import unpack_bundle
from detectors.errors import InvalidInputError, PrunewatchError
from prunewatch.credentials import Credentials
from server.background import in_background
from server.bundle_readings import show_bundles
from server.config import Settings, is_loopback
from server.edge import conditions
from server.edge.converging import Convergence
from server.edge.delivery import Delivery, LinkBrokenError
from server.edge.deployment import Surroundings, Window
from server.edge.device import Device, FieldLimits, read_token
from server.edge.field import Limits
from server.edge.link import Ears, Link, Tempo
from server.edge.messages import kind_of, packed
from server.edge.outbox import MAX_BYTES, Outbox
from server.edge.prober import Prober
from server.edge.probing import Probing
from server.edge.reports import DeviceStatus, FieldPoints, Measures, Report
from server.host import Host
from server.host_readings import HostReadings
from server.inference_service import inference_service
from server.listener import Listener
from server.metrics import Metrics
from server.metrics.device import DeviceMetrics
from server.page.device import device_shown
from server.page.edge import REMEMBERED, EdgeView
from server.scoring import scoring_service

DOWNLOADS, PROBES, UNPACKED, OUTBOX = "downloads", "probes", "unpacked", "outbox.db"
SHELVE_SECONDS = 300.0
"""How often state that has moved on is written where no setting says otherwise: flash cards wear out."""
WRITE_LOOKS = 10
"""Reports are written together every so many looks; what became of releases, and measurements, at the next one."""
BUSY_SECONDS = 0.02
"""A step is over by then, and where others follow they begin by then."""
logger = logging.getLogger("prunewatch.edge.agent")


@dataclass(frozen=True)
class AgentOptions:
    """How an agent is to run.

    Attributes:
        store: The folder of the device; the only one that is written to.
        hub: `HOST:PORT`; None: there is none.
        credentials: Of the connection to it; None: plain text.
        insecure_hub: Whether the connection may be plain text on a network.
        device: What it is called.
        device_class: Its class.
        token_file: With which it enrols.
        bundle: An exported file to begin with.
        trust: A file with the hub's keys.
        field: Whether points may be sent to the hub.
        outbox_bytes: That reports may take while the hub is away.
    """

    store: Path
    hub: str | None = None
    device: str | None = None
    device_class: str | None = None
    token_file: Path | None = None
    bundle: Path | None = None
    trust: Path | None = None
    field: bool = True
    outbox_bytes: int = MAX_BYTES
    credentials: Credentials | None = None
    insecure_hub: bool = False


class Agent:
    """One agent.

    Args:
        settings: Addresses and limits.
        options: How it is to run.
        registry: Where its metrics go; fresh for each agent of a process.
        prober: Measures graphs; None: as this device does.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
        tempo: How quickly its link finds out.
        window: In which bundles prove themselves.
        rng: Spreads the tries of many devices.

    Raises:
        StoreInUseError: another process holds the store.
        PreconditionError: the store is that of another device.
        InvalidInputError: an option can not be.
    """

    def __init__(
        self,
        settings: Settings,
        options: AgentOptions,
        *,
        registry: CollectorRegistry | None = None,
        prober: Measures | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        tempo: Tempo | None = None,
        window: Window | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._options = options
        self._clock = clock
        _require_link(options)
        self.metrics = Metrics(registry or CollectorRegistry(), role="edge")
        self.device_metrics = DeviceMetrics(self.metrics.registry)
        self.device = Device.open(options.store, name=options.device, device_class=options.device_class)
        token = self._token(options.token_file)
        self.host = Host(
            self.metrics,
            ring_points=settings.ring_points,
            clock=lambda: int(clock() * 1e9),
            remember=REMEMBERED if settings.page else 0,
        )
        self.listener = Listener(settings, self.metrics, self.host, self._view())
        dropped = self.device_metrics.outbox_dropped
        self.outbox = Outbox(
            options.store / OUTBOX,
            max_bytes=options.outbox_bytes,
            on_drop=lambda kind: dropped.labels(kind.name.lower()).inc(),
        )
        self._limits = Limits(monotonic)
        self._began = time.monotonic()
        tempo = tempo or Tempo()
        self._look_seconds = tempo.look
        self._is_urgent = False
        self._loops: list[asyncio.Task[None]] = []
        around = Surroundings(
            root=options.store,
            host=self.host,
            device=self.device_metrics,
            limits=self._limits,
            send=self._send,
            clock=clock,
            monotonic=monotonic,
            window=window or Window(),
            sends_points=options.field,
        )
        self.link: Link | None = None
        self._probing: Probing | None = None
        delivery = None
        if options.hub is not None:
            self.link = link = Link(
                options.hub,
                self.device,
                self.outbox,
                token=token,
                clock=clock,
                rng=rng,
                tempo=tempo,
                credentials=options.credentials,
            )
            delivery, graphs = (
                Delivery(
                    options.store / name,
                    link.download,
                    link.wait_open,
                    patience=link.patience,
                    stall_seconds=tempo.stall,
                )
                for name in (DOWNLOADS, PROBES)
            )
            self._probing = Probing(self.device, graphs, prober or Prober(self.busy), self._send, clock)
        say_again = self.link.begin_anew if self.link is not None else lambda: None
        self.convergence = Convergence(
            self.device, around, delivery, settings.max_detectors, tempo.again, say_again=say_again
        )
        if self.link is not None and self._probing is not None:
            self.link.ears = Ears(self.convergence.want, self._probing.want, self._hear_limits, self.status)

    def _token(self, path: Path | None) -> tuple[str, str] | None:
        """What it enrols with. Once it is enrolled nobody needs the file any more, unless the hub has let it go."""
        if path is None:
            return None
        try:
            return read_token(path)
        except PrunewatchError:
            if self.device.is_enrolled:
                return None
            self.device.close()
            raise

    async def start(self) -> None:
        """Serves what the slots hold and listens; then looks for the hub.

        Raises:
            PrunewatchError: a file that was named can not be used, or the hub refuses the device.
        """
        options = self._options
        if options.trust is not None:
            await asyncio.to_thread(self.device.trust_file, options.trust)
        self._limits.set(self.device.identity.field)
        self._show_device()
        await self.convergence.start()
        if options.bundle is not None:
            await self._take_file(options.bundle)
        limit = self._settings.max_message_bytes
        await self.listener.start(
            [
                scoring_service(self.host, self.metrics, self.listener.streams),
                inference_service(self.host, self.metrics, self.listener, limit),
            ]
        )
        identity = self.device.identity
        logger.info(
            "device %s of class %s scores %d detectors on %s",
            identity.name or "without a name",
            identity.device_class,
            len(self.host),
            self._settings.listen,
        )
        if self.link is not None:
            try:
                await self.link.enrol()
            except LinkBrokenError as error:
                logger.warning("the hub can not be reached yet: %s", error)
        loops = [self.convergence.look(), self._flush(), self._shelve()]
        if self.link is not None and self._probing is not None:
            loops += [self.link.run(), self.convergence.run(), self._probing.run()]
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Drains: NOT_SERVING first, calls end, what was seen becomes durable, the store is free."""
        await self.listener.announce_end()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.listener.stop()
        await self.host.flush()
        await self.host.shelve()
        await self.convergence.close()
        for hosted in self.host:
            await hosted.settle()
        await asyncio.to_thread(self.outbox.close)
        self.device.close()

    def busy(self) -> bool:
        """Whether points are being scored, or were a moment ago; any thread may ask."""
        now = time.perf_counter()
        return any(now - hosted.last_step < BUSY_SECONDS for hosted in self.host)

    def status(self) -> DeviceStatus:
        """How the device is; step times are those since it was asked last."""
        served = []
        for deployment in self.convergence.deployments.values():
            hosted = deployment.hosted
            count = hosted.metrics.anomalies.value if hosted is not None else 0
            if hosted is not None or not deployment.slots.state.stopped:
                served.append(deployment.standing(int(count)))
        return DeviceStatus(
            served=served,
            temperature_celsius=conditions.temperature(),
            uptime_seconds=time.monotonic() - self._began,
            dropped_reports=self.outbox.dropped,
            waiting_bytes=self.outbox.waiting_bytes,
            resident_bytes=conditions.resident(),
        )

    async def flush(self) -> None:
        """Looks at the points that came for what is to be sent, and makes reports durable where that is due."""
        await self.host.flush()
        if self._is_urgent:
            await self.write_reports()

    async def write_reports(self) -> None:
        """Makes all reports durable; on a full disk they wait in memory, as far as there is room."""
        self._is_urgent = False
        try:
            await in_background(self.outbox.flush)
        except OSError:
            logger.exception("reports could not be written; it will be tried again")

    def _send(self, report: Report) -> None:
        self.outbox.add(kind_of(report), packed(report))
        self._is_urgent = self._is_urgent or not isinstance(report, FieldPoints)

    def _hear_limits(self, limits: FieldLimits) -> None:
        allowed = limits if self._options.field else FieldLimits()
        self._limits.set(allowed)
        self.device.limit_field(allowed)

    async def _take_file(self, path: Path) -> None:
        """Adopts what `prunewatch export` wrote; a store that serves already goes on where the file is of no use."""
        folder = self._options.store / UNPACKED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            await asyncio.to_thread(unpack_bundle, path, folder)
            await self.convergence.take_files(folder)
        except PrunewatchError as error:
            if not len(self.host):
                raise
            logger.warning("%s is not taken: %s", path, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _view(self) -> EdgeView:
        """What the page on the admin address shows."""
        return EdgeView(
            self.host,
            lambda: {it.name: it.shown for it in self.convergence.deployments.values() if it.shown is not None},
            self._settings,
            is_ready=lambda: self.listener.ready,
            device=lambda: device_shown(
                self.device, self.convergence.deployments, self.outbox, self.link, self._options.hub
            ),
            clock=self._clock,
        )

    def _show_device(self) -> None:
        """Has what a scrape shows read when it comes."""
        self.metrics.read_with(HostReadings(self.metrics, self.host, self.device.identity.device_class, self._clock))
        self.metrics.read_with(self._read_bundles)
        self.device_metrics.read_with(self._read_device)

    def _read_bundles(self) -> None:
        show_bundles(self.metrics, [it.shown for it in self.convergence.deployments.values() if it.shown is not None])

    def _read_device(self) -> None:
        m, link = self.device_metrics, self.link
        m.outbox_bytes.replace({(): self.outbox.waiting_bytes})
        m.temperature.replace({(): conditions.temperature()})
        if link is not None:
            m.connected.replace({(): link.is_open})
            m.last_contact.replace({(): self._clock() if link.is_open else link.last_contact})

    async def _flush(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(self._look_seconds)
            looks += 1
            try:
                await asyncio.shield(self.flush())
                if looks % WRITE_LOOKS == 0:
                    await asyncio.shield(self.write_reports())
            except Exception:
                logger.exception("points could not be looked at; it will be tried again")

    async def _shelve(self) -> None:
        settings = self._settings
        is_set = "series_checkpoint_seconds" in settings.model_fields_set
        while True:
            await asyncio.sleep(settings.series_checkpoint_seconds if is_set else SHELVE_SECONDS)
            try:
                await asyncio.shield(self.host.shelve())
            except Exception:
                logger.exception("the state of series could not be written; it will be tried again")


def _require_link(options: AgentOptions) -> None:
    """Refuses a hub that is none, files that are not there, and plain text that others could read.

    Raises:
        InvalidInputError: as said.
    """
    if options.hub is None:
        return
    try:
        is_here = is_loopback(options.hub)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--hub") from error
    shown = options.credentials or Credentials()
    for name, path in (("--ca", shown.ca), ("--certificate", shown.certificate), ("--key", shown.key)):
        if path is not None and not path.is_file():
            raise InvalidInputError("there is no such file.", field=f"{name} {path}")
    if shown.ca is None and not is_here and not options.insecure_hub:
        raise InvalidInputError(
            "the token and points would go to another machine in plain text.",
            field="--hub",
            hint="Name the authority of the hub's certificate (--ca ca.crt), or say --insecure-hub on a network that "
            "you trust.",
        )
