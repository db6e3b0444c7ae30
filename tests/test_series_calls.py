"""Series by call: they are listed, let warm up again and forgotten, under whatever goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, bundle_facts, eventually, hub_settings, publish
from crashing import Node, connected
from graphs import ewma_bundle, ewma_scores
from test_full_disk import SMALL_DISK, can_mount, fill

from detectors.bundle import write_bundle
from detectors.shelf import GONE, Label, Shelved
from detectors.stamps import Status
from prunewatch.client import Batch, Client, Series, ServiceError
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1.scoring_pb2_grpc import ScoringServiceStub
from server.app import Hub
from server.config import DetectorConfig
from server.edge import Edge
from server.paging import token_of
from server.publish import publish_fit
from server.series_file import GONE_SECONDS, SeriesFile
from server.store import Store

WARM, OK, LATE, DUPLICATE = Status.WARMING_UP, Status.OK, Status.LATE, Status.DUPLICATE
FEATURES = ["f1", "f2"]
RNG = np.random.default_rng(17)


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with `pump`, which counts rows and warms up for three."""
    await publish(hub, ewma_bundle("pump"), time="index")
    return hub


@pytest.fixture
async def stub(hub: Hub):
    """The calls as they are on the wire."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        yield ScoringServiceStub(channel)


def drawn(n: int) -> np.ndarray:
    """Random points."""
    return RNG.normal(size=(n, 2)).astype(np.float32)


async def listed(client: Client, detector: str = "pump") -> dict[str, Series]:
    """All series by name."""
    return {it.name: it async for it in client.series(detector)}


async def take(client: Client, name: str, start: int, n: int, detector: str = "pump") -> list[int]:
    """Statuses of n points of a series, stamps going on from `start`."""
    reply = await client.score(detector, series=name, values=drawn(n), stamps=np.arange(start, start + n))
    return reply.statuses.tolist()


async def refused(call) -> tuple[str, str]:
    """Code and field of the error that a call of the client ends with."""
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value.code, caught.value.field


# which there are


async def test_series_are_listed_by_name_page_after_page(pump: Hub, client: Client, stub: ScoringServiceStub) -> None:
    """A hundred unless it is said, a thousand at most; the client asks for as many as it takes."""
    names = [f"s{i:04}" for i in RNG.permutation(2300)]
    await client.score("pump", series=names, values=drawn(2300))

    first = await stub.ListSeries(pb.ListSeriesRequest(parent="detectors/pump"))
    second = await stub.ListSeries(pb.ListSeriesRequest(parent="detectors/pump", page_token=first.next_page_token))
    large = await stub.ListSeries(pb.ListSeriesRequest(parent="detectors/pump", page_size=5000))
    every = [it.name async for it in client.series("pump")]
    some = [it.name async for it in client.series("pump", limit=1500)]

    assert [it.name for it in (*first.series, *second.series)] == sorted(names)[:200]
    assert (len(first.series), first.total_size, len(large.series)) == (100, 2300, 1000)
    assert every == sorted(names)
    assert some == every[:1500]


async def test_pages_go_on_where_they_were(pump: Hub, client: Client, stub: ScoringServiceStub) -> None:
    """Also where the last series of the page is gone and another stands before it; the last page has no token."""
    await client.score("pump", series=list("abcdefü"), values=drawn(7))
    request = pb.ListSeriesRequest(parent="detectors/pump", page_size=3)
    page = await stub.ListSeries(request)
    await client.delete_series("pump", "c")
    await client.score("pump", series="aa", values=drawn(1))

    request.page_token = page.next_page_token
    rest = await stub.ListSeries(request)
    request.page_token = rest.next_page_token
    last = await stub.ListSeries(request)

    assert [[it.name for it in found.series] for found in (page, rest, last)] == [list("abc"), list("def"), ["ü"]]
    assert last.next_page_token == ""


async def test_a_series_says_how_it_is(tmp_path: Path) -> None:
    """Its last stamp, points, whether it warms up and when it was heard of; on disk is what there was no room for."""
    now = [1_700_000_000.0]
    settings = hub_settings(tmp_path, detectors={"pump": {"features": FEATURES, "series_memory": "5KiB"}})
    hub = Hub(settings, trainer=QUICK_TRAINER, clock=lambda: now[0])
    await hub.start()
    await publish(hub, ewma_bundle("pump"))
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        for name, points in (("a", 5), ("b", 2), ("c", 3)):
            await take(client, name, 100, points)
            now[0] += 60
        await client.score("pump", series=["never"], values=np.full((1, 2), np.inf), stamps=[7])
        found = await listed(client)
    await hub.stop()

    assert found["a"] == Series("a", 104, 5, warming_up=False, heard_seconds=1_700_000_000.0, in_memory=False)
    assert found["b"] == Series("b", 101, 2, warming_up=True, heard_seconds=1_700_000_060.0, in_memory=True)
    assert found["c"] == Series("c", 102, 3, warming_up=False, heard_seconds=1_700_000_120.0, in_memory=True)
    assert found["never"] == Series("never", None, 0, True, 1_700_000_180.0, in_memory=False)


async def test_a_detector_that_has_seen_no_points_has_no_series(hub: Hub, client: Client) -> None:
    """Its width is not known yet, and that is no error."""
    await client.create("young")

    assert await listed(client, "young") == {}
    assert await client.reset_series("young", ["a"]) == await client.delete_series("young", ["a"]) == 0


async def test_a_device_has_series_too(tmp_path: Path) -> None:
    """Listed, let warm up again and forgotten as on the hub; nothing of them is on its disk."""
    edge = Edge(ewma_bundle("pump"), hub_settings(tmp_path), config=DetectorConfig(time="index"))
    await edge.start()
    async with Client(f"127.0.0.1:{edge.listener.port}") as client:
        await take(client, "a", 0, 5)
        before = await listed(client)
        counts = await client.reset_series("pump", "a"), await client.delete_series("pump", ["a", "b"])
        after = await listed(client)
        again = await take(client, "a", 0, 1)
    await edge.stop()

    assert (before["a"].points, counts, after, again) == (5, (1, 1), {}, [WARM])


# what can not be


async def test_what_can_not_be_is_refused(pump: Hub, client: Client, stub: ScoringServiceStub) -> None:
    """With the field it is about."""
    await publish(pump, ewma_bundle("twin"), time="index")
    for detector in ("pump", "twin"):
        await client.score(detector, series=list("ab"), values=drawn(2))
    page = await stub.ListSeries(pb.ListSeriesRequest(parent="detectors/twin", page_size=1))
    names = token_of(b"a"), token_of(b"\xff" * 12), "!!!!", "a", "ä", page.next_page_token

    async def ask(method: str, **fields) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(getattr(pb, f"{method}Request")(**{"parent": "detectors/pump", **fields}))
        return caught.value.code().name, caught.value.details().partition(":")[0]

    for token in names:
        assert await ask("ListSeries", page_token=token) == ("INVALID_ARGUMENT", "page_token"), token
    assert await ask("ListSeries", page_size=-1) == ("INVALID_ARGUMENT", "page_size")
    for method in ("ResetSeries", "DeleteSeries"):
        assert await ask(method) == ("INVALID_ARGUMENT", "series")
        assert await ask(method, series=["a"] * 1001) == ("INVALID_ARGUMENT", "series")
    for method, fields in (("ListSeries", {}), ("ResetSeries", {"series": ["a"]}), ("DeleteSeries", {"series": ["a"]})):
        assert (await ask(method, parent="detectors/none", **fields))[0] == "NOT_FOUND"
        assert await ask(method, parent="pump", **fields) == ("INVALID_ARGUMENT", "parent")
    assert set(await listed(client)) == {"a", "b"}


async def test_the_client_says_what_the_service_says(pump: Hub, client: Client) -> None:
    """No name, and a detector that is not there."""
    assert await refused(client.reset_series("pump", [])) == ("INVALID_ARGUMENT", "series")
    assert await refused(client.delete_series("pump", [])) == ("INVALID_ARGUMENT", "series")
    assert (await refused(client.delete_series("none", "a")))[0] == "NOT_FOUND"
    assert (await refused(listed(client, "none")))[0] == "NOT_FOUND"


# reset and delete


async def test_a_series_that_is_reset_warms_up_and_keeps_its_stamp(pump: Hub, client: Client) -> None:
    """Scores are those of a new series; what was taken is not taken again; other series do not notice."""
    await client.score("pump", series=["a", "b"] * 10, values=drawn(20), stamps=np.repeat(np.arange(10), 2))

    count = await client.reset_series("pump", ["a", "nobody", "a"])

    found = await listed(client)
    values = drawn(6)
    late = await take(client, "a", 7, 3)
    again = await client.score("pump", series="a", values=values, stamps=np.arange(10, 16))
    assert count == 1
    assert (found["a"].last_stamp, found["a"].points, found["a"].warming_up) == (9, 0, True)
    assert (found["b"].points, found["b"].warming_up) == (10, False)
    assert late == [LATE, LATE, DUPLICATE]
    np.testing.assert_allclose(again.scores, ewma_scores(values), rtol=1e-5)
    assert again.statuses.tolist() == [WARM] * 3 + [OK] * 3


async def test_a_series_that_is_deleted_begins_anew(pump: Hub, client: Client) -> None:
    """Whatever its stamp: earlier ones are taken, scores are those of a new series; points kept for training stay."""
    await client.score("pump", series=["a", "b"] * 10, values=drawn(20), stamps=np.repeat(np.arange(10), 2))
    values = drawn(6)

    count = await client.delete_series("pump", ["a", "nobody", "a"])
    found = await listed(client)
    again = await client.score("pump", series="a", values=values, stamps=np.arange(6))
    counted = await client.score("pump", series="a", values=drawn(1))

    assert (count, set(found)) == (1, {"b"})
    np.testing.assert_allclose(again.scores, ewma_scores(values), rtol=1e-5)
    assert counted.statuses.tolist() == [OK]
    assert (await listed(client))["a"].last_stamp == 6
    assert pump.host.get("pump").points_kept == 27


async def test_more_names_than_a_request_may_have(pump: Hub, client: Client) -> None:
    """The client sends them in parts."""
    names = [f"s{i}" for i in range(2500)]
    await client.score("pump", series=names, values=drawn(2500))

    assert await client.reset_series("pump", [*names, "nobody"]) == 2500
    assert await client.delete_series("pump", [*names[1:], "nobody"]) == 2499
    assert set(await listed(client)) == {"s0"}


async def test_open_streams_go_on_with_a_new_series(pump: Hub, client: Client) -> None:
    """A stream names its series once; what it sends after a deletion belongs to the series that begins then."""
    values = drawn(20)
    asked: asyncio.Queue[Batch | None] = asyncio.Queue()

    async def batches() -> AsyncIterator[Batch]:
        while (batch := await asked.get()) is not None:
            yield batch

    replies = client.score_stream("pump", batches())
    await asked.put(Batch(values[:10].repeat(2, axis=0), series=["a", "b"], series_index=[0, 1] * 10))
    await anext(replies)
    await client.delete_series("pump", "a")
    await client.score("pump", series="c", values=drawn(1))  # takes the place that is free
    await asked.put(Batch(values[10:].repeat(2, axis=0), series_index=[0, 1] * 10))
    reply = await anext(replies)
    await asked.put(None)
    assert [it async for it in replies] == []

    np.testing.assert_allclose(reply.scores[::2], ewma_scores(values[10:]), rtol=1e-5)
    np.testing.assert_allclose(reply.scores[1::2], ewma_scores(values)[10:], rtol=1e-5)
    found = await listed(client)
    assert {name: it.points for name, it in found.items()} == {"a": 10, "b": 20, "c": 1}


async def test_a_deletion_in_the_middle_of_a_long_message(pump: Hub, client: Client) -> None:
    """What is left of the message begins the series anew, and nothing of it reaches whoever takes the free place."""
    n = 20_000
    values = np.concatenate([drawn(n), np.zeros((n, 2), np.float32)])
    names, index = ["a", "b"], np.r_[np.zeros(n, np.int64), np.ones(n, np.int64)].reshape(2, n).T.ravel()
    values = values.reshape(2, n, 2).transpose(1, 0, 2).reshape(-1, 2)

    scoring = asyncio.create_task(client.score("pump", series=names, series_index=index, values=values))
    await eventually(lambda: _has_points(client))
    assert await client.delete_series("pump", "a") == 1
    beside = await client.score("pump", series="c", values=np.ones((5, 2)))
    deleted_early = not scoring.done()
    reply = await scoring

    assert deleted_early
    mine, other = reply.statuses[::2], reply.statuses[1::2]
    (begun,) = np.flatnonzero((mine[1:] == WARM) & (mine[:-1] == OK)) + 1
    whole = values[::2]
    np.testing.assert_allclose(reply.scores[::2][:begun], ewma_scores(whole[:begun]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reply.scores[::2][begun:], ewma_scores(whole[begun:]), rtol=1e-4, atol=1e-6)
    assert (other == OK).sum() == n - 3
    np.testing.assert_allclose(beside.scores, ewma_scores(np.ones((5, 2))), rtol=1e-5)
    found = await listed(client)
    assert {name: it.points for name, it in found.items()} == {"a": n - begun, "b": n, "c": 5}
    assert found["a"].last_stamp == n - begun - 1
    assert pump.host.get("pump").accepted == 2 * n + 5


async def _has_points(client: Client) -> bool:
    return "a" in (found := await listed(client)) and found["a"].points > 10


async def test_a_series_whose_points_are_all_taken_stays_away(pump: Hub, client: Client) -> None:
    """A long message that is not done with others does not bring back a series that it is done with."""
    n = 20_000
    scoring = asyncio.create_task(
        client.score("pump", series=["a", "b"], series_index=np.r_[0, np.ones(n, np.int64)], values=drawn(n + 1))
    )

    async def begun() -> bool:
        return "b" in (found := await listed(client)) and found["b"].points > 10

    await eventually(begun)
    assert await client.delete_series("pump", "a") == 1
    found = await listed(client)
    await scoring

    assert set(found) == {"b"}
    assert (await listed(client))["b"].points == n


async def test_points_that_wait_are_taken_before(pump: Hub, client: Client) -> None:
    """They belong to the series that is deleted, whoever sends them; their callers are answered as ever."""
    hosted = pump.host.get("pump")
    await client.score("pump", series=["a", "b"], values=drawn(2))
    track = hosted.track(ephemeral=False)
    scorer, slots = track.add(["a", "b"])
    with hosted.stepper.calling(), hosted.stepper.calling():
        waiting = [asyncio.create_task(hosted.score(scorer, slots[i : i + 1], None, drawn(1))) for i in (0, 1, 0)]
        await asyncio.sleep(0)  # they begin, and wait for each other
        seen = scorer.series.seen[slots].tolist()
        assert await hosted.forget(["a"]) == 1
        outcomes = await asyncio.gather(*waiting)

    assert seen == [1, 1]
    assert [it.stamps.tolist() for it in outcomes] == [[1], [1], [2]]
    assert {name: it.points for name, it in (await listed(client)).items()} == {"b": 2}


async def test_deletions_at_once_take_nobody_elses_series(pump: Hub, client: Client) -> None:
    """While checkpoints are written: each series is counted by one of them, others that come meanwhile stay."""
    kept = [f"k{i}" for i in range(200)]
    for turn in range(5):
        await client.score("pump", series=[*(f"d{i}" for i in range(200)), *kept], values=drawn(400))
        doomed = [[f"d{i}" for i in range(200)]] * 3
        counts, *_ = await asyncio.gather(
            asyncio.gather(*(client.delete_series("pump", names) for names in doomed)),
            pump.host.shelve(),
            client.score("pump", series=kept, values=drawn(200)),
            client.score("pump", series=[f"n{turn}-{i}" for i in range(200)], values=drawn(200)),
        )
        assert sum(counts) == 200

    found = await listed(client)
    assert {name: it.points for name, it in found.items() if name[0] != "n"} == dict.fromkeys(kept, 10)
    assert sum(name[0] == "n" for name in found) == 1000
    assert {it.points for name, it in found.items() if name[0] == "n"} == {1}


# what outlives the process


@asynccontextmanager
async def life(folder: Path, clock=None, **detector) -> AsyncIterator[tuple[Hub, Client]]:
    """One life of a hub with `pump`; it ends in order."""
    fields = {"features": FEATURES, "time": "index", **detector}
    given = {} if clock is None else {"clock": clock}
    hub = Hub(hub_settings(folder, detectors={"pump": fields}), trainer=QUICK_TRAINER, **given)
    await hub.start()
    try:
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            yield hub, client
    finally:
        await hub.stop()


@pytest.mark.parametrize("learning", [False, True])
async def test_what_was_deleted_stays_away_after_a_restart(tmp_path: Path, learning: bool) -> None:
    """Although the history has its points; also while the detector learns, and after several restarts."""
    async with life(tmp_path) as (hub, client):
        if not learning:
            await publish(hub, ewma_bundle("pump"))
        for name in ("a", "b", "c"):
            await take(client, name, 100, 10)
    async with life(tmp_path) as (hub, client):
        before = await listed(client)
        await client.delete_series("pump", "a")
        await client.reset_series("pump", "b")
    async with life(tmp_path) as (hub, client):
        after = await listed(client)
        statuses = [(await take(client, name, 105, 1))[0] for name in "abc"]
        kept = hub.host.get("pump").points_kept

    taken = Status.LEARNING if learning else WARM
    assert {name: it.points for name, it in before.items()} == {"a": 10, "b": 10, "c": 10}
    assert {name: (it.points, it.last_stamp) for name, it in after.items()} == {"b": (0, 109), "c": (10, 109)}
    assert statuses == [taken, LATE, LATE]
    assert kept == 31


async def test_a_series_of_that_name_is_only_its_own_after_a_restart(tmp_path: Path) -> None:
    """It goes on bit by bit, whether its stamps began before or after those of the deleted one."""
    values = drawn(20)
    async with life(tmp_path) as (hub, client):
        await publish(hub, ewma_bundle("pump"))
        for name, start in (("early", 0), ("later", 110)):
            await take(client, name, 100, 10)
            await client.delete_series("pump", name)
            await client.score("pump", series=name, values=values[:10], stamps=start + np.arange(10))
    async with life(tmp_path) as (_, client):
        scores = [
            (await client.score("pump", series=name, values=values[10:], stamps=start + np.arange(10))).scores
            for name, start in (("early", 10), ("later", 120))
        ]

    for each in scores:
        np.testing.assert_allclose(each, ewma_scores(values)[10:], rtol=1e-5)


def node(folder: Path, **settings) -> Node:
    """A hub with a version that serves, in a process of its own."""
    fields = {"features": FEATURES, "time": "index"}
    made = Node(folder / "store", folder / "log.txt", detectors={"pump": fields}, **settings)
    made.start()
    made.kill()
    with Store.open(folder / "store") as store:
        bundle = ewma_bundle("pump")
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        publish_fit(store, "pump", {"parent": bundle_facts(bundle)})
    made.start()
    return made


@pytest.mark.slow
@pytest.mark.promise("R7")
async def test_what_was_deleted_stays_away_after_a_kill(tmp_path: Path) -> None:
    """And a new series of that name goes on without a point of the old one, although the history has both."""
    hub = node(tmp_path, history_flush_seconds=0.2)
    values = drawn(30)
    try:
        async with connected(hub) as client:
            for name in ("gone", "again", "stays"):
                await take(client, name, 100, 10)
            await asyncio.sleep(1)
            assert await client.delete_series("pump", ["gone", "again"]) == 2
            await client.score("pump", series="again", values=values[:20], stamps=110 + np.arange(20))
            await asyncio.sleep(1)
        hub.kill()
        hub.start()
        async with connected(hub) as client:
            found = await listed(client)
            early = await take(client, "gone", 50, 4)
            after = await client.score("pump", series="again", values=values[20:], stamps=130 + np.arange(10))
            kept = (await client.get("pump"))["history_points"]
        hub.kill()
        hub.start()
        async with connected(hub) as client:
            last = set(await listed(client))
    finally:
        hub.kill()

    assert {name: (it.points, it.last_stamp) for name, it in found.items()} == {"again": (20, 129), "stays": (10, 109)}
    assert kept == 64
    assert early == [WARM] * 3 + [OK]
    np.testing.assert_allclose(after.scores, ewma_scores(values)[20:], rtol=1e-5)
    assert last >= {"again", "stays"}


@pytest.mark.slow
@pytest.mark.promise("R7")
async def test_after_a_kill_a_reset_holds_once_it_is_written(tmp_path: Path) -> None:
    """Points from before it are in the history, and are not gone on from."""
    hub = node(tmp_path, history_flush_seconds=0.2)
    try:
        async with connected(hub) as client:
            await take(client, "a", 100, 10)
            await client.reset_series("pump", "a")
        hub.process.terminate()
        assert hub.process.wait(30) == 0
        hub.start()
        async with connected(hub) as client:
            await take(client, "a", 110, 2)
            await asyncio.sleep(1)
        hub.kill()
        hub.start()
        async with connected(hub) as client:
            found = await listed(client)
            statuses = await take(client, "a", 112, 2)
    finally:
        hub.kill()

    assert (found["a"].points, found["a"].last_stamp, found["a"].warming_up) == (2, 111, True)
    assert statuses == [WARM, OK]


async def test_series_that_were_silent_for_long_are_forgotten_for_good(tmp_path: Path) -> None:
    """By the server's clock, to the second; neither the shelf nor the history brings them back."""
    now = [1_700_000_000.0]
    async with life(tmp_path, lambda: now[0], series_expire_after="1d") as (hub, client):
        await publish(hub, ewma_bundle("pump"))
        await take(client, "silent", 0, 5)
        await take(client, "speaks", 0, 5)
        now[0] += 86_400
        await hub.host.shelve()
        before = set(await listed(client))
        await take(client, "speaks", 5, 1)
        now[0] += 1
        await hub.host.shelve()
        after = set(await listed(client))
    async with life(tmp_path, lambda: now[0], series_expire_after="1d") as (_, client):
        again = await listed(client)
        status = await take(client, "silent", 0, 1)

    assert (before, after, set(again)) == ({"silent", "speaks"}, {"speaks"}, {"speaks"})
    assert again["speaks"].points == 6
    assert status == [WARM]


