"""E1 and E2: hubs that are away for a day, and links that break in every way that links break."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Points, agent
from conftest import eventually
from device_hub import DeviceHub, pump
from tcp_proxy import TcpProxy

from detectors.bundle import GRAPH
from prunewatch.v1 import devices_pb2 as pb
from server.edge.patience import Patience

LARGE = 600
"""Features of a detector whose graph takes many pieces."""


async def settled(hub: DeviceHub) -> None:
    """Waits until the hub has nothing new for a moment."""
    known = -1
    while known != len(hub.received):
        known = len(hub.received)
        await asyncio.sleep(0.4)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        """Now."""
        return self.now


@pytest.mark.slow
@pytest.mark.promise("E1")
async def test_a_hub_that_is_away_for_a_day_costs_no_point(tmp_path: Path) -> None:
    """Every point has a score, also after a restart; the ring keeps its bound, and what it kept counts once."""
    hours, bound, clock = 24, 24 << 10, Clock()
    injected = {"clock": clock, "monotonic": clock, "given": {"outbox_bytes": bound}}
    points, statuses = Points(series=("a", "b")), []
    wanted = pb.FieldLimits(wanted=True, bytes_per_hour=1 << 20, windows_per_hour=30)
    async with DeviceHub(limits=wanted) as hub:
        address = hub.address
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, address, token=hub.token(tmp_path), **injected) as running:
            await hub.state("TRYING")
            statuses.append((await points.send(running, 60)).statuses)
            await hub.state("SERVING")
            await settled(hub)
    before = set(hub.kept)
    for life in range(2):
        async with agent(tmp_path, address, **injected) as running:
            for _ in range(hours // 2):
                clock.now += 3600

                def shaken(values: np.ndarray) -> np.ndarray:
                    values[30] = 50.0
                    return values

                statuses.append((await points.send(running, 240, shaken)).statuses)
                await running.flush()
                await running.write_reports()
                assert running.outbox.waiting_bytes <= bound
            assert not running.link.is_open
            dropped = running.outbox.dropped
            shown = running.metrics.registry.get_sample_value("prunewatch_outbox_dropped_total", {"kind": "normal"})
            assert dropped > 10 * life
            assert life or shown
    async with DeviceHub(key=hub.key, limits=wanted, address=address) as back:
        back.key_set, back.devices = hub.key_set, hub.devices
        back.kept, back.counter, back.files = dict(hub.kept), hub.counter, hub.files
        back.releases, back.faults.forget_kept = hub.releases, True
        async with agent(tmp_path, address, **injected) as running:
            await eventually(lambda: asyncio.sleep(0, back.received))  # they are kept, and the device does not know it
            await eventually(lambda: asyncio.sleep(0, back.connections > 1))
            back.faults.forget_kept = False
            await eventually(lambda: asyncio.sleep(0, running.outbox.waiting_bytes == 0))
            told = back.statuses[-1].dropped_reports

    status = np.concatenate(statuses)
    assert len(status) == 2 * points.at
    assert (status[6:] == 1).all()  # three of each series warm up, once
    later = sorted(set(back.kept) - before)
    assert later == sorted(set(back.received))
    assert told == dropped
    flagged = [back.kept[it].points for it in later if back.kept[it].points.flagged]
    assert len(flagged) > 10
    assert all(len(it.packed_values) == 8 * len(it.stamps) for it in flagged)


@pytest.mark.slow
@pytest.mark.promise("E2")
async def test_a_download_over_a_bad_link_goes_on_where_it_broke(tmp_path: Path) -> None:
    """Cut, stalled, half-open, with a bit flipped: what served serves until all bytes are there and right."""
    async with DeviceHub() as hub, TcpProxy(hub.address) as proxy:
        hub.faults.chunk_bytes, hub.faults.chunk_seconds = 2000, 0.02
        large = pump(2, n_features=2, wasted=1)  # 160 kB
        graph = large.manifest.files[GRAPH].sha256
        await hub.desire(hub.release(first := hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, proxy.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            points = Points()
            await points.send(running, 60)
            await hub.state("SERVING")
            partial = tmp_path / "store/downloads" / f"{graph}.partial"

            def size() -> int:
                return partial.stat().st_size if partial.exists() else 0

            async def grown(to: int) -> None:
                await eventually(lambda: asyncio.sleep(0, size() >= to))
                assert running.host.get("pump").served.bundle_hash == first
                assert not (tmp_path / "store/detectors/pump/b").exists()

            await hub.desire(hub.release(hub.offer(large, tmp_path), version=2))
            await grown(20_000)
            proxy.cut()
            await grown(45_000)
            proxy.stalled = True  # half-open: nobody says that it is over
            await eventually(lambda: asyncio.sleep(0, not running.link.is_open))
            proxy.stalled = False
            proxy.cut()
            await grown(70_000)
            proxy.deaf = True
            await eventually(lambda: asyncio.sleep(0, not running.link.is_open))
            proxy.deaf = False
            proxy.cut()
            await grown(95_000)
            proxy.flip = 1
            await hub.state("TRYING", counter=2, seconds=40)
            reply = await points.send(running, 1)

    offsets = [offset for sha256, offset in hub.downloads if sha256 == graph]
    assert reply.version == 2
    assert sorted(offsets)[:1] == [0]
    assert len([it for it in offsets if it > 0]) >= 3, offsets
    assert all(later >= earlier or later == 0 for earlier, later in pairwise(offsets))


@pytest.mark.promise("E2")
async def test_a_link_that_only_looks_open_is_given_up(tmp_path: Path) -> None:
    """Where answers vanish the device notices, and comes back when they do not."""
    async with (
        DeviceHub() as hub,
        TcpProxy(hub.address) as proxy,
        agent(tmp_path, proxy.address, token=hub.token(tmp_path)) as running,
    ):
        await eventually(lambda: asyncio.sleep(0, running.link.is_open))
        proxy.deaf = True
        await eventually(lambda: asyncio.sleep(0, not running.link.is_open))
        proxy.deaf = False
        proxy.cut()
        await eventually(lambda: asyncio.sleep(0, running.link.is_open))


def unreadable(hub: DeviceHub) -> tuple[bytes, bytes]:
    """A message that is none any more: its text is no UTF-8."""
    name = hub.key.key_id.encode()
    return name, b"\xff" + name[1:]


def unsigned(hub: DeviceHub) -> tuple[bytes, bytes]:
    """A release that nobody has signed as it is now."""
    return b'"pump"', b'"pumq"'


@pytest.mark.promise("E2")
@pytest.mark.parametrize("harm", [unreadable, unsigned])
async def test_what_was_damaged_on_the_way_is_said_again(tmp_path: Path, harm: Any) -> None:
    """The device asks anew for what it can not read or trust; what served serves on."""
    async with DeviceHub() as hub, TcpProxy(hub.address) as proxy:
        await hub.desire(hub.release(first := hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, proxy.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            assert running.host.get("pump").served.bundle_hash == first
            proxy.swap = harm(hub)
            await hub.desire(hub.release(second := hub.offer(pump(2, alpha=0.3), tmp_path), version=2))
            await hub.state("TRYING", counter=2)

            assert proxy.swap is None
            assert running.host.get("pump").served.bundle_hash == second
            assert hub.connections == 2


@pytest.mark.promise("E2")
async def test_a_token_for_downloads_that_is_not_taken_is_asked_for_anew(tmp_path: Path) -> None:
    """One that was damaged on the way is not shown for ever."""
    async with DeviceHub() as hub, TcpProxy(hub.address) as proxy:
        proxy.swap = b"download", b"downloac"
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, proxy.address, token=hub.token(tmp_path)):
            await hub.state("TRYING")

        assert proxy.swap is None
        assert hub.connections == 2


def test_devices_that_were_cut_off_together_do_not_come_back_together() -> None:
    """Waits grow to a bound and are spread over its upper half."""
    waits = [Patience(random.Random(seed), first=1, longest=60) for seed in range(50)]
    last = [[it.next() for _ in range(10)][-1] for it in waits]

    assert all(30 <= it <= 60 for it in last)
    assert max(last) - min(last) > 15
    waits[0].reset()
    assert waits[0].next() <= 1
