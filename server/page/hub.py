"""What there is to see of a hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from detectors.errors import NotFoundError, PreconditionError
from server.anomaly_keeping import AnomalyQuery
from server.config import HUB
from server.cycle_watch import cycle_states
from server.frontiers import glance_at_frontier
from server.jobs import parent_version
from server.overview_rows import Overview, ServedGlance
from server.page.cycles import absent, adoption_shown, cycle_shown, glance_shown, operation_shown, report_of, said_shown
from server.page.fleet import DeviceFacts
from server.page.live import Live, anomaly_shown, budget_shown, process_shown
from server.page.site import Make
from server.page.versions import versions_shown
from server.progress import Operations
from server.records import Measurement
from server.roster import Roster, shown_state

DETECTORS = 200
"""That are shown at once, by name."""
SPARKS = 90
"""Ticks of a card."""
NEWEST = 10
"""Decisions and anomalies of all detectors."""
CYCLES, ANOMALIES, SAID, OPERATIONS = 20, 50, 10, 5
"""Of one detector, the newest."""


class HubView:
    """Everything that a hub knows, read from its catalog and its host.

    Args:
        roster: The detectors.
        operations: What runs.
        is_ready: Whether the hub serves.
        devices: Gathers what there is to see of the devices of classes.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        roster: Roster,
        operations: Operations,
        *,
        is_ready: Callable[[], bool],
        devices: Callable[[Iterable[str]], Callable[[], DeviceFacts]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._roster = roster
        self._operations = operations
        self._is_ready = is_ready
        self._devices = devices
        self._clock = clock
        self._started = clock()

    async def overview(self) -> Make:
        """All detectors, what runs, and what happened last."""
        roster = self._roster
        await self._write_anomalies()
        lives = {hosted.name: Live.of(hosted, SPARKS) for hosted in roster.host}
        owned = roster.settings.detectors.keys()
        running, process = self._operations.running, self._process()
        devices = self._devices(list(roster.device_classes))

        def make() -> dict[str, Any]:
            found = roster.catalog.overview(detectors=DETECTORS, newest=NEWEST)
            now = self._clock()
            cards = [
                {
                    **lives[it.name].shown(now),
                    "state": shown_state(it.state, lives[it.name].version is not None, lives[it.name].problem),
                    "problem": lives[it.name].problem or it.problem,
                    "frozen": it.frozen,
                    "from_configuration": it.name in owned,
                    "served": self._served(found, it.name),
                }
                for it in found.detectors
                if it.name in lives  # else it is being made or deleted
            ]
            begun = {it.operation: it for it in found.running}
            return {
                "process": process,
                "device_classes": self._classes(found, devices()),
                "detectors": cards,
                "left_out": max(len(lives) - len(cards), 0),
                "operations": [operation_shown(it, begun.get(it.name)) for it in running],
                "decisions": [glance_shown(it) for it in found.decided],
                "anomalies": [
                    anomaly_shown(it, lives[it.detector].time) for it in found.anomalies if it.detector in lives
                ],
            }

        return make

    async def detector(self, name: str) -> Make:
        """One detector with its versions, cycles and anomalies."""
        roster = self._roster
        hosted, config = roster.host.get(name), roster.config_of(name)
        anomalies = await self._anomalies(name)
        live, running, process = Live.of(hosted), self._operations.running, self._process()
        points = hosted.points_kept

        def make() -> dict[str, Any]:
            catalog = roster.catalog
            facts, adoptions = catalog.facts(name), catalog.adoptions(name)
            operations = {it.name: it for it in catalog.list_operations(name, OPERATIONS)}
            operations.update({it.name: it for it in running if it.detector == name})
            cycles = cycle_states(catalog, name, CYCLES)
            begun = {it.row.operation: it.row for it in cycles}
            row = facts.detector
            return {
                "process": process,
                **live.shown(self._clock()),
                "state": shown_state(row.state, live.version is not None, live.problem or row.problem),
                "problem": live.problem or row.problem,
                "frozen": row.frozen,
                "created_seconds": row.created,
                "feature_names": live.named_features(),
                "false_alarm_rate": config.false_alarm_rate,
                "history_points": points,
                "from_configuration": name in roster.settings.detectors,
                "device_classes": [{"name": it, **budget_shown(roster.budget_of(it))} for it in config.device_classes],
                **versions_shown(facts, catalog.measurements_of(name)),
                "cycles": [cycle_shown(it) for it in cycles],
                "adoptions": [adoption_shown(it) for it in adoptions[:SAID]],
                "operations": [operation_shown(it, begun.get(it.name)) for it in operations.values()],
                "anomalies": [anomaly_shown(it, live.time) for it in anomalies],
                "labels": [said_shown(it, live.time) for it in catalog.labels(name, limit=SAID)],
                "windows": [said_shown(it, live.time) for it in catalog.windows(name, limit=SAID)],
            }

        return make

    async def frontier(self, name: str, device_class: str) -> Make:
        """The frontier of what a device class is pruned from; `absent` where none was built: that is no error."""
        self._require_class(name, device_class)
        roster = self._roster
        at = f" --server {roster.settings.listen}"

        def make() -> dict[str, Any]:
            try:
                parent = parent_version(roster.store, name, device_class).parent_hash
            except PreconditionError as error:
                return absent(error, f"prunewatch fit {name} --data train.csv{at}")
            budget = roster.budget_of(device_class)
            stored = glance_at_frontier(roster.store.root, parent, budget.batch)
            if stored is None:
                problem = f"Nothing has been built for {device_class} at {budget.batch} points a step."
                return absent(
                    PreconditionError(problem), f"prunewatch frontier {name} --device-class {device_class}{at}"
                )
            return {**stored.shown(name, device_class), "budget": budget_shown(budget)}

        return make

    async def report(self, name: str, device_class: str, cycle: int | None) -> Make:
        """What a cycle did."""
        if cycle is None:
            self._require_class(name, device_class)
        hosted, catalog = self._roster.host.get(name), self._roster.catalog
        return lambda: report_of(catalog, name, hosted.config.time, device_class, cycle)

    def _require_class(self, name: str, device_class: str) -> None:
        self._roster.host.get(name)
        known = self._roster.device_classes
        if device_class not in known:
            raise NotFoundError(
                f"there is no device class {device_class[:80]!r}.", hint=f"There are: {', '.join(known)}."
            )

    def _process(self) -> dict[str, Any]:
        settings = self._roster.settings
        return process_shown(HUB, settings.listen, self._started, ready=self._is_ready(), insecure=settings.insecure)

    async def _write_anomalies(self) -> None:
        """What was found until now is in the book afterwards; there is nothing to do for those that wait for a disk."""
        if (keeper := self._roster.host.anomalies) is not None:
            await keeper.flush()

    async def _anomalies(self, name: str) -> list[Any]:
        keeper = self._roster.host.anomalies
        return [] if keeper is None else await keeper.find(AnomalyQuery(name, limit=ANOMALIES))

    def _served(self, found: Overview, name: str) -> list[dict[str, Any]]:
        return [
            {
                "device_class": it.device_class,
                "version": it.version,
                "pinned": it.pinned,
                "created_seconds": it.created,
                "on_probation": (name, it.device_class, it.version) in found.probations,
                "bundle": self._sized(found, it, parent=False),
                "parent": self._sized(found, it, parent=True),
                "budget": budget_shown(self._roster.budget_of(it.device_class)),
            }
            for it in found.served
            if it.detector == name
        ]

    def _sized(self, found: Overview, it: ServedGlance, *, parent: bool) -> dict[str, Any]:
        bundle = it.parent if parent else it.bundle
        measured = self._measured(found.measurements, bundle.hash, it.device_class)
        return {
            "hash": bundle.hash[:12],
            "units": sum(bundle.units.values()),
            "parameters": bundle.parameters,
            "bytes": bundle.bytes,
            "p50_seconds": measured.p50_seconds if measured else None,
            "p99_seconds": measured.p99_seconds if measured else None,
        }

    def _measured(self, measurements: Any, bundle_hash: str, device_class: str) -> Measurement | None:
        """At the batch of the budget: on the class itself, else on the hub."""
        batch = self._roster.budget_of(device_class).batch
        fitting = {it.device_class: it for it in measurements if (it.bundle_hash, it.batch) == (bundle_hash, batch)}
        return fitting.get(device_class) or fitting.get(HUB)

    def _classes(self, found: Overview, devices: DeviceFacts) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                **budget_shown(budget),
                "serves": sum(it.device_class == name for it in found.served),
                **devices[name],
            }
            for name, budget in list(self._roster.device_classes.items())
            if name in devices  # else it was made a moment ago
        ]