def test_what_is_let_go_is_noted_from_then_on(tmp_path: Path) -> None:
    """However long it had been silent: the note goes when it is old, not when the series was."""
    shelf = SeriesFile(tmp_path / "pump.db")
    shelf.put([Shelved("a", 9, 9, 1.0, "it", b"", b"", 1)])
    shelf.let_go([Label("a", 9, GONE, 1.0, 2)])
    shelf.close()
    (label,) = SeriesFile(tmp_path / "pump.db").labels()
    with sqlite3.connect(tmp_path / "pump.db") as book:
        book.execute("UPDATE series SET heard = heard - ?", [GONE_SECONDS + 60])
    book.close()
    shelf = SeriesFile(tmp_path / "pump.db")
    later = list(shelf.labels())
    shelf.close()

    assert (label.name, label.last_stamp, label.seen) == ("a", 9, GONE)
    assert later == []


def test_turns_count_from_the_opening_of_the_file(tmp_path: Path) -> None:
    """A process that begins to count at one writes over what one before it has written at a thousand."""
    path = tmp_path / "pump.db"
    for turn in (1000, 1, 3):
        shelf = SeriesFile(path)
        list(shelf.labels())
        shelf.put([Shelved("a", turn, turn, 0.0, "it", b"", b"", turn)])
        shelf.put([Shelved("a", 7, 7, 0.0, "it", b"", b"", turn - 1)])
        assert shelf.get(["a"]) == [Shelved("a", turn, turn, 0.0, "it", b"", b"", turn)]
        shelf.close()
    shelf = SeriesFile(path)
    shelf.let_go([Label("a", 3, GONE, 0.0, 1)])
    assert shelf.get(["a"]) == []
    assert [(it.seen, it.turn) for it in shelf.labels()] == [(GONE, 1)]
    shelf.close()


