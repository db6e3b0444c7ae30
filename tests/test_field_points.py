"""What devices report: once each, whatever comes twice, too much, or in the middle of a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import NOW, Hub, eventually
from crashing import FEATURES, Node, stock
from devices import Device, Operator, operating, points
from fleet_hub import CLASSES, Clock, fleet_hub, offer
from google.protobuf import struct_pb2

from prunewatch.client import Client
from prunewatch.v1 import devices_pb2 as pb
from server.fleet import rows
from server.fleet.limits import Bucket
from server.fleet.reports import ProbeReport
from server.history import History
from server.stretches import read_points, read_stretches

TIMES = NOW + 1_000_000_000 * np.arange(200)


@pytest.fixture
def clock() -> Clock:
    """The hub's."""
    return Clock()


@pytest.fixture
async def hub(tmp_path: Path, clock: Clock) -> AsyncIterator[Hub]:
    """A hub with a detector on `pi4`."""
    async with fleet_hub(tmp_path, clock) as running:
        await offer(running)
        yield running


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[Operator]:
    """Its operator."""
    async with operating(hub) as it:
        yield it


@pytest.fixture
async def north(operator: Operator) -> Device:
    """A device that is connected."""
    return (await operator.connected("north"))[0]


async def kept(device: Device, sequence: int) -> None:
    """Waits until a report is kept."""

    async def known() -> bool:
        return device.kept >= sequence

    await eventually(known)


async def history(hub: Hub, name: str = "pump") -> dict[str, list[int]]:
    """Stamps of the points that are kept for training, by series; without what sets runs apart."""
    await hub.fleet._field.drain()
    hosted = hub.host.get(name)
    found = read_points(await hosted.history_paths(), hosted.features)
    finite = np.isfinite(found.values).all(axis=1)
    return {
        series: found.stamps[finite & (found.series == number)].tolist() for number, series in enumerate(found.names)
    }


async def anomalies(hub: Hub) -> list[tuple[str, int, int]]:
    """Series, stamp and version of all that are kept, oldest first."""
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        return [(it.series, it.stamp, it.version) async for it in client.anomalies("pump")][::-1]


async def test_points_become_part_of_the_history(hub: Hub, north: Device) -> None:
    """Under the name of device and series, with their flags, as points that were streamed here are."""
    values = np.stack([np.arange(100), -np.arange(100)], axis=1)
    scores = np.zeros(100)
    scores[60] = 5
    await north.report(points(1, TIMES[:100], scores, values=values))
    await kept(north, 1)

    assert await history(hub) == {"north/a": TIMES[:100].tolist()}
    hosted = hub.host.get("pump")
    found = read_points(await hosted.history_paths(), hosted.features)
    assert np.flatnonzero(found.flagged[1:]).tolist() == [60]
    assert np.array_equal(found.values[1:], values)
    assert hosted.accepted == 101
    runs = read_stretches(await hosted.history_paths(), hosted.features, imported=False, guard=25)
    assert [len(run.stamps) for run in runs] == [35, 14]


async def test_runs_that_do_not_follow_each_other_are_not_learned_as_one(hub: Hub, north: Device) -> None:
    """Two runs of a series are two stretches, in whatever order they come, and in the middle of what was known."""
    await north.report(points(1, TIMES[100:150]), points(2, TIMES[:50]), points(3, TIMES[20:130]))
    await kept(north, 3)
    await history(hub)

    hosted = hub.host.get("pump")
    runs = read_stretches(await hosted.history_paths(), hosted.features, imported=False)
    assert [(run.stamps[0], len(run.stamps)) for run in runs] == [(TIMES[100], 50), (TIMES[0], 50), (TIMES[50], 50)]


async def test_what_is_sent_twice_counts_once(hub: Hub, operator: Operator, north: Device) -> None:
    """Reports of a link that broke before they were acknowledged, and the same points in another report."""
    scores = np.full(10, 5.0)
    await north.report(points(1, TIMES[:10], scores, flagged=True))
    await kept(north, 1)
    await north.hang_up()
    await north.connect()
    assert north.kept == 1

    await north.report(points(1, TIMES[:10], scores, flagged=True))
    await north.report(points(2, TIMES[5:15], scores, flagged=True))
    await kept(north, 2)

    assert await history(hub) == {"north/a": TIMES[:15].tolist()}
    assert await anomalies(hub) == [("north/a", stamp, 0) for stamp in TIMES[:15]]
    value = hub.metrics.registry.get_sample_value
    count = {
        it: value("prunewatch_field_points_total", {"detector": "pump", "outcome": it}) for it in ("kept", "repeated")
    }
    assert count == {"kept": 15, "repeated": 5}


async def test_devices_do_not_collide(hub: Hub, operator: Operator, north: Device) -> None:
    """The same series and stamps of two devices are two series."""
    (south,) = await operator.connected("south")
    for device in (north, south):
        await device.report(points(1, TIMES[:10]))
        await kept(device, 1)

    assert await history(hub) == {"north/a": TIMES[:10].tolist(), "south/a": TIMES[:10].tolist()}


