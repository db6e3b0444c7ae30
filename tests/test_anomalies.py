"""Anomalies found in the stream: kept with what made them, listed in pages, and never in the way of scoring."""

from __future__ import annotations

import asyncio
import doctest
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

import server.anomalies
import server.commands.tables
import server.csv_input
from detectors.archive import load_bundle
from detectors.stamps import Status
from prunewatch.client import Batch, Client, ServiceError
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1 import scoring_pb2_grpc
from server.anomalies import Anomaly, Found, shares_of, top_shares
from server.anomaly_keeping import MAX_WAITING, AnomalyBuffer, AnomalyKeeper, AnomalyQuery
from server.anomaly_keeping import Batch as Kept
from server.app import Hub
from server.catalog import Catalog
from server.cli import main
from server.edge import Edge
from server.schema import SCHEMA_VERSION, UPGRADES

WARM_UP = 3
SECOND = 10**9


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with a fitted detector `pump` of two features; its threshold is 3."""
    await publish(hub, ewma_bundle("pump"))
    return hub


async def alarm(client: Client, *values: tuple[float, float], series: str = "a", start: int = 0, **how) -> None:
    """Sends three calm points and then `values` of one series, a second apart from NOW + `start` seconds on."""
    points = np.array([(0, 0)] * WARM_UP + list(values), np.float32)
    stamps = NOW + SECOND * (np.arange(len(points)) + start)
    await client.score(how.pop("detector", "pump"), series=[series], stamps=stamps, values=points, **how)


async def listed(client: Client, detector: str = "pump", **asked) -> list:
    """What the client's iterator gives."""
    return [anomaly async for anomaly in client.anomalies(detector, **asked)]