# a disk that is full


@pytest.mark.promise("R4")
async def test_on_a_full_disk_nothing_is_deleted(pump: Hub, client: Client) -> None:
    """The call says so and changes nothing, expiry waits for better times, and scoring goes on; with room it works."""
    await client.score("pump", series=["a", "b"] * 5, values=drawn(10))
    await client.delete_series("pump", "nobody")
    await pump.host.shelve()
    book = pump.host.get("pump")._shelf._connection
    (pages,) = book.execute("PRAGMA page_count").fetchone()
    book.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    names = [f"{i:04}{'x' * 250}" for i in range(200)]
    await client.score("pump", series=names, values=drawn(200))
    before = await listed(client)

    with pytest.raises(ServiceError) as full:
        await client.delete_series("pump", [*names, "a"])
    during = await listed(client)
    going_on = await client.score("pump", series="a", values=drawn(1))
    book.execute("PRAGMA max_page_count = 1000000").fetchone()
    count = await client.delete_series("pump", [*names, "a"])

    assert (full.value.code, full.value.field, "full" in full.value.problem) == ("RESOURCE_EXHAUSTED", "store", True)
    assert during == before
    assert going_on.statuses.tolist() == [OK]
    assert (count, set(await listed(client))) == (201, {"b"})


@pytest.mark.promise("R4")
async def test_on_a_full_disk_expiry_waits_and_keeps_nobody_up(tmp_path: Path) -> None:
    """Series that could be written are, the hub ends well, and the silent ones are forgotten when there is room."""
    now = [1_700_000_000.0]
    names = [f"{i:04}{'x' * 250}" for i in range(200)]
    async with life(tmp_path, lambda: now[0], series_expire_after="1h") as (hub, client):
        await publish(hub, ewma_bundle("pump"))
        await client.score("pump", series="a", values=drawn(5), stamps=np.arange(5))
        await hub.host.shelve()
        book = hub.host.get("pump")._shelf._connection
        (pages,) = book.execute("PRAGMA page_count").fetchone()
        book.execute(f"PRAGMA max_page_count = {pages}").fetchone()
        await client.score("pump", series=names, values=drawn(200))
        now[0] += 4000
        await hub.host.shelve()
        during = await listed(client)
        book.execute("PRAGMA max_page_count = 1000000").fetchone()
        await hub.host.shelve()
        after = await listed(client)

    assert set(during) == {"a", *names}
    assert after == {}


