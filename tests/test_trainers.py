"""Trainers: how many work at once, how much memory they may take, and that what becomes of one stays there."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings
from quick_trainer import EXHAUST, HANG

from detectors.errors import ExhaustedError
from prunewatch.client import Client, ServiceError
from server.app import Hub
from server.training import LOW_PRIORITY, train

RNG = np.random.default_rng(9)
TRAINING = {
    "features": ["f1", "f2"],
    "stamps": NOW + np.arange(100),
    "values": RNG.normal(size=(100, 2)).astype(np.float32),
}
MIB = 1 << 20
NICEST = 19
"""The system makes no process nicer."""


async def told(_stage: str, _done: float, _message: str) -> None:
    """Progress that nobody looks at."""


async def running(hub: Hub) -> list[str]:
    """Detectors whose trainer is past its start."""
    rows = await asyncio.to_thread(hub.store.catalog.list_operations)
    return sorted(row.detector for row in rows if row.state == "running" and row.stage == "train")


@pytest.mark.parametrize("trainers", [1, 2])
async def test_as_many_trainers_as_are_allowed(tmp_path: Path, trainers: int) -> None:
    """Of three fits as many run as there may be trainers; when one ends the next begins."""
    names = ["fan", "pump", "valve"]
    hub = Hub(hub_settings(tmp_path, trainers=trainers), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        operations = [await client.fit_upload(name, **TRAINING, seed=HANG) for name in names]
        await eventually(lambda: asyncio.sleep(0, len(hub.maintenance._running) == trainers))
        first = await eventually(lambda: full(hub, trainers))
        await client.cancel_operation(operations[0])
        then = await eventually(lambda: full(hub, trainers, without="fan"))
    await hub.stop()

    assert first == names[:trainers]
    assert then == names[1 : 1 + trainers]
    assert hub.maintenance.is_idle


async def full(hub: Hub, trainers: int, without: str = "") -> list[str]:
    """Those that run, once there are as many as may be; nothing while there are fewer, or more."""
    found = await running(hub)
    return found if len(found) == trainers and without not in found else []


async def test_never_two_trainers_of_one_detector(tmp_path: Path) -> None:
    """However many there may be, a second fit of the same detector is refused while the first runs."""
    hub = Hub(hub_settings(tmp_path, trainers=4), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.fit_upload("pump", **TRAINING, seed=HANG)
        await eventually(lambda: running(hub))
        with pytest.raises(ServiceError) as caught:
            await client.fit_upload("pump", **TRAINING)
    await hub.stop()

    assert caught.value.code == "FAILED_PRECONDITION"


@pytest.mark.promise("R9")
async def test_a_trainer_that_runs_out_of_memory_fails_alone(tmp_path: Path) -> None:
    """With `trainer_memory` one that wants more is refused it: its operation says so, and the version scores on."""
    hub = Hub(hub_settings(tmp_path, trainer_memory="256MiB"), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.wait_operation(await client.fit_upload("pump", **TRAINING))
        with pytest.raises(ServiceError) as caught:
            await client.wait_operation(await client.prune("pump", speedup=2, seed=EXHAUST))
        (cycle,) = await client.cycles("pump")
        reply = await client.score(
            "pump", series=["a"], stamps=NOW + 200 + np.arange(5), values=np.zeros((5, 2), np.float32)
        )
        fine = await client.wait_operation(await client.prune("pump", speedup=2))
    await hub.stop()

    assert (caught.value.code, caught.value.field) == ("RESOURCE_EXHAUSTED", "trainer_memory")
    assert "ran out of its memory (it may hold 256 MiB" in caught.value.problem
    assert cycle["outcome"] == "failed"
    assert reply.version == 1
    assert fine["outcome"] == "adopted"


@pytest.mark.slow
@pytest.mark.promise("R9")
async def test_the_real_trainer_keeps_to_its_memory() -> None:
    """What imports torch does not fit into 64 MiB: it ends with the error that names the setting."""
    with pytest.raises(ExhaustedError) as caught:
        await train({"kind": "fit"}, told, memory=64 * MIB)

    assert caught.value.field == "trainer_memory"


async def test_the_limit_is_that_of_the_trainer_alone() -> None:
    """The process that scores keeps the limit it had; the trainer's is in force before it reads its job."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    source = (
        "import json, resource, sys; sys.stdin.readline();"
        "print(json.dumps({'event': 'result', 'limit': resource.getrlimit(resource.RLIMIT_DATA)}))"
    )

    result = await train({}, told, (sys.executable, "-c", source), memory=300 * MIB)

    assert result["limit"] == [300 * MIB, 300 * MIB]
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.promise("R9")
def test_a_trainer_comes_after_a_service_that_was_started_nicely() -> None:
    """`nice prunewatch serve` has nice trainers too, and needs no right to make them less so."""
    code = """
import os, subprocess, sys
from server.training import put_behind
os.nice(12 - os.getpriority(os.PRIO_PROCESS, 0))
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
put_behind(child.pid, None)
print(os.getpriority(os.PRIO_PROCESS, child.pid))
child.communicate(b"\\n")
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) == NICEST


async def test_a_trainer_that_is_killed_fails_alone(tmp_path: Path) -> None:
    """SIGKILL in the middle of a fit, with a client that scores all the time: every call answers, the fit fails."""
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.wait_operation(await client.fit_upload("pump", **TRAINING))
        scoring = asyncio.create_task(scored(client, 300))
        fit = await client.fit("pump", seed=HANG)
        await eventually(lambda: running(hub))
        (trainer,) = children()
        priority = os.getpriority(os.PRIO_PROCESS, trainer)
        os.kill(trainer, signal.SIGKILL)
        with pytest.raises(ServiceError) as caught:
            await client.wait_operation(fit)
        versions = await scoring
        again = await client.wait_operation(await client.fit("pump"))
    await hub.stop()

    assert priority == min(os.getpriority(os.PRIO_PROCESS, 0) + LOW_PRIORITY, NICEST)
    assert (caught.value.code, "exit code -9" in caught.value.problem) == ("INTERNAL", True)
    assert versions == {1}
    assert again["outcome"] == "adopted"


async def scored(client: Client, calls: int) -> set[int]:
    """Versions that answered calls, one after the other."""
    versions = set()
    for call in range(calls):
        stamps = NOW + 1000 + call * 8 + np.arange(8)
        reply = await client.score("pump", series=["a"], stamps=stamps, values=np.zeros((8, 2), np.float32))
        versions.add(reply.version)
    return versions


def children() -> list[int]:
    """Processes that this one has started."""
    own = Path(f"/proc/{os.getpid()}/task")
    return [int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()]