async def test_anomalies_are_told_and_kept(hub: Hub, north: Device) -> None:
    """Whoever watches hears of them, with the version of the release that flagged them."""
    counter = north.releases["pump"].counter
    scores = np.r_[np.zeros(5), 4.0, 3.0, 2.9]
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        heard: list[Any] = []

        async def listen() -> None:
            async for it in client.watch("pump"):
                heard.append(it)  # noqa: PERF401  (it never ends)

        listening = asyncio.create_task(listen())
        await eventually(lambda: _watched(hub))
        await north.report(points(1, TIMES[:8], scores, flagged=True, counter=counter))
        await eventually(lambda: _heard(heard, 2))
        listening.cancel()

    assert [(it.series, it.stamp, it.version) for it in heard] == [("north/a", TIMES[5], 1), ("north/a", TIMES[6], 1)]
    assert await anomalies(hub) == [("north/a", TIMES[5], 1), ("north/a", TIMES[6], 1)]


async def _watched(hub: Hub) -> bool:
    return bool(hub.host.watchers.of("pump"))


async def _heard(heard: list[Any], count: int) -> bool:
    return len(heard) == count


IMPOSSIBLE: list[dict[str, Any]] = [
    {"features": ("f2", "f1")},
    {"features": ("f1", "f2", "f3"), "values": np.zeros((10, 3))},
    {"values": np.full((10, 2), np.nan)},
    {"values": np.full((10, 2), np.inf)},
    {"series": ""},
    {"series": "x" * 201},
    {"series": "a\n"},
    {"stamps": TIMES[:10][::-1]},
    {"stamps": np.repeat(TIMES[0], 10)},
    {"stamps": TIMES[:10] + int(86400e9)},
    {"scores": np.zeros(9)},
    {"values": np.zeros((9, 2))},
    {"detector": "../pump"},
    {"detector": "other"},
]


async def test_points_that_can_not_be_are_not_kept(hub: Hub, north: Device) -> None:
    """The report counts as heard, so that it is not sent for ever; the link stays; nothing is learned of it."""
    for number, fields in enumerate(IMPOSSIBLE, start=1):
        given = {"stamps": TIMES[:10], **fields}
        await north.report(points(number, given.pop("stamps"), given.pop("scores", None), **given))
        await kept(north, number)
        assert await history(hub) == {}, fields

    await north.report(points(len(IMPOSSIBLE) + 1, TIMES[:10]))
    await kept(north, len(IMPOSSIBLE) + 1)
    assert await history(hub) == {"north/a": TIMES[:10].tolist()}


async def test_numbers_that_do_not_ascend_end_the_link(hub: Hub, north: Device) -> None:
    """Nothing of such a message is kept."""
    await north.report(points(2, TIMES[:10]), points(1, TIMES[10:20]))

    assert await north.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await history(hub) == {}


async def test_a_device_sends_no_more_than_it_may(tmp_path: Path) -> None:
    """Beyond its bytes or windows an hour points are let go; others have limits of their own; the next hour goes on."""
    field = {"bytes_per_hour": 3000, "windows_per_hour": 2}
    async with fleet_hub(tmp_path, fleet={"field": field}) as hub, operating(hub) as operator:
        await offer(hub)
        north, south = await operator.connected("north", "south")
        assert (north.welcomes[0].field.bytes_per_hour, north.welcomes[0].field.windows_per_hour) == (3000, 2)
        scores = np.full(2, 5.0)
        for number in range(4):
            await north.report(points(number + 1, TIMES[2 * number : 2 * number + 2], scores, flagged=True))
        await north.report(points(5, TIMES[100:200]))  # 2,000 bytes
        await north.report(points(6, TIMES[50:100]))
        await south.report(points(1, TIMES[:10]))
        await kept(north, 6)
        await kept(south, 1)

        found = await history(hub)
        assert found == {"north/a": [*TIMES[100:200], *TIMES[:4]], "south/a": TIMES[:10].tolist()} or found == {
            "north/a": [*TIMES[:4], *TIMES[100:200]],
            "south/a": TIMES[:10].tolist(),
        }


async def test_a_hub_that_wants_no_points_takes_none(tmp_path: Path) -> None:
    """Devices are told so; what comes all the same is let go."""
    async with fleet_hub(tmp_path, fleet={"field": {"wanted": False}}) as hub, operating(hub) as operator:
        await offer(hub)
        (north,) = await operator.connected("north")
        await north.report(points(1, TIMES[:10]))
        await kept(north, 1)

        assert not north.welcomes[0].field.wanted
        assert await history(hub) == {}


def test_a_bucket_fills_with_time() -> None:
    """So much at once, and so much again in a period."""
    now = [0.0]
    bucket = Bucket(10, 100.0, lambda: now[0])

    assert [bucket.take(6), bucket.take(6), bucket.take(4), bucket.take(1)] == [True, False, True, False]
    now[0] += 50
    assert [bucket.take(5), bucket.take(1)] == [True, False]
    now[0] += 1e6
    assert [bucket.take(10), bucket.take(1)] == [True, False]
    assert bucket.overdraw(20) == 200.0