@pytest.mark.slow
@pytest.mark.promise("R4")
async def test_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Before the file of series was ever made, so that not even it can be; with room again it is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    detectors = {"pump": {"features": FEATURES, "time": "index"}}
    before = (*SMALL_DISK, "8m", str(disk))
    hub = Node(disk / "store", tmp_path / "log.txt", before=before, detectors=detectors)
    hub.start()
    assert hub.process is not None
    inside = Path(f"/proc/{hub.process.pid}/root{disk}")
    try:
        async with connected(hub) as client:
            await take(client, "a", 0, 5)
            await asyncio.sleep(1)
            fill(inside)
            full = await refused(client.delete_series("pump", "a"))
            again = await refused(client.delete_series("pump", "a"))
            during = await listed(client)
            (inside / "filler").unlink()
            count = await client.delete_series("pump", "a")
            after = await listed(client)
    finally:
        hub.kill()

    assert full == again == ("RESOURCE_EXHAUSTED", "store")
    assert (during["a"].points, count, after) == (5, 1, {})


@pytest.mark.slow
def test_a_file_that_can_not_be_written_is_not_damaged(tmp_path: Path, caplog) -> None:
    """Labels that are old stay for once, and the series are there; the file is not put aside."""
    path = tmp_path / "pump.db"
    shelf = SeriesFile(path)
    shelf.put([Shelved("a", 9, 9, 1.0, "it", b"", b"", 1)])
    shelf.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    shelf = SeriesFile(path)
    found = [it.name for it in shelf.labels()]
    other.execute("ROLLBACK")
    other.close()
    shelf.close()

    assert found == ["a"]
    assert "can not be tidied" in caplog.text
    assert not list(tmp_path.glob("*.damaged"))


