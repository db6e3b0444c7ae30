"""Keeps the latency table of every class that has devices: draws its graphs, has them measured, measured anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pruning.costs import Grid
from server.fleet.asking import Asking
from server.fleet.probe_graphs import graph_path, missing_graphs, sweep_graphs
from server.fleet.reports import ProbeReport
from server.fleet.tables import ClassTable, ClassTables
from server.jobs import parent_version
from server.maintenance import Maintenance
from server.measuring_settings import Measuring
from server.roster import Roster

ROUNDS = 5
"""Turns of each graph."""
DRAW_AGAIN_SECONDS = 3600.0
"""What could not be drawn is not tried again before."""
logger = logging.getLogger("prunewatch.fleet.class_grids")


class ClassGrids:
    """Tables of classes.

    Args:
        roster: The detectors.
        maintenance: Draws graphs.
        asking: Asks devices.
        settings: How many, and how old a table gets.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        roster: Roster,
        maintenance: Maintenance,
        asking: Asking,
        settings: Measuring,
        clock: Callable[[], float],
    ) -> None:
        self._roster, self._maintenance, self._asking = roster, maintenance, asking
        self._settings, self._clock = settings, clock
        self._tables = ClassTables(roster.store.root)
        self._known: dict[tuple[str, str], ClassTable | None] = {}
        self._drawn: dict[tuple[str, str], float] = {}

    async def look_at(self, name: str, device_class: str) -> None:
        """Has graphs drawn or measured, where that is due."""
        key, store = (device_class, name), self._roster.store
        if key not in self._known:
            self._known[key] = await asyncio.to_thread(self._tables.get, device_class, name)
        table, batch = self._known[key], self._roster.budget_of(device_class).batch
        parent = (await asyncio.to_thread(parent_version, store, name, device_class)).parent_hash
        if table is None or table.parent != parent or table.grid.batch != batch:
            await self._draw(name, device_class, batch)
            return
        fresh = self.fresh(table)
        devices = self._asking.who(
            self._about(table), device_class, answered=fresh, wanted=self._settings.table_devices
        )
        if not devices:
            return
        if await asyncio.to_thread(missing_graphs, store.root, table.grid.graphs):
            await self._draw(name, device_class, batch)
            return
        graphs = {sha256: graph_path(store.root, sha256) for sha256 in table.grid.graphs}
        probe_id = await asyncio.to_thread(
            lambda: self._asking.ask(self._about(table), device_class, devices, graphs, batch=batch, rounds=ROUNDS)
        )
        await self._keep(table.asking(probe_id, self._clock()))

    async def take(self, device_class: str, report: ProbeReport) -> bool:
        """Takes an answer; False where it is not one to a table of this class, or not to be believed."""
        for (known_class, _), table in self._known.items():
            if table is None or known_class != device_class or report.probe_id not in table.probes:
                continue
            answered = table.answered(report)
            if answered is None:
                return False
            await self._keep(answered)
            logger.info(
                "the table of %s for %s rests on %d devices", device_class, table.detector, len(answered.counted)
            )
            return True
        return False

    def fresh(self, table: ClassTable) -> dict[str, object]:
        """Devices whose answers are not too old."""
        oldest = self._clock() - self._settings.table_max_age
        return {device: answer for device, answer in table.counted.items() if answer.asked >= oldest}

    def known(self, name: str, device_class: str) -> ClassTable | None:
        """The table as it is now; None where none was drawn yet."""
        return self._known.get((device_class, name))

    async def _draw(self, name: str, device_class: str, batch: int) -> None:
        key, now = (device_class, name), self._clock()
        if self._maintenance.is_busy(name) or now - self._drawn.get(key, float("-inf")) < DRAW_AGAIN_SECONDS:
            return
        self._drawn[key] = now

        def drawn(result: Mapping[str, Any]) -> None:
            grid, before = Grid.from_json(result["grid"]), self._known.get(key)
            table = ClassTable(name, device_class, result["parent"]["hash"], grid, self._clock())
            if before is not None and self._still_told(before, grid):
                table = replace(before, parent=table.parent)
            self._tables.put(table)
            self._known[key] = table
            self._drawn.pop(key, None)
            sweep_graphs(self._roster.store.root, {it for each in self._tables.all() for it in each.grid.bytes})

        await self._maintenance.draw_graphs(
            name, device_class, batch=batch, graphs=self._settings.table_graphs, drawn=drawn
        )

    def _still_told(self, before: ClassTable, grid: Grid) -> bool:
        """Whether devices need not measure a grid: it is that of another parent of the same shape.

        Its graphs have other hashes, as the numbers of its scale are in them; what they cost does not depend on those.
        """
        return before.grid.key == grid.key and not missing_graphs(self._roster.store.root, before.grid.graphs)

    async def _keep(self, table: ClassTable) -> None:
        self._known[table.device_class, table.detector] = table
        await asyncio.to_thread(self._tables.put, table)

    @staticmethod
    def _about(table: ClassTable) -> str:
        return f"table {table.detector} {table.grid.key}"
