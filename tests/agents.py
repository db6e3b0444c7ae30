"""Agents for tests: in this process with clocks of their own, or in a process of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prunewatch.client import Client, Scores
from server.config import Settings
from server.edge.agent import Agent, AgentOptions
from server.edge.deployment import Window
from server.edge.link import Tempo

QUICK = Tempo(silent=0.6, alive=0.5, answer=3.0, look=0.05, first=0.05, longest=0.4, again=0.3, stall=1.0)
SHORT = Window(points=40, seconds=60.0, look_seconds=0.1)


def settings_of(folder: Path, **fields: Any) -> Settings:
    """Settings of an agent on free ports."""
    given = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store": folder, "drain_seconds": 0.2, **fields}
    return Settings(**given)


@asynccontextmanager
async def agent(
    folder: Path,
    hub: str | None = None,
    *,
    token: Path | None = None,
    given: dict[str, Any] | None = None,
    **injected: Any,
) -> AsyncIterator[Agent]:
    """An agent that runs on the store `folder/store`."""
    options = AgentOptions(
        store=folder / "store", hub=hub, device="north-7", device_class="pi4", token_file=token, **(given or {})
    )
    running = Agent(settings_of(folder), options, **{"tempo": QUICK, "window": SHORT, **injected})
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


class Points:
    """Points of the series of a pump: row numbers as stamps, the same values for the same row."""

    def __init__(self, n_features: int = 2, series: tuple[str, ...] = ("a",)) -> None:
        self.series = series
        self.at = 0
        self._values = np.random.default_rng(5).normal(size=(100_000, len(series), n_features)).astype(np.float32)

    def rows(self, count: int) -> np.ndarray:
        """Values [N, S, F] of the rows so far, the last `count`."""
        return self._values[self.at - count : self.at]

    async def send(
        self, running: Agent, count: int, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Scores:
        """Scores the next rows of every series, in one message."""
        rows = np.arange(self.at, self.at + count)
        self.at += count
        values = self._values[rows] if change is None else change(self._values[rows].copy())
        self._values[rows] = values
        async with Client(f"127.0.0.1:{running.listener.port}") as client:
            return await client.score(
                "pump",
                series=list(self.series),
                series_index=np.tile(np.arange(len(self.series)), count),
                stamps=np.repeat(rows, len(self.series)),
                values=values.reshape(-1, values.shape[-1]),
            )

    async def flow(self, running: Agent, done: Callable[[], bool], count: int = 5) -> list[Scores]:
        """Sends until something is done."""
        replies = []
        while not done():
            replies.append(await self.send(running, count))
            await asyncio.sleep(0.01)
        return replies
