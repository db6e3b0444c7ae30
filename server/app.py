"""The hub: the only place that builds its parts, and their life from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from google.longrunning import operations_pb2_grpc
from prometheus_client import CollectorRegistry

from prunewatch.v1 import detectors_pb2_grpc, feedback_pb2_grpc, pruning_pb2_grpc
from server.allocators import settle_allocators
from server.catalog_readings import CatalogReadings
from server.config import HUB, Settings
from server.detectors_service import DetectorServicer
from server.feedback_service import FeedbackServicer
from server.fleet.fleet import Fleet
from server.fleet.measuring import Measuring
from server.fleet.records import Status
from server.fleet_readings import FleetReadings
from server.host import Host
from server.host_readings import HostReadings, times_of
from server.inference_service import inference_service
from server.listener import Listener, Register, until_asked_to_stop
from server.logs import set_up
from server.loop_readings import LoopReadings
from server.maintenance import Maintenance
from server.metrics import Metrics
from server.operations import OperationsServicer
from server.page.fleet import FleetGlance
from server.page.hub import HubView
from server.probation import Probations
from server.progress import Operations
from server.pruning_service import PruningServicer
from server.roster import Roster
from server.schedule import Scheduler
from server.scoring import scoring_service
from server.store import Store
from server.training import COMMAND

TIDY_SECONDS = 3600.0
logger = logging.getLogger("prunewatch.app")


class Hub:
    """One hub.

    Args:
        settings: Everything that can be set.
        registry: Where its metrics go; fresh for each hub of a process.
        trainer: Starts the trainer.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass.

    Raises:
        StoreInUseError: another process holds the store.
        NewerStoreError: a newer prunewatch wrote it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: CollectorRegistry | None = None,
        trainer: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(registry or CollectorRegistry(), times_of(settings.device_classes[HUB]).values())
        self.store = Store.open(settings.store)
        self.store.catalog.clock = clock
        self.host = Host(
            self.metrics,
            ring_points=settings.ring_points,
            clock=lambda: int(clock() * 1e9),
            book=self.store.catalog,
            budget=settings.device_classes[HUB],
        )
        self.roster = Roster(self.store, self.host, settings, self.metrics)
        self.operations = Operations(self.store.catalog)
        self.maintenance = Maintenance(
            self.roster,
            self.operations,
            self.metrics,
            command=trainer,
            trainers=settings.trainers,
            trainer_memory=settings.trainer_memory,
            clock=clock,
            monotonic=monotonic,
        )
        self.scheduler = Scheduler(self.roster, self.maintenance, clock, monotonic)
        self.probations = Probations(self.roster, self.metrics, self.maintenance.published, clock)
        self.fleet = Fleet(settings, self.roster, self.metrics, clock=clock, monotonic=monotonic)
        self.measuring = self._measuring(clock)
        view = HubView(
            self.roster,
            self.operations,
            is_ready=lambda: self.listener.ready,
            devices=FleetGlance(self.fleet, self.measuring),
            clock=clock,
        )
        self.listener = Listener(settings, self.metrics, self.host, view)
        self._loops: list[asyncio.Task[None]] = []
        for reading in (
            HostReadings(self.metrics, self.host, HUB, clock),
            CatalogReadings(self.metrics, self.roster, monotonic),
            LoopReadings(self.metrics, self.host, self.maintenance),
            FleetReadings(self.metrics, self.roster, self.measuring),
        ):
            self.metrics.read_with(reading)
        self.metrics.flush_interval.replace({(): settings.history_flush_seconds})

    async def start(self) -> None:
        """Hosts what the store has, then listens."""
        await self.roster.load()
        await self.fleet.start()
        await self.listener.start(self._services())
        loops = (
            *(self.maintenance.run(), self.scheduler.run(), self.probations.run()),
            *(self._flush(), self._shelve(), self._tidy(), self.fleet.run(), self.measuring.run()),
        )
        self._loops = [asyncio.create_task(loop) for loop in loops]
        logger.info(
            "serving %d detectors on %s, %s",
            len(self.host),
            self.settings.listen,
            f"the page on {self.listener.page_address}" if self.settings.page else "no page",
        )

    async def stop(self) -> None:
        """Drains: NOT_SERVING first, the trainer ends, calls end, what was seen becomes durable, the store is free."""
        await self.listener.announce_end()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self.fleet.links.close()
        await self.listener.stop()
        await self.roster.learn_features()
        await self.fleet.stop()
        await self.host.flush()
        await self.host.shelve()
        await self.scheduler.save()
        await asyncio.to_thread(self.metrics.stop_reading)
        await asyncio.to_thread(self.store.close)

    def _measuring(self, clock: Callable[[], float]) -> Measuring:
        """What devices measure, wired to the links that they keep open and to the triggers of cycles."""
        fleet = self.fleet
        measuring = Measuring(
            self.roster,
            self.maintenance,
            fleet.links,
            fleet.files,
            lambda probe: fleet.keys.current.sign("probe", probe),
            enrolled=fleet.enrolled_in,
            class_of=fleet.class_of,
            metrics=self.metrics,
            settings=self.settings.measuring,
            clock=clock,
        )

        def hear(device: str, device_class: str, status: Status) -> None:
            for it in status.served.values():
                steps = it.step_p50, it.step_p99
                measuring.in_service.hear(device, device_class, it.detector, it.bundle, *steps)

        fleet.on_probe, fleet.on_status = measuring.on_probe, hear
        self.scheduler.sentry.missed_on_devices = measuring.in_service.missed
        return measuring

    def _services(self) -> list[tuple[str, Register]]:
        detectors = DetectorServicer(self.roster, self.maintenance)
        pruning = PruningServicer(self.roster, self.maintenance, self.operations)
        operations = OperationsServicer(self.operations, self.maintenance)
        feedback = FeedbackServicer(self.roster)
        limit = self.settings.max_message_bytes
        return [
            *self.fleet.services(),
            scoring_service(self.host, self.metrics, self.listener.streams),
            inference_service(self.host, self.metrics, self.listener, limit),
            (
                "prunewatch.v1.DetectorService",
                lambda server: detectors_pb2_grpc.add_DetectorServiceServicer_to_server(detectors, server),
            ),
            (
                "prunewatch.v1.PruningService",
                lambda server: pruning_pb2_grpc.add_PruningServiceServicer_to_server(pruning, server),
            ),
            (
                "prunewatch.v1.FeedbackService",
                lambda server: feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, server),
            ),
            (
                "google.longrunning.Operations",
                lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(operations, server),
            ),
        ]

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(self.settings.history_flush_seconds)
            try:
                await self.roster.learn_features()
                await asyncio.shield(self.host.flush())  # draining waits for it: never two writers of a history
            except Exception:
                self.metrics.store_failures.labels("history").inc()
                logger.exception("histories could not be written; it will be tried again")

    async def _shelve(self) -> None:
        while True:
            await asyncio.sleep(self.settings.series_checkpoint_seconds)
            try:
                await asyncio.shield(self.host.shelve())
            except Exception:
                self.metrics.store_failures.labels("series").inc()
                logger.exception("the state of series could not be written; it will be tried again")

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            busy = [hosted.name for hosted in self.host if self.maintenance.is_busy(hosted.name)]
            tidying = asyncio.create_task(asyncio.to_thread(self.store.tidy, busy))
            try:
                await asyncio.shield(tidying)
            except Exception:
                self.metrics.store_failures.labels("book").inc()
                logger.exception("the store could not be tidied; it will be tried again")
            finally:
                await asyncio.wait({tidying})  # never while the store is being closed


def run(settings: Settings, trainer: Sequence[str] = COMMAND) -> None:
    """Runs a hub until SIGTERM or SIGINT; `trainer` is the command that starts its trainer."""
    set_up(settings.log.format, settings.log.level)

    async def live() -> None:
        hub = Hub(settings, trainer=trainer)
        await until_asked_to_stop(hub.start, hub.stop)

    settle_allocators()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live())
