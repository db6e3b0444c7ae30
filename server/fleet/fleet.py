"""The devices of a hub: builds the parts of `server.fleet`, and keeps them going."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from detectors.errors import DeniedError, NotFoundError, PrunewatchError
from prunewatch.v1 import devices_pb2_grpc, fleet_pb2_grpc
from server.config import DetectorConfig, Settings
from server.fleet.book import FleetBook
from server.fleet.desired import Desired
from server.fleet.devices_service import DeviceServicer
from server.fleet.enrolment import Enrolment
from server.fleet.field_points import FieldPoints
from server.fleet.files import Files
from server.fleet.fleet_service import FleetServicer
from server.fleet.intake import Intake, Known, Taken
from server.fleet.issuing import Issuer
from server.fleet.jury import View
from server.fleet.keys import KeyFacts, Keys
from server.fleet.limits import Brake, FieldLimit
from server.fleet.links import KEYS_CHANGED, REMOVED, Links
from server.fleet.presence import Presence
from server.fleet.records import OPEN_STAGES, Device, RolloutRow, Status
from server.fleet.reports import ProbeReport, Report
from server.fleet.rollouts import Rollouts
from server.listener import Register
from server.metrics import Metrics
from server.roster import Roster

LOOK_SECONDS = 1.0
WRITE_SECONDS = 10.0
FOLLOW_SECONDS = 60.0
"""How often releases are looked at that are about to expire."""
T = TypeVar("T")
logger = logging.getLogger("prunewatch.fleet.fleet")


def _nobody(_device_class: str, _report: ProbeReport) -> None:
    """Takes no probes."""


def _no_one(_device: str, _device_class: str, _status: Status) -> None:
    """Hears no statuses."""


class Fleet:
    """Everything about devices.

    Args:
        settings: Of the hub.
        roster: The detectors.
        metrics: What Prometheus sees.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self,
        settings: Settings,
        roster: Roster,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.settings = settings.fleet
        self.slow_reader_seconds = settings.slow_reader_seconds
        self.roster = roster
        self.on_probe: Callable[[str, ProbeReport], None] = _nobody
        """Told of the class and the report whenever a device has measured graphs."""
        self.on_status: Callable[[str, str, Status], None] = _no_one
        """Told of a device, its class and how it is, whenever it says so."""
        self._class_of: dict[str, str] = {}
        store, catalog = roster.store, roster.catalog
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self.book = FleetBook(catalog, clock)
        self.keys = Keys(store.root, clock)
        self.enrolment = Enrolment(catalog, self.keys, self.settings.max_devices, clock)
        self.links = Links()
        self.presence = Presence(clock)
        self.files = Files(store.bundle_folder)
        self.brake = Brake(self.settings.download_rate, monotonic)
        issuer = Issuer(self.keys, roster.config_of, self.settings.release_valid, clock)
        self.rollouts = Rollouts(
            catalog, issuer, roster.config_of, roster.budget_of, self.settings.rollout, clock, self._count_ended
        )
        self.desired = Desired(catalog, issuer, self.rollouts, self.files, self._config_of)
        self._field = FieldPoints(catalog, roster.host)
        self._intake = Intake(catalog, self._known, clock)
        self._limits: dict[str, FieldLimit] = {}
        self._working = asyncio.Lock()
        """One at a time decides what devices are to run."""
        self._dirty: set[str] = set()
        self._followed = -math.inf
        self._points_wait = True
        self._shown_classes: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        catalog.changed = _both(catalog.changed, self._catalog_changed)

    def services(self) -> list[tuple[str, Register]]:
        """DeviceService and FleetService."""
        devices, fleet = DeviceServicer(self), FleetServicer(self)
        return [
            (
                "prunewatch.v1.DeviceService",
                lambda server: devices_pb2_grpc.add_DeviceServiceServicer_to_server(devices, server),
            ),
            (
                "prunewatch.v1.FleetService",
                lambda server: fleet_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server),
            ),
        ]

    # life

    async def start(self) -> None:
        """Finds what is meant for whom; before anything is served."""
        self._loop = asyncio.get_running_loop()
        self._class_of = await asyncio.to_thread(self.book.classes)
        await self.settle([hosted.name for hosted in self.roster.host])

    async def run(self) -> None:
        """Follows changes, roll-outs, expiry and what devices send until cancelled."""
        await asyncio.gather(
            self._again("what devices are to run could not be settled", self._follow, LOOK_SECONDS),
            self._again("statuses of devices could not be written", self._write, WRITE_SECONDS),
            self._again("points of devices could not be kept", self._drain, LOOK_SECONDS),
        )

    async def stop(self) -> None:
        """Writes down what is only in memory; links have ended."""
        await self.write_statuses()
        await self._field.drain()

    @staticmethod
    async def _again(complaint: str, work: Callable[[], object], seconds: float) -> None:
        while True:
            try:
                result = work()
                if asyncio.iscoroutine(result):
                    await result
            except Exception:
                logger.exception("%s; it will be tried again", complaint)
            await asyncio.sleep(seconds)

    # what devices are to run

    def view(self) -> View:
        """Devices at this moment."""
        return View(frozenset(self.links.connected()), self.presence.all())

    async def settle(self, names: Sequence[str] | None = None, *, tell: bool = True) -> None:
        """Brings releases in step with the catalog and tells connected devices; of all detectors without `names`."""
        async with self._working:
            connected = frozenset(self.links.connected())
            for name in [hosted.name for hosted in self.roster.host] if names is None else names:
                try:
                    await asyncio.to_thread(self.desired.follow, name, connected)
                except NotFoundError:
                    continue  # it was deleted meanwhile
                except PrunewatchError:  # a full disk, a key that can not be read: scoring goes on, others are followed
                    logger.exception("what devices are to run of %s can not be said; it will be tried again", name)
            await asyncio.to_thread(self.desired.refresh)
            if tell:
                self._tell()

    async def look(self) -> None:
        """Takes roll-outs to where they belong, by what devices have said."""
        async with self._working:
            changed = await asyncio.to_thread(self.rollouts.look, self.view())
            if changed:
                await asyncio.to_thread(self.desired.refresh)
                self._tell()

    async def steer(self, work: Callable[..., T], *args: object) -> T:
        """Does what an operator, or a measurement, asks of a roll-out, and tells devices."""
        async with self._working:
            result = await asyncio.to_thread(work, *args)
            await asyncio.to_thread(self.desired.refresh)
            self._tell()
            return result

    def _tell(self) -> None:
        for link in self.links:
            link.set_releases(self.desired.meant.of(link.device, link.device_class))

    async def _follow(self) -> None:
        now = self._monotonic()
        if now - self._followed >= FOLLOW_SECONDS:
            self._followed = now
            self._dirty.clear()
            await self.settle()
        elif self._dirty:
            names = sorted(self._dirty)
            self._dirty.clear()
            await self.settle(names)
        await self.look()

    def _catalog_changed(self, name: str) -> None:
        """Is called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dirty.add, name)

    # devices

    async def enrolled(self, name: str, device_class: str) -> None:
        """A device has become known, or has begun anew; the first of a class brings its releases about."""
        self._class_of[name] = device_class
        self.links.end(name, REMOVED)
        self.presence.forget(name)
        self._limits.pop(name, None)
        if device_class not in self.desired.meant.classes:
            await self.settle()

    def class_of(self, device: str) -> str | None:
        """The class of a device; None: it is not known."""
        return self._class_of.get(device)

    def enrolled_in(self, device_class: str) -> int:
        """How many devices a class has."""
        return sum(it == device_class for it in list(self._class_of.values()))

    def hear(self, device: Device, status: Status) -> None:
        """Takes what a device says of itself."""
        self.presence.hear(device.name, status)
        self.on_status(device.name, device.device_class, status)

    async def remove(self, name: str) -> None:
        """Lets a device go; NotFoundError if there is none."""
        await asyncio.to_thread(self.book.delete, name)
        self._class_of.pop(name, None)
        self.links.end(name, REMOVED)
        self.presence.forget(name)
        self._limits.pop(name, None)
        await self._forget_keys()

    async def rotate(self, *, retire_older: bool) -> KeyFacts:
        """Makes a new signing key; devices connect anew and are told of it."""
        made = await asyncio.to_thread(lambda: self.keys.rotate(retire_older=retire_older))
        await self.settle(tell=False)  # devices hear of the key first, with the welcome of a new link
        self.links.end_all(KEYS_CHANGED)
        await self._forget_keys()
        return made

    async def _forget_keys(self) -> None:
        needed = await asyncio.to_thread(self.book.trusted_keys)
        await asyncio.to_thread(self.keys.forget, needed)

    async def write_statuses(self) -> None:
        """Makes durable what devices said last."""
        await asyncio.to_thread(self.book.keep_statuses, self.presence)

    # what devices send

    async def take(self, device: Device, reports: Sequence[Report]) -> int:
        """Keeps reports durably; returns the number of the last that is kept.

        Raises:
            InvalidInputError: their numbers do not ascend.
            DeniedError: the device was removed.
        """
        limit = None
        if (field := self.settings.field).wanted:
            limit = self._limits.setdefault(
                device.name, FieldLimit(field.bytes_per_hour, field.windows_per_hour, self._monotonic)
            )
        try:
            # A device that goes away must not leave a transaction behind of which nobody takes the effects.
            return await asyncio.shield(self._take(device, reports, limit))
        except NotFoundError:
            raise DeniedError("this device was removed.", field="name") from None

    async def _take(self, device: Device, reports: Sequence[Report], limit: FieldLimit | None) -> int:
        taken = await asyncio.to_thread(self._intake.keep, device.name, reports, limit)
        self._announce(device, taken)
        return taken.sequence

    def _announce(self, device: Device, taken: Taken) -> None:
        watchers = self.roster.host.watchers
        for anomaly in taken.anomalies:
            watchers.publish(anomaly, watchers.of(anomaly.detector))
        self._points_wait |= bool(taken.points)
        for (detector, outcome), points in taken.points.items():
            self._metrics.field_points.labels(detector, outcome).inc(points)
        for note in taken.notes:
            if note.state in {"refused", "fell_back"}:
                self._metrics.bundle_rejections.labels(device.device_class, note.state).inc()
                self.presence.amend(device.name, note)
        for probe in taken.probes:
            self.on_probe(device.device_class, probe)

    async def _drain(self) -> None:
        if self._points_wait:
            self._points_wait = False
            self._points_wait = await self._field.drain() or self._points_wait

    async def _write(self) -> None:
        await self.write_statuses()
        await self.show()

    # what is looked up, and shown

    def _known(self, detector: str) -> Known | None:
        if detector not in self.roster.host:
            return None
        hosted = self.roster.host.get(detector)
        return None if hosted.features is None else Known(hosted.config, hosted.features)

    def _config_of(self, detector: str) -> DetectorConfig | None:
        return self.roster.config_of(detector) if detector in self.roster.host else None

    def _count_ended(self, device_class: str, outcome: str) -> None:
        self._metrics.rollouts_ended.labels(device_class, outcome).inc()

    async def show(self) -> None:
        """Refreshes the gauges."""
        counts = await asyncio.to_thread(self.book.counts)
        going_on: list[RolloutRow] = await asyncio.to_thread(self.book.rollouts_going_on)
        for device_class in {*counts, *self._shown_classes, *(row.device_class for row in going_on)}:
            connected = len(self.links.connected(device_class))
            self._metrics.devices.labels(device_class, "connected").set(connected)
            self._metrics.devices.labels(device_class, "away").set(max(counts.get(device_class, 0) - connected, 0))
            for stage in OPEN_STAGES:
                open_ones = sum((row.device_class, row.stage) == (device_class, stage) for row in going_on)
                self._metrics.rollouts.labels(device_class, stage).set(open_ones)
            self._shown_classes.add(device_class)


def _both(first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
    def tell(name: str) -> None:
        first(name)
        second(name)

    return tell
