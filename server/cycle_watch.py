"""Cycles of a detector as they are, and each change of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from server.catalog import Catalog
from server.progress import Operations
from server.records import AdoptionRow, CycleRow

LOOK_SECONDS = 0.5
LOOKED_AT = 100
"""Cycles whose changes are noticed, the newest."""


@dataclass(frozen=True)
class CycleState:
    """A cycle at a moment.

    Attributes:
        row: As it is in the book.
        adoption: What became of its version; None where nothing was adopted.
        stage: What it is doing; empty once it has ended.
        done: How much of the stage is done, 0 to 1.
        message: The same in words.
    """

    row: CycleRow
    adoption: AdoptionRow | None = None
    stage: str = ""
    done: float = 0.0
    message: str = ""


def cycle_states(catalog: Catalog, name: str, newest: int) -> list[CycleState]:
    """The newest cycles of a detector, newest first, without what runs in memory."""
    adopted = {it.cycle: it for it in catalog.adoptions(name)}
    return [CycleState(row, adopted.get(row.id)) for row in catalog.cycles(name, newest)]


async def watch_cycles(
    catalog: Catalog, operations: Operations, name: str, newest: int, ended: Callable[[], bool]
) -> AsyncIterator[CycleState]:
    """The newest cycles, oldest first, then every cycle that is new or has changed; looked for twice a second.

    A reader that is slow misses progress in between, never how a cycle ended.

    Args:
        catalog: The book.
        operations: Where progress is.
        name: The detector.
        newest: Cycles of the past, at most.
        ended: Whether to stop.
    """
    known: dict[int, CycleState] = {}
    first = await asyncio.to_thread(cycle_states, catalog, name, newest)
    oldest = first[-1].row.id if first else 0
    while not ended():
        for state in reversed(await asyncio.to_thread(cycle_states, catalog, name, LOOKED_AT)):
            now = await _now(state, operations)
            if now.row.id >= oldest and known.get(now.row.id) != now:
                known[now.row.id] = now
                yield now
        await asyncio.sleep(LOOK_SECONDS)


async def _now(state: CycleState, operations: Operations) -> CycleState:
    """With what it is doing, while it runs."""
    if state.row.outcome != "running" or not state.row.operation:
        return state
    running = await operations.get(state.row.operation)
    return replace(state, stage=running.stage, done=running.done, message=running.message)
