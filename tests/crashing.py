"""A hub in a process of its own that is made to die, and the client that remembers all it was told by it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from conftest import bundle_facts, eventually
from crash_trainer import MISBEHAVE
from graphs import ewma_bundle
from ports import free_address

from detectors.bundle import write_bundle
from detectors.failpoints import VARIABLE
from prunewatch.client import Client, Scores, ServiceError
from server.publish import publish_fit
from server.store import Store

NAME = "pump"
FEATURES = ["f1", "f2"]
GOLDEN = np.random.default_rng(0).normal(size=(64, len(FEATURES))).astype(np.float32)
DETECTOR: dict[str, Any] = {
    "features": FEATURES,
    "history": {"max_rows": 600, "reservoir_rows": 200},
    "versions": {"keep": 2},
    "probation": {"shadow_points": 0, "points": 100_000, "seconds": "1h"},
}
SETTINGS: dict[str, Any] = {"drain_seconds": 0.5, "history_flush_seconds": 0.2, "detectors": {NAME: DETECTOR}}
CRASH_TRAINER = (sys.executable, str(Path(__file__).with_name("crash_trainer.py")))
SERVE = (
    "import json, sys; from server.app import run; from server.config import Settings; "
    "run(Settings(**json.loads(sys.argv[1])), **json.loads(sys.argv[2]))"
)


class DiedError(Exception):
    """The hub is gone."""


def stock(root: Path) -> None:
    """Makes a store with the fitted detector `pump`, whose stamps are row numbers."""
    bundle = ewma_bundle(NAME, 1)
    with Store.open(root) as store:
        store.catalog.create_detector(NAME, {"time": "index"}, list(bundle.manifest.features))
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        publish_fit(store, NAME, {"parent": bundle_facts(bundle)})


class Node:
    """A hub that can be started again on the same store and address.

    Args:
        root: Its store.
        log: Where it logs.
        trainer: Starts its trainer; None: the real one.
        before: A command that starts it in its place.
        settings: More of them.

    Attributes:
        armed: At which step it is to die.
        seconds: From the last start until it answered, without those in which its threads waited for a processor; at
            least what it worked.
    """

    def __init__(
        self,
        root: Path,
        log: Path,
        trainer: tuple[str, ...] | None = CRASH_TRAINER,
        before: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.root = root
        self.log = log
        self.armed = ""
        self.seconds = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.address = free_address()
        given = {"store": str(root), "listen": self.address, "admin": "127.0.0.1:0", **SETTINGS, **settings}
        command = {} if trainer is None else {"trainer": trainer}
        self._command = [*before, sys.executable, "-c", SERVE, json.dumps(given), json.dumps(command)]

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, armed: str = "") -> None:
        """Starts it, to die at a step, and notes how long it took to answer; DiedError if it died before."""
        began, self.armed = time.monotonic(), armed
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self._command, stderr=file, env={**os.environ, VARIABLE: armed})
        host, port = self.address.split(":")
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    break
            if not self.is_alive:
                raise DiedError
            assert time.monotonic() < began + 60, self.log.read_text()[-4000:]
            time.sleep(0.02)
        worked = psutil.Process(self.process.pid).cpu_times()
        self.seconds = max(time.monotonic() - began - waited(self.process.pid), worked.user + worked.system)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def wait_dead(self, seconds: float = 10) -> bool:
        """Whether it died by SIGKILL in time."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            assert self.process.wait(seconds) == -signal.SIGKILL, self.log.read_text()[-4000:]
            return True
        return False


def waited(pid: int) -> float:
    """For how many seconds threads of a process, all taken together, could have run and others had the processors."""
    seconds = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            seconds += int((thread / "schedstat").read_text().split()[1]) / 1e9
    return seconds


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[Client]:
    """A client whose calls arrive: gRPC remembers for a while that nobody answered at an address."""
    async with Client(node.address) as client:
        await eventually(lambda: _answers(node, client))
        yield client


async def _answers(node: Node, client: Client) -> bool:
    try:
        await client.list()
    except ServiceError as error:
        if error.code != "UNAVAILABLE":
            raise
        return not node.is_alive
    return True