def seconds(anomalies) -> list[int]:
    """Stamps in seconds after NOW."""
    return [(it.stamp - NOW) // SECOND for it in anomalies]


@contextmanager
def full_disk(catalog: Catalog) -> Iterator[None]:
    """The catalog may not grow inside the block: SQLite answers as it does on a full disk."""

    def limit(connection, _record) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    event.listen(catalog._engine, "connect", limit)
    catalog._engine.dispose()
    yield
    event.remove(catalog._engine, "connect", limit)
    catalog._engine.dispose()


# what is kept


async def test_an_anomaly_is_kept_with_what_made_it(pump: Hub, client: Client) -> None:
    """Series, stamp, score, threshold, version, the top features with their shares, and when it was found."""
    before = time.time()
    await alarm(client, (4, 12), (0, 0))

    (found,) = await listed(client)

    assert (found.detector, found.series, found.stamp, found.score) == ("pump", "a", NOW + WARM_UP * SECOND, 8.0)
    assert (found.threshold, found.version) == (3.0, 1)
    assert list(found.contributions.items()) == [("f2", 0.75), ("f1", 0.25)]
    assert before <= found.found_seconds <= time.time()


async def test_the_list_says_what_watch_said(pump: Hub, client: Client) -> None:
    """A reader of `Watch` and one of `ListAnomalies` get the same fields with the same values."""
    watched = client.watch("pump")
    waiting = asyncio.create_task(anext(watched))
    await eventually(lambda: asyncio.sleep(0, pump.host.watchers.of("pump")))
    await alarm(client, (1, 50))
    heard = await waiting
    await watched.aclose()

    assert await listed(client) == [heard]
    assert sum(heard.contributions.values()) == pytest.approx(1)
    # and on the wire: the bytes of the one are the other
    message = pb.Anomaly(detector="detectors/pump", series="a", stamp=1, score=4, find_time={"seconds": 5})
    assert pb.WatchResponse.FromString(message.SerializeToString()).find_time.seconds == 5
    assert {it.number for it in pb.Anomaly.DESCRIPTOR.fields} | {8} == {
        it.number for it in pb.WatchResponse.DESCRIPTOR.fields
    }


async def test_only_the_most_important_features_are_named(hub: Hub, client: Client) -> None:
    """Of many features the three largest, largest first; of equal ones the first."""
    await publish(hub, ewma_bundle("pump", n_features=5))
    values = np.zeros((4, 5), np.float32)
    values[3] = [10, 40, 0, 10, 20]
    await client.score("pump", series=["a"], stamps=NOW + np.arange(4), values=values)

    (found,) = await listed(client)

    assert list(found.contributions) == ["f2", "f5", "f1"]
    np.testing.assert_allclose(list(found.contributions.values()), [0.5, 0.25, 0.125])


async def test_ephemeral_points_leave_no_anomaly(pump: Hub, client: Client) -> None:
    """What is only evaluated is not listed, neither in a call nor in a stream."""
    await alarm(client, (9, 9), ephemeral=True)
    values = np.array([(0, 0)] * WARM_UP + [(9, 9)], np.float32)
    async for _ in client.score_stream("pump", [Batch(values, series=["a"])], ephemeral=True):
        pass

    assert await listed(client) == []


async def test_streams_keep_anomalies_of_all_their_series(pump: Hub, client: Client) -> None:
    """Messages of a stream that name a series by its index are listed by its name."""
    calm, high = [(0, 0)] * 2, [(0, 0), (9, 9)]
    batches = [
        Batch(calm, stamps=[NOW, NOW], series=["north", "south"]),
        *(Batch(calm, stamps=[NOW + t] * 2) for t in (1, 2)),
        Batch(high, stamps=[NOW + 3, NOW + 3]),
        Batch(high, stamps=[NOW + 4, NOW + 4], series_index=[1, 0]),
    ]
    async for _ in client.score_stream("pump", batches):
        pass

    assert [(it.series, it.stamp - NOW) for it in await listed(client)] == [("north", 4), ("south", 3)]


async def test_an_anomaly_names_the_version_that_scored_it(pump: Hub, client: Client) -> None:
    """After a swap new anomalies name the new version; the old ones do not change."""
    await alarm(client, (9, 9))
    await publish(pump, ewma_bundle("pump", 2))
    await alarm(client, (9, 9), start=10)

    assert [it.version for it in await listed(client)] == [2, 1]


# asking


async def test_the_newest_come_first_and_pages_miss_none(pump: Hub, client: Client) -> None:
    """Pages go through all of them once, newest first, also while new ones are found in between."""
    await alarm(client, *[(99, 0)] * 7)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        stub = scoring_pb2_grpc.ScoringServiceStub(channel)
        pages, token = [], ""
        while token or not pages:
            request = pb.ListAnomaliesRequest(parent="detectors/pump", page_size=3, page_token=token)
            page = await stub.ListAnomalies(request)
            pages.append([(it.stamp - NOW) // SECOND for it in page.anomalies])
            token = page.next_page_token
            await alarm(client, (999, 0), series=f"new{len(pages)}")

    assert pages == [[9, 8, 7], [6, 5, 4], [3]]


async def test_series_of_one_request_are_listed_by_time(pump: Hub, client: Client) -> None:
    """A request with one series after the other is not: its latest stamps are its newest anomalies."""
    values = np.array([(0, 0)] * WARM_UP + [(9, 9), (99, 99)], np.float32)
    await client.score(
        "pump",
        series=["a", "b"],
        series_index=[0] * 5 + [1] * 5,
        stamps=np.tile(NOW + np.arange(5), 2),
        values=np.tile(values, (2, 1)),
    )

    found = await listed(client)

    assert [(it.series, it.stamp - NOW) for it in found] == [("b", 4), ("a", 4), ("b", 3), ("a", 3)]


async def test_filters_by_series_and_by_stamps(pump: Hub, client: Client) -> None:
    """Of one series; from a stamp on (included) to a stamp (not included); both; a limit cuts the oldest."""
    for series in ("a", "b"):
        await alarm(client, *[(99, 0)] * 5, series=series)

    def at(second: int) -> int:
        return NOW + second * SECOND

    assert {it.series for it in await listed(client, series="b")} == {"b"}
    assert seconds(await listed(client, series="a", start=at(4), end=at(6))) == [5, 4]
    assert seconds(await listed(client, start=at(7))) == [7, 7]
    assert seconds(await listed(client, series="a", end=at(4))) == [3]
    assert await listed(client, start=at(4), end=at(4)) == []
    assert await listed(client, series="nobody") == []
    assert seconds(await listed(client, series="a", limit=2)) == [7, 6]
    assert await listed(client, limit=0) == []


async def test_the_client_asks_for_as_many_pages_as_there_are(pump: Hub, client: Client) -> None:
    """More anomalies than a page may have come out of one iterator, all of them or as many as wanted."""
    points = np.full((2200, 2), 99, np.float32)
    points[:WARM_UP] = 0
    points[WARM_UP::2] *= -1  # the carried mean never follows
    await client.score("pump", series=["a"], stamps=NOW + np.arange(2200), values=points)

    every = [it.stamp - NOW for it in await listed(client)]

    assert every == list(range(2199, WARM_UP - 1, -1))
    assert [it.stamp - NOW for it in await listed(client, limit=1500)] == every[:1500]


BAD = {
    "not a name": ({"parent": "pump"}, "parent"),
    "no name": ({"parent": ""}, "parent"),
    "negative size": ({"page_size": -1}, "page_size"),
    "not a token": ({"page_token": "none"}, "page_token"),
    "not ASCII": ({"page_token": "é"}, "page_token"),
    "right length, not ours": ({"page_token": "AAAAAAAAAAAAAAAA"}, "page_token"),
    "backwards": ({"start_stamp": 5, "end_stamp": 4}, "end_stamp"),
}


@pytest.mark.parametrize("change", BAD)
async def test_what_can_not_be_asked_names_the_field(pump: Hub, change: str) -> None:
    """A name, size, token or range that can not be is INVALID_ARGUMENT with the field's name."""
    fields, field = BAD[change]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scoring_pb2_grpc.ScoringServiceStub(channel).ListAnomalies(
                pb.ListAnomaliesRequest(**{"parent": "detectors/pump", **fields})
            )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{field}: ")


async def test_a_token_belongs_to_what_was_asked(pump: Hub, client: Client) -> None:
    """A page token with another filter or detector is refused; one whose row is gone meanwhile goes on."""
    await publish(pump, ewma_bundle("fan"))
    await alarm(client, *[(99, 0)] * 5)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        stub = scoring_pb2_grpc.ScoringServiceStub(channel)
        first = await stub.ListAnomalies(pb.ListAnomaliesRequest(parent="detectors/pump", page_size=2))
        same = {"parent": "detectors/pump", "page_size": 2, "page_token": first.next_page_token}
        for other in ({"series": "a"}, {"start_stamp": 0}, {"end_stamp": 0}, {"parent": "detectors/fan"}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListAnomalies(pb.ListAnomaliesRequest(**{**same, **other}))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pump.store.catalog._writing() as connection:
            connection.exec_driver_sql(f"DELETE FROM anomalies WHERE stamp = {first.anomalies[-1].stamp}")
        second = await stub.ListAnomalies(pb.ListAnomaliesRequest(**same))

    assert [(it.stamp - NOW) // SECOND for it in second.anomalies] == [5, 4]


async def test_an_unknown_detector_is_not_found(pump: Hub, client: Client) -> None:
    """NOT_FOUND, with those there are."""
    with pytest.raises(ServiceError) as caught:
        await listed(client, "fan")

    assert (caught.value.code, caught.value.hint) == ("NOT_FOUND", "There are: pump.")


async def test_a_device_keeps_none_and_says_so(pump: Hub, client: Client) -> None:
    """An edge scores and announces; asked for a list it answers UNIMPLEMENTED: all that it holds is for its page."""
    folder = pump.store.bundle_folder(pump.store.catalog.serving("pump", "hub").bundle_hash)
    edge = Edge(load_bundle(folder), hub_settings(Path("unused")))
    await edge.start()
    async with Client(f"127.0.0.1:{edge.listener.port}") as device:
        await alarm(device, (9, 9))
        with pytest.raises(ServiceError) as caught:
            await listed(device)
    await edge.stop()

    assert (caught.value.code, "hub" in caught.value.hint) == ("UNIMPLEMENTED", True)
    assert edge.host.anomalies is None


# life


async def test_anomalies_survive_a_restart(tmp_path: Path) -> None:
    """Draining writes what waits: after a restart the list is the same, and new ones are newer."""
    settings = hub_settings(tmp_path, history_flush_seconds="1h")
    lists = []
    for start in (0, 100):
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await hub.start()
        if not lists:
            await publish(hub, ewma_bundle("pump"))
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            if start:
                lists.append(await listed(client))
            await alarm(client, (9, 9), start=start)
            if not start:
                lists.append([])  # not asked: asking would write it
        await hub.stop()
    catalog = Catalog(settings.store / "catalog.db")
    kept = catalog.anomalies(AnomalyQuery("pump"))
    catalog.close()

    assert seconds(lists[1]) == [WARM_UP]
    assert seconds(kept) == [100 + WARM_UP, WARM_UP]


async def test_a_smaller_retention_holds_after_a_restart(tmp_path: Path) -> None:
    """`max_anomalies` bounds what was kept before too, without a new anomaly; 0 keeps none."""
    kept = []
    for start, most in ((0, 3), (100, 2), (200, 0)):
        pump = {"features": ["f1", "f2"], "history": {"max_anomalies": most}}
        hub = Hub(hub_settings(tmp_path, detectors={"pump": pump}), trainer=QUICK_TRAINER)
        await hub.start()
        if not start:
            await publish(hub, ewma_bundle("pump"))
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            kept.append(seconds(await listed(client)))
            await alarm(client, *[(99, 0)] * 4, start=start)
            kept.append(seconds(await listed(client)))
        dropped = hub.metrics.registry.get_sample_value("prunewatch_anomalies_dropped_total", {"detector": "pump"})
        await hub.stop()

    assert kept == [[], [6, 5, 4], [6, 5], [106, 105], [], []]
    assert dropped == 0


async def test_anomalies_are_written_by_themselves(tmp_path: Path) -> None:
    """Without anybody asking they are durable after `history_flush_seconds`."""
    hub = Hub(hub_settings(tmp_path, history_flush_seconds="20ms"), trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump"))
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await alarm(client, (9, 9))
    kept = await eventually(lambda: asyncio.to_thread(hub.store.catalog.anomalies, AnomalyQuery("pump")))
    await hub.stop()

    assert len(kept) == 1


async def test_deleting_a_detector_deletes_its_anomalies(pump: Hub, client: Client) -> None:
    """They are gone from list and disk, those that waited too; one that takes the name has none, others keep theirs."""
    await publish(pump, ewma_bundle("fan"))
    await alarm(client, (9, 9), detector="fan")
    await alarm(client, (9, 9))
    assert len(await listed(client)) == 1
    await alarm(client, (9, 9), start=10)

    await client.delete("pump")
    with pytest.raises(ServiceError, match="no detector 'pump'"):
        await listed(client)
    await client.create("pump", {"features": ["f1", "f2"]})

    assert await listed(client) == []
    assert len(await listed(client, "fan")) == 1


async def test_what_is_being_written_does_not_reach_the_next_of_the_name(pump: Hub, client: Client) -> None:
    """Deleting waits for a write that has begun, so that a new detector of the same name starts with none."""
    catalog, keep = pump.store.catalog, pump.store.catalog.keep_anomalies

    def slowly(batches) -> None:
        time.sleep(0.3)
        keep(batches)

    pump.host.anomalies._book = type("Slow", (), {"keep_anomalies": staticmethod(slowly)})
    await alarm(client, (9, 9))
    flushing = asyncio.create_task(pump.host.flush())
    await asyncio.sleep(0.05)
    await client.delete("pump")
    await client.create("pump", {"features": ["f1", "f2"]})
    await flushing

    assert catalog.anomalies(AnomalyQuery("pump")) == []


async def test_a_caller_who_leaves_does_not_lose_anomalies(pump: Hub, client: Client) -> None:
    """A list whose caller goes away while it is written is written all the same, and the next one has everything."""
    keep = pump.store.catalog.keep_anomalies
    calls = []

    class Failing:
        """Fails once, slowly."""

        def keep_anomalies(self, batches) -> None:
            calls.append(1)
            if len(calls) == 1:
                time.sleep(0.2)
                raise OSError(28, "No space left on device")
            keep(batches)

    pump.host.anomalies._book = Failing()
    await alarm(client, (9, 9))
    leaving = asyncio.create_task(pump.host.anomalies.flush())
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await pump.host.flush()

    assert len(pump.store.catalog.anomalies(AnomalyQuery("pump"))) == 1


# bounds


async def test_a_flood_leaves_the_newest_and_nothing_grows(tmp_path: Path) -> None:
    """Every point an anomaly: memory holds a bounded number, the catalog the newest ones, its file stops growing."""
    hub = Hub(hub_settings(tmp_path, history_flush_seconds="1h"), trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump"), time="index")
    n = 8192
    names, high = [f"s{i}" for i in range(n)], np.full((n, 2), 1e6, np.float32)
    database = hub.store.root / "catalog.db"
    sizes, waiting = [], []
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        for _ in range(WARM_UP):
            await client.score("pump", series=names, values=high)
        for _ in range(4):
            for _ in range(3):
                reply = await client.score("pump", series=names, values=high)
                waiting.append(len(hub.host.anomalies._buffers["pump"]))
            await hub.host.flush()
            sizes.append(database.stat().st_size + database.with_name("catalog.db-wal").stat().st_size)
        newest = [it.stamp for it in await listed(client)]
    label = {"detector": "pump"}
    found, dropped = (
        hub.metrics.registry.get_sample_value(f"prunewatch_{it}_total", label)
        for it in ("anomalies", "anomalies_dropped")
    )
    await hub.stop()

    assert reply.anomalies.all()
    assert waiting == [n, MAX_WAITING, MAX_WAITING] * 4
    assert newest == [WARM_UP + 11] * n + [WARM_UP + 10] * (MAX_WAITING - n)
    assert sizes[-1] < sizes[-2] + (1 << 20)
    assert (found, dropped) == (12 * n, 12 * n - 4 * MAX_WAITING)


async def test_a_full_disk_never_fails_a_score(pump: Hub, client: Client, caplog) -> None:
    """While anomalies can not be written points are scored and a list has what was durable; then nothing is missing."""
    await alarm(client, (9, 9))
    assert len(await listed(client)) == 1
    values = np.full((3000, 2), 1e6, np.float32)
    values[::2] *= -1
    with full_disk(pump.store.catalog):
        reply = await client.score("pump", series=["b"], stamps=NOW + np.arange(3000), values=values)
        await pump.host.flush()
        await pump.host.flush()
        during = await listed(client)
        later = await client.score("pump", series=["b"], stamps=NOW + np.arange(3000, 3010), values=values[:10])
    after = await listed(client, series="b")

    assert set(reply.statuses[WARM_UP:].tolist()) | set(later.statuses.tolist()) == {Status.OK}
    assert len(during) == 1
    assert [it.stamp - NOW for it in after] == list(range(3009, WARM_UP - 1, -1))
    assert [record.message for record in caplog.records if "anomalies" in record.message] == [
        "anomalies could not be written; it will be tried again"
    ]
    assert pump.metrics.registry.get_sample_value("prunewatch_anomalies_dropped_total", {"detector": "pump"}) == 0


def found_at(*stamps: int, detector: str = "pump") -> Found:
    """Anomalies of one request."""
    n = len(stamps)
    return Found(
        detector=detector,
        features=("flow",),
        series=["a"] * n,
        stamps=np.array(stamps, np.int64),
        scores=np.full(n, 4, np.float32),
        versions=np.ones(n, np.int64),
        top=np.zeros((n, 1), np.int64),
        shares=np.ones((n, 1), np.float32),
        threshold=3.0,
        found=5.0,
    )


@given(
    sizes=st.lists(st.integers(1, 6), max_size=12),
    limit=st.integers(1, 8),
    returned=st.integers(0, 12),
)
def test_a_buffer_holds_exactly_the_newest(sizes: list[int], limit: int, returned: int) -> None:
    """Whatever comes in which portions, and is put back, the newest `limit` wait and every other one is counted."""
    dropped = []
    buffer = AnomalyBuffer("pump", limit, dropped.append)
    stamps, taken = [], []
    for i, size in enumerate(sizes):
        if i == returned:
            taken = buffer.take()
        new = list(range(len(stamps), len(stamps) + size))
        stamps += new
        buffer.add(found_at(*new))
    buffer.put_back(taken)

    assert [it.stamp for part in buffer.take() for it in part] == stamps[-limit:]
    assert sum(dropped) == max(0, len(stamps) - limit)
    assert len(buffer) == 0


async def test_while_writing_fails_the_newest_wait_and_the_lost_are_counted() -> None:
    """A book that can not be written is tried again; what does not fit meanwhile is lost, oldest first, and counted."""

    class Book:
        """Keeps what it is given unless it is full."""

        full = True
        kept: list[int] = []  # noqa: RUF012  (one book a test)

        def keep_anomalies(self, batches: list[Kept]) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            self.kept += [it.stamp for batch in batches for it in batch.anomalies]

    dropped, book = [], Book()
    keeper = AnomalyKeeper(book)
    buffer = keeper.begin("pump", 3, dropped.append)
    for stamp in range(5):
        buffer.add(found_at(stamp))
        await keeper.flush()
    book.full = False
    await keeper.flush()
    await keeper.flush()

    assert book.kept == [2, 3, 4]
    assert sum(dropped) == 2


def test_the_catalog_keeps_the_newest_of_each_detector(tmp_path: Path) -> None:
    """One detector's flood pushes out none of another's; those of a detector that is gone are let go."""
    catalog = Catalog(tmp_path / "catalog.db")
    for name in ("pump", "fan"):
        catalog.create_detector(name, {})
    for start in (0, 10):
        catalog.keep_anomalies(
            [
                Kept(name, list(found_at(*range(start, start + n), detector=name)), limit)
                for name, n, limit in (("pump", 10, 4), ("gone", 1, 4), ("fan", 2, 4))
            ]
        )

    assert [it.stamp for it in catalog.anomalies(AnomalyQuery("pump"))] == [19, 18, 17, 16]
    assert [it.stamp for it in catalog.anomalies(AnomalyQuery("fan"))] == [11, 10, 1, 0]
    assert catalog.anomalies(AnomalyQuery("gone")) == []
    (first,) = catalog.anomalies(AnomalyQuery("fan", limit=1))
    assert first == Anomaly("fan", "a", 11, 4.0, 3.0, 1, (("flow", 1.0),), 5.0, first.id)
    catalog.close()


# the catalog of an earlier version


def test_a_catalog_of_the_first_schema_is_upgraded(tmp_path: Path) -> None:
    """Nothing in it changes, it can keep anomalies afterwards, and it is then like one that was made new."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    for path in (old, new):
        catalog = Catalog(path)
        catalog.create_detector("pump", {"network": "lstm"}, ["flow"])
        catalog.close()
    with sqlite3.connect(old) as connection:
        for statement in (it for upgrade in UPGRADES.values() for it in upgrade):
            if made := re.search(r"CREATE TABLE (\w+)", statement):
                connection.execute(f"DROP TABLE {made[1]}")
            elif added := re.search(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", statement):
                connection.execute(f"ALTER TABLE {added[1]} DROP COLUMN {added[2]}")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    connection.close()

    catalog = Catalog(old)
    catalog.keep_anomalies([Kept("pump", list(found_at(1)), 5)])

    assert catalog.get_detector("pump").features == ["flow"]
    assert len(catalog.anomalies(AnomalyQuery("pump"))) == 1
    catalog.delete_detector("pump")
    assert catalog.anomalies(AnomalyQuery("pump")) == []
    catalog.close()
    assert shape(old) == shape(new)
    assert shape(old)["version"] == [(str(SCHEMA_VERSION),)]


def shape(path: Path) -> dict[str, list]:
    """Tables, columns, keys and indexes of a database."""
    connection = sqlite3.connect(path)
    found = {"version": connection.execute("SELECT value FROM meta").fetchall()}
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
        found[name] = [
            *connection.execute(f"PRAGMA table_info({name})").fetchall(),
            *connection.execute(f"PRAGMA foreign_key_list({name})").fetchall(),
            *(
                (index[1], connection.execute(f"PRAGMA index_info({index[1]})").fetchall())
                for index in connection.execute(f"PRAGMA index_list({name})").fetchall()
            ),
            "AUTOINCREMENT" in (sql or ""),
        ]
    connection.close()
    return found


# shares


@given(
    st.lists(st.lists(st.floats(width=32, allow_subnormal=False), min_size=4, max_size=4), min_size=1).map(
        lambda rows: np.array(rows, np.float32)
    )
)
def test_shares_are_never_negative_and_never_more_than_the_whole(contribution: np.ndarray) -> None:
    """Whatever a graph says was contributed: finite, 0 or more, in sum 1, or 0 where nothing contributed."""
    shares = shares_of(contribution)
    columns, top = top_shares(contribution)

    assert np.isfinite(shares).all()
    assert (shares >= 0).all()
    whole = shares.sum(axis=1, dtype=np.float64)
    contributed = (np.nan_to_num(contribution, nan=0.0) > 0).any(axis=1)
    np.testing.assert_allclose(whole, contributed, atol=1e-6)
    np.testing.assert_array_equal(top, -np.sort(-shares, axis=1)[:, :3])
    np.testing.assert_array_equal(np.take_along_axis(shares, columns, axis=1), top)
    assert all(len(set(row)) == 3 for row in columns.tolist())


async def test_flagged_points_come_with_shares_of_the_whole(pump: Hub, client: Client) -> None:
    """Contributions in a reply are shares too, of all features in their order: the same numbers as in the list."""
    values = np.array([(0, 0)] * WARM_UP + [(30, 10)], np.float32)
    reply = await client.score("pump", series=["a"], stamps=NOW + np.arange(4), values=values, contributions=True)
    (found,) = await listed(client)

    assert {i: shares.tolist() for i, shares in reply.contributions.items()} == {3: [0.75, 0.25]}
    assert dict(found.contributions) == {"f1": 0.75, "f2": 0.25}


@pytest.mark.parametrize("module", [server.anomalies, server.csv_input, server.commands.tables])
def test_the_examples_in_the_documentation_are_true(module) -> None:
    """Doctests run."""
    result = doctest.testmod(module)

    assert result.attempted
    assert not result.failed


# the command line


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in a thread; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    async def run_beside(*arguments: object) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, "anomalies", *arguments)

    return run_beside


async def test_the_command_line_says_the_same_of_a_server_and_of_its_store(tmp_path: Path, prunewatch) -> None:
    """Table and JSON, whole and narrowed, byte for byte: from the server while it runs, from the store afterwards."""
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await hub.start()
    server, store = f"127.0.0.1:{hub.listener.port}", hub.store.root
    await publish(hub, ewma_bundle("pump"))
    async with Client(server) as client:
        for series in ("north", "[red]south\x1b[2J"):
            await alarm(client, (4, 12), (99, 0), series=series)
    asked = [
        ("pump",),
        ("pump", "--json"),
        ("pump", "--series", "north", "--json"),
        ("pump", "--since", "2023-11-14T22:13:24Z", "--json"),
        ("pump", "--until", NOW + 4 * SECOND, "--json"),
        ("pump", "--limit", 1),
        ("pump", "--series", "nobody"),
        ("fan",),
        ("pump", "--since", "yesterday"),
        ("pump", "--since", 9, "--until", 8),
    ]
    answers = [await prunewatch(*arguments, "--server", server) for arguments in asked]
    await hub.stop()

    table, whole, of_one, since, until, one, none, unknown, no_time, backwards = answers
    assert [await prunewatch(*arguments, "--store", store) for arguments in asked[:7]] == answers[:7]
    for words in ("2023-11-14T22:13:23Z", "north", "[red]south\ufffd[2J", "f2 75%, f1 25%", "8", "3"):
        assert words in table[1]
    assert json.loads(whole[1])["time"] == "stamp"
    assert [it["score"] for it in json.loads(of_one[1])["anomalies"]] == [pytest.approx(49.9, abs=0.5), 8.0]
    newest = json.loads(whole[1])["anomalies"][0]
    assert newest.keys() == {
        "series",
        "stamp",
        "score",
        "threshold",
        "version",
        "contributions",
        "found_seconds",
    }
    assert [len(json.loads(it[1])["anomalies"]) for it in (whole, since, until)] == [4, 2, 2]
    assert (one[1].count("2023-"), "there are more: --limit" in one[2]) == (1, True)
    assert none[1] == "pump: no anomalies of series nobody\n"
    assert (unknown[0], "There are: pump" in unknown[2]) == (2, True)
    assert (no_time[0], "--since: 'yesterday' is neither" in no_time[2]) == (2, True)
    assert (backwards[0], "--until: 8 is before --since 9" in backwards[2]) == (2, True)
    code, _, err = await prunewatch("fan", "--store", store)
    assert (code, "There are: pump" in err) == (2, True)


async def test_row_numbers_are_shown_and_asked_for_as_they_are(hub: Hub, client: Client, prunewatch) -> None:
    """A detector that counts rows has no times: its anomalies show row numbers, and a time is refused."""
    await publish(hub, ewma_bundle("pump"), time="index")
    await client.score("pump", series=["a"], values=[(0, 0)] * WARM_UP + [(9, 9), (99, 99)])
    server = f"127.0.0.1:{hub.listener.port}"

    _, table, _ = await prunewatch("pump", "--server", server)
    _, out, _ = await prunewatch("pump", "--since", 4, "--json", "--server", server)
    code, _, err = await prunewatch("pump", "--since", "2024-01-01", "--server", server)

    assert ("row" in table, "1970" in table) == (True, False)
    assert [it["stamp"] for it in json.loads(out)["anomalies"]] == [4]
    assert (code, "This detector counts rows" in err) == (2, True)
