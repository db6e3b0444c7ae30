"""kill -9 while a cycle or a fit runs that nobody asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_checks import check
from crashing import DETECTOR, FEATURES, NAME, Memory, Node, connected

from prunewatch.client import Client, ServiceError

EVERY = 40
SHIFT = 100
HIGH = 1e9
SECONDS = 30.0
IN_THE_HUB = (
    "cycle.begun",
    "cycle.trained",
    "publish.begun",
    "publish.before_commit",
    "publish.committed",
    "cycle.published",
    "cycle.followed",
    "cycle.ended",
)
IN_THE_TRAINER = ("trainer.begun", "trainer.trained", "bundle.before_rename", "bundle.durable", "trainer.before_result")
ANY = set(range(1000))


class Automatic:
    """A hub whose cycles begin by themselves, after so many points or of what stays flagged.

    Args:
        folder: Of its store.
        begins: Settings of the detector that have them begin.
        scale: Of the values that are streamed.
    """

    def __init__(self, folder: Path, begins: dict[str, Any], scale: float) -> None:
        detector = {**DETECTOR, **begins}
        classes = {"hub": {"speedup": 1.5}}
        self.node = Node(folder / "store", folder / "log.txt", detectors={NAME: detector}, device_classes=classes)
        self.memory = Memory(allowed=set(ANY))
        self.scale = scale
        self.sent = 1000

    async def fitted(self) -> None:
        """The first version."""
        values = np.random.default_rng(0).normal(size=(100, len(FEATURES)))
        async with connected(self.node) as client:
            stamps = np.arange(len(values))
            await client.wait_operation(await client.fit_upload(NAME, features=FEATURES, stamps=stamps, values=values))

    async def stream(self, client: Client) -> None:
        """Some points."""
        rng = np.random.default_rng(self.sent)
        values = rng.normal(scale=self.scale, size=(4, len(FEATURES)))
        await client.score(NAME, values=values, series=["a"], stamps=list(range(self.sent, self.sent + 4)))
        self.sent += 4

    async def until_dead(self) -> None:
        """Streams until the hub has died."""
        end = time.monotonic() + SECONDS
        async with connected(self.node) as client:
            while self.node.is_alive:
                assert time.monotonic() < end, "it never came to that step"
                try:
                    await self.stream(client)
                except ServiceError as error:
                    if error.code != "UNAVAILABLE":
                        raise
                await asyncio.sleep(0.01)
        assert self.node.wait_dead()

    async def until(self, outcome: str, after: int = 0) -> dict[str, Any]:
        """Streams until a cycle has ended so."""
        end = time.monotonic() + SECONDS
        async with connected(self.node) as client:
            while True:
                for it in await client.cycles(NAME):
                    if it["outcome"] == outcome and int(it["id"]) > after:
                        return it
                assert time.monotonic() < end, await client.cycles(NAME)
                await self.stream(client)
                await asyncio.sleep(0.02)

    def again(self, armed: str = "") -> None:
        """Starts it once more and looks at all that it promises."""
        self.node.kill()
        self.node.start(armed)
        self.memory.allowed = set(ANY)
        asyncio.run(check(self.node, self.memory))


def begun(folder: Path, begins: dict[str, Any], scale: float = 1.0) -> Automatic:
    """With a first version."""
    made = Automatic(folder, begins, scale)
    made.node.start()
    asyncio.run(made.fitted())
    return made


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Automatic]:
    """A cycle every few points."""
    made = begun(tmp_path_factory.mktemp("scheduled"), {"schedule": {"prune_every": f"{EVERY} points", "jitter": 0}})
    yield made
    made.node.kill()


@pytest.mark.slow
@pytest.mark.promise("R1")
@pytest.mark.parametrize("step", IN_THE_HUB)
def test_a_cycle_that_began_by_itself_leaves_one_whole_version(scheduled: Automatic, step: str) -> None:
    """The hub dies in it; afterwards one published version serves to the bit, and the next cycle is adopted."""
    scheduled.node.kill()
    scheduled.node.start(step)
    asyncio.run(scheduled.until_dead())
    scheduled.again()

    last = max(asyncio.run(numbers(scheduled)))
    ended = asyncio.run(scheduled.until("adopted", after=last))

    assert ended["trigger"] == "schedule"


@pytest.mark.slow
@pytest.mark.promise("R9")
@pytest.mark.parametrize("step", IN_THE_TRAINER)
def test_a_trainer_that_dies_by_itself_costs_its_cycle_alone(scheduled: Automatic, step: str) -> None:
    """The cycle says so, what served serves on, and after a start the next one is adopted."""
    scheduled.again()
    last = max(asyncio.run(numbers(scheduled)), default=0)
    scheduled.node.kill()
    scheduled.node.start(step)

    failed = asyncio.run(scheduled.until("failed", after=last))
    scheduled.again()

    assert "exit code -9" in failed["reason"]
    assert asyncio.run(scheduled.until("adopted", after=last))


@pytest.fixture
def shifted(tmp_path: Path) -> Iterator[Automatic]:
    """A fit once enough points have stayed flagged."""
    made = begun(tmp_path, {"triggers": {"shift": SHIFT, "cool_down": "1s"}}, scale=HIGH)
    yield made
    made.node.kill()


@pytest.mark.slow
@pytest.mark.promise("R1")
@pytest.mark.parametrize("step", ["cycle.begun", "cycle.trained", "publish.committed", "cycle.followed"])
def test_a_fit_to_what_stays_flagged_leaves_one_whole_version(shifted: Automatic, step: str) -> None:
    """The hub dies in it; where it was not published, it begins again by itself once as much has stayed flagged."""
    shifted.node.kill()
    shifted.node.start(step)
    asyncio.run(shifted.until_dead())
    shifted.again()

    assert asyncio.run(reached(shifted, version=2))


async def numbers(hub: Automatic) -> list[int]:
    """Of its cycles."""
    async with connected(hub.node) as client:
        return [int(it["id"]) for it in await client.cycles(NAME)]


async def reached(hub: Automatic, version: int) -> bool:
    """Streams until this version, or a later one, serves."""
    end = time.monotonic() + SECONDS
    async with connected(hub.node) as client:
        while time.monotonic() < end:
            shown = await client.get(NAME)
            if any(it["version"] >= version for it in shown["served"]):
                return True
            await hub.stream(client)
            await asyncio.sleep(0.01)
    return False