@dataclass
class Memory:
    """What the client was told, over all lives of a hub.

    Attributes:
        hashes: Of the bundle that each version has on the hub; the parent's where it has none.
        replies: Golden scores, with the version that gave them.
        allowed: Versions that may serve after a crash now; empty: nothing was asked for yet.
        drives: How often everything was asked for.
    """

    hashes: dict[int, str] = field(default_factory=dict)
    replies: list[Scores] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)
    drives: int = 0

    def learn(self, versions: list[dict[str, Any]]) -> None:
        """Takes what is published now: a number names one bundle for ever."""
        for it in versions:
            bundle_hash = it["children"].get("hub", it["parent"])["hash"]
            assert self.hashes.setdefault(it["version"], bundle_hash) == bundle_hash, it["version"]


async def drive(node: Node, memory: Memory, rng: random.Random, *, misbehave: bool) -> str:
    """Everything that changes a store, under streams that go on.

    Args:
        node: It runs.
        memory: Remembers what it says.
        rng: Seeds of jobs.
        misbehave: A cycle's version is bad and goes back by itself.

    Returns:
        Why it ended early: `hub` or `trainer` died; empty: it did not.
    """
    died = ""
    memory.drives += 1
    first = memory.drives * 10_000_000
    async with connected(node) as client:
        watching = [asyncio.create_task(it) for it in (_golden(client, memory), _live(client, first + 1_000_000))]
        try:
            await _everything(client, memory, rng, first, misbehave=misbehave)
        except ServiceError as error:
            died = "hub" if error.code == "UNAVAILABLE" else "trainer"
            if died == "trainer" and "trainer" not in error.problem:
                raise
        finally:
            for task in watching:
                task.cancel()
            ends = await asyncio.gather(*watching, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception) and not (isinstance(end, ServiceError) and end.code == "UNAVAILABLE"):
            raise end
    return died


async def _everything(client: Client, memory: Memory, rng: random.Random, first: int, *, misbehave: bool) -> None:
    values = np.random.default_rng(first).normal(size=(100, len(FEATURES)))
    stamps = first + np.arange(100)
    await _makes_version(
        client,
        memory,
        lambda: client.fit_upload(NAME, features=FEATURES, stamps=stamps, values=values, seed=rng.randrange(9000)),
    )
    await client.unpin(NAME)  # the last life may have ended before it did
    await client.freeze(NAME)
    await client.unfreeze(NAME)
    before = await _serving(client)
    await _makes_version(client, memory, lambda: client.prune(NAME, speedup=1.5, seed=rng.randrange(9000)))
    await client.pin(NAME)
    await client.unpin(NAME)
    memory.allowed.add(before)
    await client.roll_back(NAME)
    memory.allowed = {await _serving(client)}
    await client.wait_operation(await client.build_frontier(NAME, batch=64, points=3))
    await asyncio.sleep(0.5)  # what has streamed becomes durable
    if misbehave:
        before = await _serving(client)
        bad = partial(client.prune, NAME, speedup=1.5, seed=MISBEHAVE)
        await _makes_version(client, memory, bad, or_before=before)
        memory.allowed.add(before)
        await eventually(lambda: _serves(client, before))
        memory.allowed = {before}


async def _makes_version(
    client: Client, memory: Memory, ask: Callable[[], Awaitable[str]], or_before: int | None = None
) -> None:
    """Waits for a fit or cycle; until it has ended either version may serve."""
    versions = await client.versions(NAME)
    memory.learn(versions)
    memory.allowed.add(max((it["version"] for it in versions), default=0) + 1)
    await client.wait_operation(await ask())
    memory.learn(await client.versions(NAME))
    memory.allowed = {await _serving(client)} | ({or_before} if or_before else set())


async def _serving(client: Client) -> int:
    shown = await client.get(NAME)
    return int(next(it["version"] for it in shown["served"] if it["device_class"] == "hub"))


async def _serves(client: Client, version: int) -> bool:
    return await _serving(client) == version


async def _golden(client: Client, memory: Memory) -> None:
    """Golden inputs again and again, from a fresh state."""
    seen = set(memory.hashes)
    while True:
        await asyncio.sleep(0.02)
        reply = await client.score(NAME, values=GOLDEN, series=["golden"], ephemeral=True)
        memory.replies.append(reply)
        if reply.version not in seen and reply.version:
            seen.add(reply.version)
            memory.learn(await client.versions(NAME))


async def _live(client: Client, first: int) -> None:
    """Points that are kept."""
    rng = np.random.default_rng(first)
    for at in range(first, first + 1_000_000, 4):
        values = rng.normal(size=(4, len(FEATURES)))
        await client.score(NAME, values=values, series=["a"], stamps=list(range(at, at + 4)))
        await asyncio.sleep(0.01)
