"""A device that is killed at every step of a delivery: what serves is one whole bundle, and the new one gets there."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from agents import AgentProcess
from conftest import eventually
from device_hub import DeviceHub, pump
from graphs import ewma_scores

from detectors.failpoints import STEPS
from prunewatch.client import Client, ServiceError
from server.edge.slots import Slots

ALPHAS = {1: 0.1, 2: 0.3}
POINTS = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
GOLDEN = {version: ewma_scores(POINTS, alpha)[-1] for version, alpha in ALPHAS.items()}


class Process(AgentProcess):
    """One whose scores are known."""

    async def version(self) -> int:
        """The version that scores, whose golden score it gives; 0: nothing does, or it is not there."""
        try:
            async with Client(self.address, timeout_seconds=5) as client:
                reply = await client.score("pump", values=POINTS, series=["golden"], ephemeral=True)
        except ServiceError as error:
            if error.code not in {"UNAVAILABLE", "NOT_FOUND"}:
                raise
            return 0
        assert reply.scores[-1] == pytest.approx(GOLDEN[reply.version], rel=1e-5)
        return reply.version

    async def live(self, count: int) -> None:
        """Points that count for a trial."""
        async with Client(self.address, timeout_seconds=5) as client:
            values = np.random.default_rng(0).normal(size=(count, 2))
            await client.score("pump", values=values, series=["live"])


DELIVERY = [step for step in STEPS if step.partition(".")[0] in {"download", "slot"} and step != "slot.given_up"]
DELIVERY = [step for step in DELIVERY if step not in {"slot.renewed", "download.durable"}]


@pytest.mark.slow
@pytest.mark.promise("E2")
async def test_a_device_that_is_killed_anywhere_is_never_half_activated(tmp_path: Path) -> None:
    """One release, and a death at each of its steps: until the slot is named the old version serves, then either."""
    seen: dict[str, set[int]] = {}
    async with DeviceHub() as hub:
        process = Process(tmp_path, hub.address, hub.token(tmp_path))
        await hub.desire(hub.release(hub.offer(pump(1, alpha=ALPHAS[1]), tmp_path)))
        process.start()
        try:
            await serves(process, 1)
            process.kill()
            hub.releases = [hub.release(hub.offer(pump(2, alpha=ALPHAS[2]), tmp_path), version=2)]
            for step in DELIVERY:
                process.start(step)
                seen[step] = await versions_until_death(process)
            process.start()
            assert await eventually(process.version) == 2
            await serves(process, 2)
        finally:
            process.kill()

    assert list(seen) == DELIVERY
    named = DELIVERY.index("slot.chosen")
    assert all(seen[step] <= {1} for step in DELIVERY[: named + 1]), seen
    assert seen["slot.proven"] == {2}
    assert any(1 in it for it in seen.values())


async def versions_until_death(process: Process) -> set[int]:
    """What scored, under points that go on, until the process has died at its step."""
    found: set[int] = set()
    pushing = asyncio.create_task(push(process))
    for _ in range(400):
        if process.process.poll() is not None:
            break
        found.add(await process.version())
        await asyncio.sleep(0.02)
    pushing.cancel()
    assert process.process.poll() == -signal.SIGKILL, process.log.read_text()[-3000:]
    return found - {0}


async def push(process: Process) -> None:
    """Points, so that a trial ends."""
    while True:
        with suppress(ServiceError):
            await process.live(20)
        await asyncio.sleep(0.1)


async def serves(process: Process, version: int) -> None:
    """Waits until a version has proven itself."""
    pushing = asyncio.create_task(push(process))

    async def proven() -> bool:
        slots = Slots(process.store / "detectors/pump")
        slots.state = slots._read_state()
        return await process.version() == version and slots.state.trial is None and slots.state.active is not None

    await eventually(proven, 30)
    pushing.cancel()


def test_every_step_on_a_device_is_passed_here_or_is_told_why_not() -> None:
    """The steps that are left out: one needs a file of more than a megabyte; the others are passed in this process."""
    steps = {step for step in STEPS if step.partition(".")[0] in {"download", "slot", "trust"}}

    assert steps - set(DELIVERY) == {"slot.given_up", "slot.renewed", "download.durable", "trust.renamed"}
