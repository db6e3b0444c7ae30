"""Long-running operations: written into the catalog, followed in memory, waited for without polling."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from detectors.errors import PrunewatchError
from server.catalog import Catalog
from server.journal import error_fields
from server.records import OperationRow

KINDS = ("fit", "prune", "frontier")
"""Of operations."""
WRITE_SECONDS = 1.0  # each write is an fsync; what happens in between is in memory
logger = logging.getLogger("prunewatch.progress")


class Operations:
    """Operations of this process and of those before it.

    Args:
        catalog: Where they outlive the process.
        monotonic: Seconds, for how often progress is written.
    """

    def __init__(self, catalog: Catalog, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._monotonic = monotonic
        self._running: dict[str, OperationRow] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._written: dict[str, float] = {}
        self._since: dict[str, float] = {}
        """When the stage that each is in began."""

    async def begin(self, kind: str, detector: str) -> OperationRow:
        """A new operation."""
        row = await asyncio.to_thread(self._catalog.create_operation, kind, detector)
        self._running[row.name] = row
        self._ended[row.name] = asyncio.Event()
        self._since[row.name] = self._monotonic()
        logger.info("%s begun", kind, extra={"operation": row.name, "detector": detector})
        return row

    async def get(self, name: str) -> OperationRow:
        """One operation as it is now; NotFoundError if there is none."""
        running = self._running.get(name)
        return await asyncio.to_thread(self._catalog.get_operation, name) if running is None else running

    async def recent(self, detector: str | None, limit: int) -> list[OperationRow]:
        """The last operations, newest first."""
        rows = await asyncio.to_thread(self._catalog.list_operations, detector, limit)
        return [self._running.get(row.name, row) for row in rows]

    @property
    def running(self) -> list[OperationRow]:
        """Those that have not ended, as they are now, oldest first."""
        return [row for row in self._running.values() if row.state == "running"]

    async def wait(self, name: str, seconds: float | None) -> OperationRow:
        """One operation when it has ended, or as it is after `seconds`."""
        if (ended := self._ended.get(name)) is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds)
        return await self.get(name)

    async def report(self, name: str, stage: str, done: float, message: str) -> None:
        """Takes progress."""
        row = self._running.get(name)
        if row is None:
            return
        if stage != row.stage:
            self._tell_stage(row)
        self._running[name] = replace(row, stage=stage, done=done, message=message)
        if self._monotonic() - self._written.get(name, -WRITE_SECONDS) >= WRITE_SECONDS:
            self._written[name] = self._monotonic()
            await asyncio.to_thread(
                lambda: self._catalog.update_operation(name, stage=stage, done=done, message=message)
            )

    async def succeed(self, name: str, result: Mapping[str, Any]) -> None:
        """Ends an operation with its result."""
        told = {key: result[key] for key in ("outcome", "reason", "version") if result.get(key)}
        await self._end(name, self._catalog.succeed_operation, result, **told)

    async def fail(self, name: str, error: PrunewatchError) -> None:
        """Ends an operation with an error."""
        await self._end(name, self._catalog.fail_operation, error, problem=str(error))

    async def cancel(self, name: str) -> None:
        """Ends an operation because somebody asked for it."""
        await self._end(name, self._catalog.cancel_operation, outcome="cancelled")

    def _tell_stage(self, row: OperationRow) -> None:
        """One line for each stage of a fit or cycle when it is over."""
        began, now = self._since.get(row.name, self._monotonic()), self._monotonic()
        self._since[row.name] = now
        if row.stage:
            facts = {"operation": row.name, "detector": row.detector, "stage": row.stage, "seconds": now - began}
            logger.info("%s step", row.kind, extra=facts)

    async def _end(self, name: str, write: Callable[..., None], *arguments: Any, **told: Any) -> None:
        if (row := self._running.get(name)) is not None:
            self._tell_stage(row)
            level = logging.WARNING if "problem" in told else logging.INFO
            logger.log(level, "%s ended", row.kind, extra={"operation": name, "detector": row.detector, **told})
        try:
            await asyncio.to_thread(write, name, *arguments)
            self._running.pop(name, None)
        except Exception as error:  # whoever waits must be told, also when the disk is full
            logger.exception("the end of %s could not be written", name)
            if (row := self._running.get(name)) is not None:
                known = (
                    error if isinstance(error, PrunewatchError) else PrunewatchError("its end could not be written.")
                )
                self._running[name] = replace(row, state="failed", error=error_fields(known), ended=time.time())
        finally:
            self._written.pop(name, None)
            self._since.pop(name, None)
            if (ended := self._ended.pop(name, None)) is not None:
                ended.set()
