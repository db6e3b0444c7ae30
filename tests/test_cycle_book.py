"""The book of cycles: `prunewatch cycles` on a server and on its store, and what `WatchCycles` sends until when."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings
from quick_trainer import CRASH, REJECT

from prunewatch.client import Client, ServiceError
from server.app import Hub
from server.cli import main

PUMP = {"features": ["f1", "f2"]}
FACTS = {
    *("id", "device_class", "trigger", "cause", "started_seconds", "ended_seconds", "outcome", "reason"),
    *("adoption", "adoption_reason", "version", "speedup"),
}
"""Of a cycle, as JSON."""


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in a thread; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in ("cycles", *arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    async def run_beside(*arguments: object) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, *arguments)

    return run_beside


@pytest.fixture
async def pump(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with two detectors: `pump` was fitted, `fan` has just been made."""
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(address(hub)) as client:
        values = np.random.default_rng(3).normal(size=(100, 2)).astype(np.float32)
        stamps = NOW - 100 + np.arange(100)
        await client.wait_operation(await client.fit_upload("pump", stamps=stamps, values=values, **PUMP))
    await hub.roster.create("fan", PUMP)
    yield hub
    if not hub.host.watchers.closed:
        await hub.stop()


def address(hub: Hub) -> str:
    """Where it listens."""
    return f"127.0.0.1:{hub.listener.port}"


async def cycle(hub: Hub, seed: int | None = None) -> None:
    """One cycle of `pump`, whatever comes of it."""
    async with Client(address(hub)) as client:
        operation = await client.prune("pump", speedup=2, seed=seed)
        try:
            await client.wait_operation(operation)
        except ServiceError:
            assert seed == CRASH


# the list


async def test_a_server_and_its_store_list_the_same_cycles(pump: Hub, prunewatch) -> None:
    """Table and JSON, byte for byte: newest first, with what came of each and whether its version was kept."""
    for seed in (None, REJECT, CRASH):
        await cycle(pump, seed)
    asked = [("pump",), ("pump", "--json"), ("pump", "--limit", 2, "--json"), ("fan",), ("fan", "--json")]
    answers = [await prunewatch(*it, "--server", address(pump)) for it in asked]
    store = pump.store.root
    await pump.stop()

    (code, table, _), (_, whole, _), (_, two, _), nothing, empty = answers
    found = json.loads(whole)["cycles"]
    assert [await prunewatch(*it, "--store", store) for it in asked] == answers
    assert code == 0
    assert [it["outcome"] for it in found] == ["failed", "rejected", "adopted"]
    assert all(it.keys() == FACTS for it in found)
    assert found[2] == {
        **found[2],
        "id": 1,
        "trigger": "manual",
        "adoption": "probation",
        "adoption_reason": "",
        "version": 2,
        "speedup": 1.0,
    }
    assert found[1] == {**found[1], "reason": "nothing is fast enough", "adoption": "", "version": None}
    assert all(it["started_seconds"] <= it["ended_seconds"] for it in found)
    assert json.loads(two) == {"detector": "pump", "cycles": found[:2]}
    for words in ("adopted, probation", "nothing is fast enough", "manual", "1.0x", " s "):
        assert words in table
    assert nothing == (0, "fan: no cycles yet\n", "")
    assert json.loads(empty[1]) == {"detector": "fan", "cycles": []}


async def test_what_can_not_be_listed_is_refused(pump: Hub, prunewatch) -> None:
    """A detector that is not there; a store cannot be followed; a limit that is none."""
    server = ("--server", address(pump))
    for arguments, words in (
        (("motor", *server), "motor"),
        (("motor", "--follow", *server), "motor"),
        (("pump", "--follow", "--store", pump.store.root), "--server"),
        (("pump", "--limit", 0, *server), "--limit"),
    ):
        code, out, err = await prunewatch(*arguments)
        assert (code, out) == (2, "")
        assert words in err


# following


