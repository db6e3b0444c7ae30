"""A trainer that dies takes nothing with it, and one whose server died goes too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from crashing import FEATURES, NAME, Node, connected

from prunewatch.client import Client, ServiceError

ROUNDS = 4
WINDOW_SECONDS = 2.0
ALLOWED = 1.5
LONG_FIT = {"features": FEATURES, "options": {"layers": 3, "width": 256}}
VALUES = np.random.default_rng(0).normal(size=(40_000, len(FEATURES))).astype(np.float32)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A hub with the real trainer and a detector whose fits take minutes."""
    node = Node(tmp_path / "store", tmp_path / "log.txt", trainer=None, detectors={NAME: LONG_FIT})
    node.start()
    yield node
    node.kill()


def trainers(node: Node) -> list[psutil.Process]:
    """The trainer that a hub has started, if there is one."""
    assert node.process is not None
    return psutil.Process(node.process.pid).children()


async def begun(client: Client, node: Node) -> tuple[str, psutil.Process]:
    """A fit that trains: its operation and its process."""
    operation = await client.fit_upload(NAME, features=FEATURES, stamps=np.arange(len(VALUES)), values=VALUES)
    stages: list[str] = []
    waiting = asyncio.create_task(client.wait_operation(operation, lambda stage, _done, _words: stages.append(stage)))
    while "fit" not in stages:
        await asyncio.sleep(0.05)
        assert not waiting.done(), waiting.exception()
    waiting.cancel()
    (process,) = trainers(node)
    return operation, process


async def slow_end(client: Client, seconds: float) -> float:
    """99th percentile of the time of a Score of 64 points, in seconds."""
    end, times = time.monotonic() + seconds, []
    while time.monotonic() < end:
        began = time.perf_counter()
        await client.score(NAME, values=VALUES[:64], series=["a"], ephemeral=True)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)
    return float(np.percentile(times, 99))


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.promise("R9")
async def test_a_trainer_that_is_killed_does_not_slow_scoring(node: Node) -> None:
    """99th percentile at most 1.5 times that of the rounds between; each fit fails with what happened."""
    ratios, problems = [], []
    async with Client(node.address) as client:
        await slow_end(client, 0.5)
        for _ in range(ROUNDS):
            control = await slow_end(client, WINDOW_SECONDS)
            operation, process = await begun(client, node)
            first = asyncio.create_task(slow_end(client, WINDOW_SECONDS))
            await asyncio.sleep(WINDOW_SECONDS / 2)
            process.kill()
            ratios.append(await first / control)
            with pytest.raises(ServiceError) as failed:
                await client.wait_operation(operation)
            problems.append(failed.value.problem)

    assert set(problems) == {"the trainer ended without a result (exit code -9)."}
    assert float(np.median(ratios)) <= ALLOWED, ratios


@pytest.mark.slow
async def test_a_trainer_ends_with_its_server(node: Node) -> None:
    """However that ended; the next one says that the fit was interrupted, and can fit again."""
    async with Client(node.address) as client:
        operation, process = await begun(client, node)
    node.kill()
    _, alive = psutil.wait_procs([process], timeout=5)
    node.start()

    async with connected(node) as client:
        with pytest.raises(ServiceError, match="interrupted by a restart") as interrupted:
            await client.wait_operation(operation)
        await begun(client, node)

    assert not alive
    assert interrupted.value.code == "FAILED_PRECONDITION"
