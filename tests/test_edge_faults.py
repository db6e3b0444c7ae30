"""The benchmark of faults during deliveries: a slice of it, and that its link does harm and its checks find it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Points, agent
from conftest import BENCHMARKS, eventually
from device_hub import DeviceHub, pump

from prunewatch.client import Scores
from server.edge.agent import Agent

OK, DUPLICATE, INVALID = 1, 7, 5
SLICE = {"devices": 2, "faults": 5, "kinds": ("cut", "stall", "flip", "kill", "hub"), "lasting": 0.3}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """The address of a server that says what it hears."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Any, Any]]:
    """A link to such a server, and what connects through it."""
    from faulty_link import FaultyLink

    async with echo() as address, FaultyLink(address) as link:
        host, port = link.address.split(":")
        opened = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            opened.append(await asyncio.open_connection(host, int(port)))
            return opened[-1]

        yield link, connect
        for _, writer in opened:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes) -> bytes:
    """What comes back in half a second; empty: nothing."""
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.readexactly(len(said)), 0.5)
    except TimeoutError:
        return b""


async def test_a_cut_link_is_reset_and_a_new_one_works() -> None:
    """At once, or after so many bytes."""
    async with linked() as (link, connect):
        first, second = await connect(), await connect()
        assert await heard(*first, b"well") == b"well"
        assert await heard(*second, b"well") == b"well"
        link.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await heard(*first, b"gone")
        third = await connect()
        link.cut(in_bytes=6)

        assert await heard(*third, b"four") == b"four"
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await heard(*third, b"more") and await heard(*third, b"end")
        assert link.connections == 3


async def test_a_stalled_link_loses_nothing_and_a_half_open_one_loses_all() -> None:
    """What was held back comes later; what was swallowed does not, and only new connections work."""
    async with linked() as (link, connect):
        reader, writer = await connect()
        assert await heard(reader, writer, b"well") == b"well"
        link.stall()
        assert await heard(reader, writer, b"late") == b""
        link.heal()
        assert await reader.readexactly(4) == b"late"
        link.half_open()

        assert await heard(reader, writer, b"lost") == b""
        link.heal()
        assert await heard(reader, writer, b"lost") == b""
        assert await heard(*await connect(), b"well") == b"well"


async def test_a_flip_changes_one_bit() -> None:
    """Of the next bytes, and of no others."""
    async with linked() as (link, connect):
        reader, writer = await connect()
        link.flip(random.Random(1))
        changed = await heard(reader, writer, bytes(100))

        assert sum(it.bit_count() for it in changed) == link.flipped == 1
        assert await heard(reader, writer, bytes(100)) == bytes(100)


def reply(statuses: list[int], scores: list[float], version: int) -> Scores:
    """An answer to points."""
    versions = np.full(len(scores), version)
    return Scores(np.array(scores, np.float32), np.array(statuses, np.uint8), 3.0, version, versions)


def test_what_must_not_be_is_found(tmp_path: Path) -> None:
    """A score of another version, one that nobody published, a point twice that was tried once, a point without one."""
    from fault_bundles import gain
    from fault_device import DeviceProcess
    from fault_points import Points as Checked

    device = DeviceProcess("d1", tmp_path, "127.0.0.1:1")
    device.disk.close()
    points = Checked(device, {1: "aa", 2: "bb"}, seed=0)
    distance = np.array([0.5])
    points._check(reply([OK], [gain(1) * 0.5], 1), distance, 0)
    points._check(reply([DUPLICATE], [np.nan], 1), distance, 1)
    assert not points.complaints
    points._check(reply([OK], [gain(2) * 0.5], 1), distance, 0)
    points._check(reply([OK], [gain(3) * 0.5], 3), distance, 0)
    points._check(reply([DUPLICATE], [np.nan], 1), distance, 0)
    points._check(reply([INVALID], [np.nan], 1), distance, 0)

    assert len(points.complaints) == 4
    assert points.counts["wrong"] == 1
    assert points.counts["lost"] == 2


@pytest.mark.promise("E1")
@pytest.mark.parametrize("proven", [True, False], ids=["a-way-back", "none"])
async def test_a_device_that_is_started_on_a_full_disk_scores(tmp_path: Path, proven: bool) -> None:
    """With what has proven itself, else with what is on trial; with room the newest release is tried in the end."""
    from fault_device import SmallDisk

    disk, hub_files = SmallDisk(tmp_path / "disk"), tmp_path / "hub"
    if not disk.is_mounted:
        pytest.skip("no small disk can be mounted here")
    points = Points()
    try:
        async with DeviceHub() as hub:
            await hub.desire(hub.release(first := hub.offer(pump(), hub_files)))
            async with agent(disk.folder, hub.address, token=hub.token(tmp_path)) as running:
                await hub.state("TRYING")
                if proven:
                    await points.send(running, 60)
                    await hub.state("SERVING")
                    await hub.desire(hub.release(hub.offer(pump(2, alpha=0.3), hub_files), version=2))
                    await hub.state("TRYING", counter=2)
            disk.fill(os.getpid())
            async with agent(disk.folder, hub.address) as running:
                reply = await points.send(running, 10)
                assert running.host.get("pump").served.bundle_hash == first
                disk.free(os.getpid())
                await hub.state("TRYING", counter=2 if proven else 1)
                later = await eventually(lambda: trying(running, points, 2 if proven else 1))
    finally:
        disk.close()

    assert reply.version == 1
    assert set(reply.status_names) <= {"OK", "WARMING_UP"}
    assert set(later.status_names) <= {"OK", "WARMING_UP"}


async def trying(running: Agent, points: Points, version: int) -> Scores | None:
    """An answer of a version; None: another one gave it."""
    reply = await points.send(running, 1)
    return reply if reply.version == version else None


@pytest.mark.slow
@pytest.mark.promise("E2")
def test_faults_during_deliveries_lose_no_point_and_all_devices_converge(tmp_path: Path) -> None:
    """A slice of the benchmark, of each kind of fault that heals soon; real processes behind real links."""
    import edge_faults

    plan = edge_faults.Plan(**SLICE, download_bytes_per_second=500_000, round_seconds=15)
    part = edge_faults.faults(tmp_path, plan)
    found = part.figures

    assert not found["complaints"], part.table
    assert found["converged_devices"] == 2
    assert found["points"]["lost"] == found["scores"]["wrong"] == found["sights"].get("foreign", 0) == 0
    assert found["scores"]["checked"] > 500
    assert sum(found["faults"].values()) == 5
    assert found["starts"] == 3
    assert found["hub_restarts"] == found["bits_flipped"] == 1
    assert found["deliveries_completed"] >= 4
    assert "**missed**" not in part.table