async def test_following_prints_what_is_decided_and_ends_with_the_server(pump: Hub, prunewatch) -> None:
    """A line for each cycle of the past, then one for each decision; progress goes to standard error."""
    await cycle(pump, REJECT)
    following = asyncio.create_task(prunewatch("pump", "--follow", "--server", address(pump)))
    await asyncio.sleep(1)
    await cycle(pump)
    await asyncio.sleep(1)
    await pump.stop()
    code, out, err = await asyncio.wait_for(following, 20)

    assert code == 0
    *earlier, last = out.splitlines()
    assert "cycle 1 of hub, manual: rejected: nothing is fast enough" in earlier[0]
    assert "cycle 2 of hub, manual: adopted version 2, 1.0x as fast, probation" in last
    assert {it.partition("  ")[2] for it in earlier[1:]} <= {"cycle 2 of hub, manual: running"}
    assert "cycle 1" not in err


async def test_ctrl_c_ends_following(pump: Hub) -> None:
    """Lines come as they are known, one object each, and the exit code says that it was interrupted."""
    await cycle(pump)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # whatever started the tests
    command = f"{heard}; from server.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", command, "cycles", "pump", "-f", "--json", "--server", address(pump)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)

    assert said.keys() == FACTS | {"stage", "done", "message"}
    assert (said["id"], said["outcome"], said["stage"]) == (1, "adopted", "")
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


# the stream


async def collect(client: Client, seen: list[dict[str, Any]], *, newest: int = 10, pause: float = 0.0) -> None:
    """Everything that is sent, until it ends."""
    async for it in client.watch_cycles("pump", newest=newest):
        seen.append(it)
        await asyncio.sleep(pause)


async def test_only_the_newest_of_the_past_are_sent(pump: Hub) -> None:
    """As many as were asked for, oldest first; then nothing while nothing happens."""
    for _ in range(3):
        await cycle(pump, REJECT)
    seen: list[dict[str, Any]] = []
    async with Client(address(pump)) as client:
        watching = asyncio.create_task(collect(client, seen, newest=2))
        await asyncio.sleep(2)
        watching.cancel()

    assert [it["id"] for it in seen] == [2, 3]


async def test_a_slow_reader_hears_how_every_cycle_ended(pump: Hub) -> None:
    """It may miss progress in between."""
    seen: list[dict[str, Any]] = []
    async with Client(address(pump)) as client:
        watching = asyncio.create_task(collect(client, seen, pause=2.5))
        for seed in (REJECT, None, REJECT):
            await cycle(pump, seed)

        async def told() -> bool:
            return {(it["id"], it["outcome"]) for it in seen} >= {(1, "rejected"), (2, "adopted"), (3, "rejected")}

        await eventually(told, seconds=40)
        watching.cancel()


async def test_watching_ends_with_the_detector(pump: Hub) -> None:
    """Well, as it does when the server stops; and one that is not there cannot be watched."""
    seen: list[dict[str, Any]] = []
    async with Client(address(pump)) as client:
        watching = asyncio.create_task(collect(client, seen))
        await asyncio.sleep(1)
        await client.delete("pump")
        await asyncio.wait_for(watching, 10)
        with pytest.raises(ServiceError, match="pump"):
            await collect(client, seen)
        with pytest.raises(ServiceError) as error:
            await anext(client.watch_cycles("fan", newest=101))

    assert error.value.field == "newest"


async def test_the_report_of_a_cycle_says_what_became_of_its_version(pump: Hub, capsys) -> None:
    """On the server and in the store alike: what was rolled back, and by whom."""
    await cycle(pump)
    async with Client(address(pump)) as client:
        await client.roll_back("pump")

    def report(*where: object) -> str:
        with pytest.raises(SystemExit):
            main([str(argument) for argument in ("report", "pump", "--cycle", 1, *where)])
        return " ".join(capsys.readouterr().out.split())

    told = await asyncio.to_thread(report, "--server", address(pump))
    store = pump.store.root
    await pump.stop()

    assert "(manual): adopted as version 2. It was rolled back: somebody rolled it back" in told
    assert "It was rolled back: somebody rolled it back" in report("--store", store)