# the command line


async def run(hub: Hub, *arguments: str, server: bool = True) -> tuple[int, str, str]:
    """Exit code and both outputs of a command in a process of its own, against a hub."""
    address = ("--server", f"127.0.0.1:{hub.listener.port}") if server else ()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from server.cli import main; main()", "series", *arguments, *address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"},
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_lists_resets_and_deletes(hub: Hub, client: Client) -> None:
    """As a table and as JSON; it says how many of the names were known."""
    await publish(hub, ewma_bundle("pump"))
    for name in ("north", "south", "old\x1b[2J"):
        await client.score("pump", series=name, values=drawn(4), stamps=NOW + 10**9 * np.arange(4))

    table = await run(hub, "pump")
    cut = await run(hub, "pump", "--limit", "1")
    reset = await run(hub, "pump", "--reset", "north", "--reset", "nobody")
    told = json.loads((await run(hub, "pump", "--json"))[1])
    deleted = await run(hub, "pump", "--delete", "north", "--delete", "old\x1b[2J", "--json")
    unknown = await run(hub, "pump", "--delete", "north")
    await run(hub, "pump", "--delete", "south")
    none = await run(hub, "pump")

    assert table[0] == 0
    assert [line.split("│")[1].strip() for line in table[1].splitlines() if "2023-11-14T22:13:23Z" in line] == [
        "north",
        "old\ufffd[2J",
        "south",
    ]
    assert table[1].count("goes on") == 3
    assert "\x1b[2J" not in table[1]
    assert (cut[1].count("goes on"), "--limit 10" in cut[2]) == (1, True)
    assert reset[:2] == (0, "pump: reset 1 of 2 series; the others are not known\n")
    assert (told["detector"], told["time"], len(told["series"])) == ("pump", "stamp", 3)
    north = told["series"][0]
    assert north.pop("heard_seconds") > NOW / 1e9
    assert north == {
        "name": "north",
        "last_stamp": NOW + 3 * 10**9,
        "points": 0,
        "warming_up": True,
        "in_memory": True,
    }
    assert json.loads(deleted[1]) == {"detector": "pump", "deleted": 2, "unknown": 0}
    assert unknown[:2] == (0, "pump: deleted 0 of 1 series; north is not known\n")
    assert none[:2] == (0, "pump: no series\n")


async def test_the_command_says_what_it_needs(pump: Hub) -> None:
    """A server, one of both, a detector that is there; exit code 2 and what to do."""
    alone = await run(pump, "pump", server=False)
    both = await run(pump, "pump", "--reset", "a", "--delete", "b")
    none = await run(pump, "none")

    assert (alone[0], alone[2].startswith("error: --server: series live in a running server. Say which")) == (2, True)
    assert (both[0], both[2].startswith("error: --reset, --delete: ")) == (2, True)
    assert (none[0], "There are: pump." in none[2]) == (2, True)