async def test_series_of_devices_are_none_of_the_hubs(tmp_path: Path, clock: Clock) -> None:
    """After a restart the hub goes on with its own series and with no device's."""
    async with fleet_hub(tmp_path, clock) as hub, operating(hub) as operator:
        await offer(hub)
        (north,) = await operator.connected("north")
        await north.report(points(1, TIMES[:10]))
        await kept(north, 1)
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            await client.score("pump", series=["here"], stamps=TIMES[:5], values=np.zeros((5, 2)))
    for path in (tmp_path / "store" / "series").glob("*"):
        path.unlink()
    async with fleet_hub(tmp_path, clock) as hub, Client(f"127.0.0.1:{hub.listener.port}") as client:
        assert [it.name async for it in client.series("pump")] == ["here"]


async def test_costs_are_kept_and_passed_on(hub: Hub, north: Device) -> None:
    """What can not be (0, NaN, hours) is left out; the rest is kept by device, and whoever asked is told once."""
    told: list[tuple[str, ProbeReport]] = []
    hub.fleet.on_probe = lambda device_class, report: told.append((device_class, report))
    conditions = struct_pb2.Struct()
    conditions.update({"threads": 1, "governor": "performance"})
    costs = {"aa" * 32: (1e-4, 2e-4), "bb" * 32: (0.0, 1e-4), "cc" * 32: (float("nan"), 1.0), "dd" * 32: (1.0, 9e9)}
    result = pb.ProbeResult(
        probe_id="12" * 8,
        batch=64,
        costs=[pb.GraphCost(sha256=sha, p50_seconds=p50, p99_seconds=p99) for sha, (p50, p99) in costs.items()],
        conditions=conditions,
    )

    for _ in range(2):
        await north.report(pb.DeviceReport(sequence=1, time=NOW, probe=result))
    await kept(north, 1)

    await eventually(lambda: _heard(told, 1))
    device_class, report = told[0]
    assert (device_class, report.device, report.probe_id, report.batch) == ("pi4", "north", "12" * 8, 64)
    assert report.costs == {"aa" * 32: (1e-4, 2e-4)}
    assert (report.conditions["governor"], report.time_ns) == ("performance", NOW)
    assert hub.fleet.book.costs("pi4", "aa" * 32, 64) == {"north": (1e-4, 2e-4)}
    with hub.store.catalog.reading() as connection:
        assert rows.costs_of(connection, "pi4", "bb" * 32, 64) == {}


async def test_a_full_disk_loses_nothing(hub: Hub, north: Device) -> None:
    """Points stay in the inbox until they are durable in the history, and are there once."""
    hosted = hub.host.get("pump")
    await hub.roster.learn_features()
    sink = hosted.history

    class Full:
        rows = 0

        def append(self, *columns: Any) -> None:
            sink.append(*columns)

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

        def paths(self) -> list[Path]:
            return sink.paths()

    hosted.history = Full()
    await north.report(points(1, TIMES[:10]))
    await kept(north, 1)
    assert await hub.fleet._field.drain()
    assert await hub.fleet._field.drain()
    hosted.history = sink

    assert await history(hub) == {"north/a": TIMES[:10].tolist()}


# crashes


@pytest.mark.slow
async def test_a_hub_that_dies_before_it_answers_keeps_reports_once(tmp_path: Path) -> None:
    """A kill -9 between report and acknowledgement, then on the way into the history: all points are there, once."""
    root = tmp_path / "store"
    stock(root)
    detector = {"features": FEATURES, "time": "index", "device_classes": ["hub", "pi4"]}
    node = Node(root, tmp_path / "log.txt", device_classes=CLASSES, detectors={"pump": detector})
    first = points(1, np.arange(30), np.r_[np.zeros(29), 5.0], flagged=True)
    second = points(2, np.arange(30, 40))
    try:
        node.start("reports.kept")
        async with grpc.aio.insecure_channel(node.address) as channel:
            device = await (await Operator(channel).enrolled("north")).connect()
            await device.report(first)
            assert await asyncio.to_thread(node.wait_dead)
            await device.hang_up()
        node.start("field.kept:1")
        assert await asyncio.to_thread(node.wait_dead)
        node.start()
        async with grpc.aio.insecure_channel(node.address) as channel, Client(node.address) as client:
            again = Device(channel, "north")
            again.key, again.trust = device.key, device.trust
            await again.connect()
            assert again.kept == 1
            await again.report(first)
            await again.report(second)
            await kept(again, 2)
            assert [(it.series, it.stamp) async for it in client.anomalies("pump")] == [("north/a", 29)]
            await again.hang_up()
        node.process.terminate()
        await asyncio.to_thread(node.process.wait, 20)
    finally:
        node.kill()

    found = read_points(History(root / "history" / "pump", FEATURES).paths(), FEATURES)
    whole = np.isfinite(found.values).all(axis=1)
    assert sorted(found.stamps[whole].tolist()) == list(range(40))
