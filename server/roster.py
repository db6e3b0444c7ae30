"""Which detectors there are: keeps the catalog and the host in step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectors.errors import AlreadyExistsError, ExhaustedError, PreconditionError, PrunewatchError
from detectors.served import Served
from server.catalog import Catalog
from server.config import HUB, Budget, DetectorConfig, Settings, load_detector_config
from server.etags import etag_of
from server.fleet.classes import made_classes
from server.fleet.field_points import field_series
from server.host import Host
from server.hosted import HostedDetector
from server.loop_settings import Schedule, Triggers
from server.metrics import Metrics
from server.records import DetectorRow, DetectorState, Serving
from server.resume import newest_points
from server.series_file import SeriesFile
from server.shadow import Verdict
from server.spans import Span, Spans
from server.store import Store

logger = logging.getLogger("prunewatch.roster")


@dataclass(frozen=True)
class Entry:
    """A detector with everything that its description needs."""

    row: DetectorRow
    config: DetectorConfig
    serving: tuple[Serving, ...]
    points: int
    scores: bool
    """Whether a version of it is loaded."""
    problem: str
    from_configuration: bool
    etag: str


def shown_state(state: DetectorState, scores: bool, problem: str) -> DetectorState:
    """Where a detector stands: one that is `ready` in the catalog may not be loaded yet, or not be able to score.

    Args:
        state: In the catalog.
        scores: Whether a version of it is loaded.
        problem: Why it can not score; empty otherwise.
    """
    if state != "ready":
        return state
    if problem:
        return "failed"
    return "ready" if scores else "fitting"


class Roster:
    """The detectors of this hub.

    Args:
        store: What exists.
        host: What scores.
        settings: Detectors in here win over the API.
        metrics: Counts what is rolled back.
    """

    def __init__(self, store: Store, host: Host, settings: Settings, metrics: Metrics) -> None:
        self.store = store
        self.host = host
        self.settings = settings
        self.device_classes: dict[str, Budget] = dict(settings.device_classes)
        """What each class can afford: those of the settings, and after `load` those that were made over the API."""
        self._metrics = metrics
        self._configs: dict[str, DetectorConfig] = {}
        self._following_windows = asyncio.Lock()
        self._leaving: set[str] = set()
        """Detectors that are being deleted: their files are still there."""

    @property
    def catalog(self) -> Catalog:
        """The book."""
        return self.store.catalog

    async def load(self) -> None:
        """Hosts every detector of the catalog and of the settings. One that can not be loaded does not stop others."""
        made = await asyncio.to_thread(made_classes, self.catalog)
        self.device_classes = {**made, **self.settings.device_classes}
        rows = {row.name: row for row in await asyncio.to_thread(self.catalog.list_detectors)}
        for name, config in self.settings.detectors.items():
            if name not in rows:
                await asyncio.to_thread(self._create, name, config)
            else:
                # What the settings own must stop cycling when they drop it: what begins them is never in the catalog.
                kept = _without_loop(config)
                await asyncio.to_thread(self.catalog.set_config, name, kept.model_dump(mode="json"))
        for row in await asyncio.to_thread(self.catalog.list_detectors):
            hosted = self._host(row)
            await self.follow_windows(row.name)
            if row.features:
                hosted.history = await asyncio.to_thread(self.store.history, row.name)
            try:
                await asyncio.to_thread(self._resume, hosted)
            except PrunewatchError:
                logger.exception("the series of %s begin anew", row.name)
            try:
                await self.follow(row.name)
            except PrunewatchError as error:
                hosted.problem = f"{error.problem} {error.hint}".strip()
                logger.exception("detector %s can not serve", row.name)
            else:
                await asyncio.to_thread(hosted.unshelve)

    def _resume(self, hosted: HostedDetector) -> None:
        if hosted.history is not None and hosted.features is not None:
            paths, features, gap = hosted.history.paths(), hosted.features, hosted.config.gap_nanoseconds
            with self.catalog.reading() as connection:
                elsewhere = field_series(connection, hosted.name)
            hosted.resume(
                lambda points: (it for it in newest_points(paths, features, points, gap) if it.name not in elsewhere)
            )

    def config_of(self, name: str) -> DetectorConfig:
        """How a hosted detector learns and alarms; `host.get` says whether there is one."""
        self.host.get(name)
        return self._configs[name]

    def budget_of(self, device_class: str) -> Budget:
        """What a step may cost on a device class; nothing for one the settings do not know."""
        return self.device_classes.get(device_class, Budget())

    def require_changeable(self, name: str) -> None:
        """Refuses to change over the API what the settings own."""
        if name in self.settings.detectors:
            raise PreconditionError(
                f"{name!r} is defined in the server's configuration file.",
                field="name",
                hint="Change it there and restart the server.",
            )

    async def create(self, name: str, fields: Mapping[str, Any], field: str = "detector") -> DetectorRow:
        """Creates a detector that learns.

        Raises:
            InvalidInputError: name or fields can not be.
            AlreadyExistsError: the name is taken.
            PreconditionError: the settings own it.
            ExhaustedError: there are `max_detectors`.
        """
        self.require_changeable(name)
        if name in self._leaving:
            raise AlreadyExistsError(f"{name!r} is being deleted.", field="name", hint="Try again in a moment.")
        config = load_detector_config(dict(fields), field)
        self._require_known_classes(config)
        row = await asyncio.to_thread(self._create, name, config)
        self._host(row)
        if row.features:
            self.host.get(name).history = await asyncio.to_thread(self.store.history, name)
        return row

    def _create(self, name: str, config: DetectorConfig) -> DetectorRow:
        if len(self.catalog.list_detectors()) >= self.settings.max_detectors:
            raise ExhaustedError(
                f"this server hosts {self.settings.max_detectors} detectors and may host no more.",
                field="max_detectors",
                hint="Delete one, or raise max_detectors.",
            )
        kept = _without_loop(config) if name in self.settings.detectors else config
        return self.catalog.create_detector(name, kept.model_dump(mode="json"), config.features)

    def _require_known_classes(self, config: DetectorConfig) -> None:
        for device_class in config.device_classes:
            if device_class not in self.device_classes:
                raise PreconditionError(
                    f"there is no device class {device_class!r}.",
                    field="device_classes",
                    hint=f"The server knows: {', '.join(self.device_classes)}.",
                )

    def _host(self, row: DetectorRow) -> HostedDetector:
        config = self.settings.detectors.get(row.name) or load_detector_config(row.config)
        self._configs[row.name] = config
        return self.host.add(row.name, config, row.features, SeriesFile.of(self.store.root, row.name))

    async def delete(self, name: str, *, etag: str = "") -> None:
        """Forgets a detector with its versions, history and anomalies; ConflictError: not the one of `etag`."""
        hosted = self.host.get(name)
        self.require_changeable(name)
        self._leaving.add(name)
        try:
            hashes = await asyncio.to_thread(self.catalog.delete_detector, name, etag=etag)
            self.host.remove(name)
            del self._configs[name]
            await self.host.settle(hosted)  # what is written now must not reach a detector that takes the name
            await asyncio.to_thread(self.store.remove_files, name, hashes)
        finally:
            self._leaving.discard(name)

    async def learn_features(self) -> None:
        """Writes down the features that first points have brought, and opens their history."""
        for hosted in self.host:
            if hosted.features and hosted.history is None and hosted.name not in self._leaving:
                row = await asyncio.to_thread(self.catalog.get_detector, hosted.name)
                if row.features is None:
                    await asyncio.to_thread(self.catalog.set_features, hosted.name, list(hosted.features))
                hosted.history = await asyncio.to_thread(self.store.history, hosted.name)

    async def follow_windows(self, name: str) -> None:
        """Makes the host mute what the catalog says that is a maintenance window."""
        hosted = self.host.get(name)
        async with self._following_windows:  # what is read last is set last
            rows = await asyncio.to_thread(self.catalog.windows, name)
            hosted.windows = Spans(map(Span.of, rows))

    # versions

    async def follow(self, name: str) -> None:
        """Makes the host score what the catalog says that the hub serves.

        Raises:
            CorruptBundleError: the bundle is not what it should be; what scored before goes on.
            PreconditionError: the live series can not go on in it.
        """
        hosted = self.host.get(name)
        serving = {it.device_class: it for it in await asyncio.to_thread(self.catalog.all_serving, name)}
        versions = await asyncio.to_thread(self.catalog.versions, name)
        if not versions:
            return
        # A detector that only devices serve is scored here by its newest parent.
        here = serving.get(HUB)
        bundle_hash, version = (
            (here.bundle_hash, here.version) if here else (versions[-1].parent_hash, versions[-1].version)
        )
        if hosted.served is not None and hosted.served.version == version and not hosted.problem:
            return
        bundle = await asyncio.to_thread(self.store.read_bundle, bundle_hash)
        # Here and not in a thread: ONNX Runtime lets the thread that makes a session flush subnormals, and this one
        # will score. It takes a few milliseconds.
        served = Served.load(bundle, version)
        await hosted.serve(served, bundle.manifest.features)
        await self.learn_features()

    async def require_able(self, name: str, bundle_hash: str) -> None:
        """Refuses a bundle that is damaged or that the live series could not go on in; changes nothing."""
        bundle = await asyncio.to_thread(self.store.read_bundle, bundle_hash)
        self.host.get(name).require_able(await asyncio.to_thread(Served.load, bundle))

    async def prove(self, name: str, bundle_hash: str) -> Verdict:
        """Has a bundle that was made score live points beside what serves."""
        bundle = await asyncio.to_thread(self.store.read_bundle, bundle_hash)
        return await self.host.get(name).prove(Served.load(bundle))

    async def pin(self, name: str, device_class: str, *, pinned: bool, etag: str = "") -> None:
        """Keeps a device class on what it serves, or lets it adopt again; ConflictError: not the one of `etag`."""
        self.host.get(name)
        await asyncio.to_thread(self.catalog.pin if pinned else self.catalog.unpin, name, device_class, etag=etag)

    async def freeze(self, name: str, *, frozen: bool, etag: str = "") -> None:
        """Stops what would begin by itself, or lets it again; ConflictError: not the one of `etag`."""
        self.host.get(name)
        await asyncio.to_thread(self.catalog.set_frozen, name, frozen=frozen, etag=etag)

    async def roll_back(self, name: str, device_class: str, to: int | None = None, *, etag: str = "") -> None:
        """Makes an earlier version serve: `to`, or the one before.

        Raises:
            ConflictError: the detector is not the one of `etag` any more.
            NotFoundError: there is no such version for this class.
            PreconditionError: nothing served before, what serves is pinned, or the live series can not go on in it.
            CorruptBundleError: its bundle is damaged; what serves has not changed.
        """
        self.host.get(name)
        now = await asyncio.to_thread(self.catalog.serving, name, device_class)
        adoptions = await asyncio.to_thread(self.catalog.adoptions, name)
        target = to or (now.previous_version if now else None)
        for row in await asyncio.to_thread(self.catalog.versions, name):
            if row.version == target and device_class == HUB and device_class in row.bundles:
                await self.require_able(name, row.bundles[device_class])
        await asyncio.to_thread(self.catalog.rollback, name, device_class, to, etag=etag)
        for it in adoptions:
            if (it.device_class, it.state) == (device_class, "probation") and it.version > (target or 0):
                self._metrics.adoptions.labels(name, device_class, "rolled_back").inc()
        await self.follow(name)

    async def entry(self, name: str) -> Entry:
        """Everything about a detector."""
        row = await asyncio.to_thread(self.catalog.get_detector, name)
        serving = await asyncio.to_thread(self.catalog.all_serving, name)
        hosted = self.host.get(name)
        return Entry(
            row,
            self.config_of(name),
            tuple(serving),
            hosted.points_kept,
            hosted.served is not None,
            hosted.problem or row.problem,
            name in self.settings.detectors,
            etag_of(row, serving),
        )


def _without_loop(config: DetectorConfig) -> DetectorConfig:
    """Begins nothing by itself."""
    return config.model_copy(update={"schedule": Schedule(), "triggers": Triggers()})
