"""Agents for tests: in this process with clocks of their own, or in a process of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detectors.failpoints import VARIABLE
from prunewatch.client import Client, Scores
from server.config import Settings
from server.edge.agent import Agent, AgentOptions
from server.edge.deployment import Window
from server.edge.link import Tempo

RUN = """
import sys
from pathlib import Path
from server.allocators import settle_allocators
from server.config import Settings
from server.edge.agent import Agent, AgentOptions
from server.edge.deployment import Window
from server.edge.link import Tempo
from server.listener import until_asked_to_stop
import asyncio, logging
logging.basicConfig(level=logging.INFO)
store, hub, token, listen = sys.argv[1:5]
options = AgentOptions(Path(store), hub, "north-7", "pi4", Path(token))
settings = Settings(listen=listen, admin="127.0.0.1:0", store=Path(store), drain_seconds=0.2)
async def live():
    tempo = Tempo(silent=0.6, alive=0.5, answer=3.0, look=0.05, first=0.05, longest=0.4, again=0.3, stall=1.0)
    agent = Agent(settings, options, tempo=tempo, window=Window(points=30, look_seconds=0.1))
    await until_asked_to_stop(agent.start, agent.stop)
settle_allocators()
asyncio.run(live())
"""
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


class AgentProcess:
    """An agent in a process of its own, that can be started again.

    Args:
        folder: For its log, and its store `store` where none is named.
        hub: Its hub.
        token: With which it enrols.
        before: A command that starts it in its place.
        store: Its store.
        as_users_do: Through the command line, with the times that it has there.
    """

    def __init__(
        self,
        folder: Path,
        hub: str,
        token: Path,
        before: tuple[str, ...] = (),
        store: Path | None = None,
        *,
        as_users_do: bool = False,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.store, self.log = store or folder / "store", folder / "log.txt"
        command = ["-c", RUN, str(self.store), hub, str(token), self.address]
        if as_users_do:
            command = ["-c", "from server.cli import main; main()", "edge", "--hub", hub, "--store", str(self.store)]
            command += ["--device-class", "pi4", "--device", "north-7", "--token-file", str(token)]
            command += ["--listen", self.address, "--admin", "127.0.0.1:0"]
        self._command = [*before, sys.executable, *command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, armed: str = "") -> None:
        """Starts it, to die at a step."""
        environment = {**os.environ, VARIABLE: armed, "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self._command, stderr=file, env=environment, cwd=Path(__file__).parent)

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGTERM; it must end well."""
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()[-3000:]
