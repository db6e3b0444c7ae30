"""A stream that outlives its connections: against a real hub, behind a proxy that cuts, stalls and loses answers."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from brokers import process
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle, ewma_scores
from tcp_proxy import TcpProxy

from detectors.archive import load_bundle
from prunewatch.client import Client, Retry, Scores, ServiceError, Stream
from prunewatch.reconnecting import MAX_NAMES
from server.app import Hub
from server.config import DetectorConfig
from server.edge import Edge

QUICK = Retry(attempts=None, first_seconds=0.02, longest_seconds=0.1)
SECOND = 1_000_000_000
OK, WARMING_UP, LATE, DUPLICATE = 1, 2, 6, 7
STREAM = ("bidi_stream", "prunewatch.v1.ScoringService", "ScoreStream")
"""Labels of scoring streams in the metrics of calls."""


def rows(n: int, seed: int = 0) -> np.ndarray:
    """[n, 2] of points that are flagged now and then: the threshold of the tests is 3."""
    values = np.random.default_rng(seed).normal(size=(n, 2))
    values[20::31] += 8
    return values.astype(np.float32)


def at(start: int, n: int = 1) -> np.ndarray:
    """[n] stamps, a second apart."""
    return NOW + SECOND * np.arange(start, start + n)


def undisturbed(values: np.ndarray) -> np.ndarray:
    """The scores that one series of `values` gets."""
    return ewma_scores(values)


def check(replies: list[Scores], values: np.ndarray) -> int:
    """Each point has the score of an undisturbed run, or was taken before its answer got lost; returns how many were.

    Of those, the anomalies have their score all the same.
    """
    scores = np.concatenate([it.scores for it in replies])
    statuses = np.concatenate([it.statuses for it in replies])
    expected = undisturbed(values)
    lost = np.isin(statuses, (LATE, DUPLICATE))
    assert np.isin(statuses[~lost], (OK, WARMING_UP)).all()
    np.testing.assert_allclose(scores[~lost], expected[~lost], rtol=1e-5)
    flagged = expected >= 3
    np.testing.assert_allclose(scores[lost & flagged], expected[lost & flagged], rtol=1e-5)
    assert np.isnan(scores[lost & ~flagged]).all()
    return int(lost.sum())


@asynccontextmanager
async def faulty(hub: Hub | Edge) -> AsyncIterator[tuple[TcpProxy, Client]]:
    """A proxy before a hub, and a client that knows nothing but the proxy."""
    async with TcpProxy(f"127.0.0.1:{hub.listener.port}") as proxy, Client(proxy.address) as client:
        yield proxy, client


async def test_a_stream_gives_the_scores_of_single_calls(hub: Hub, client: Client) -> None:
    """Points sent one by one, many at a time and of several series all get the score of their place in the series."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(40)

    async with client.stream("pump") as stream:
        replies = [await stream.score(values[i : i + 1], at(i), "north") for i in range(10)]
        replies.append(await stream.score(values[10:], at(10, 30), "north"))
        both = await stream.score(
            np.repeat(values[:10], 2, axis=0), np.repeat(at(0, 10), 2), ["south", "west"], np.tile([1, 0], 10)
        )

    assert check(replies, values) == 0
    np.testing.assert_array_equal(both.scores[::2], both.scores[1::2])
    np.testing.assert_allclose(both.scores[::2], undisturbed(values[:10]), rtol=1e-5)
    assert (stream.reconnects, stream.unanswered, stream.kept_bytes) == (0, 0, 0)


async def test_cut_connections_lose_nothing(hub: Hub) -> None:
    """A proxy that cuts again and again: every point is answered, none is counted twice, no anomaly is lost."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(400)
    async with faulty(hub) as (proxy, client), client.stream("pump", retry=QUICK) as stream:
        answers = []
        for i in range(400):
            if i % 50 == 49:
                proxy.cut()
            answers.append(await stream.send(values[i : i + 1], at(i), "north"))
            await asyncio.sleep(0.002)
        replies = [await it for it in answers]

    check(replies, values)
    assert hub.host.get("pump").accepted == 400
    assert stream.reconnects >= 3


async def test_lost_answers_are_told_and_their_anomalies_recalled(hub: Hub) -> None:
    """What was taken before its answer got lost is named in `resent`; scores of anomalies come from the service."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(60)
    async with faulty(hub) as (proxy, client), client.stream("pump", retry=QUICK) as stream:
        first = await stream.score(values[:10], at(0, 10), "north")
        proxy.deaf = True
        answer = await stream.send(values[10:], at(10, 50), "north")

        async def taken() -> bool:
            return hub.host.get("pump").accepted == 60

        await eventually(taken)
        proxy.cut()
        proxy.deaf = False
        second = await answer

    assert second.resent.tolist() == list(range(50))
    assert set(second.statuses.tolist()) == {LATE, DUPLICATE}
    assert check([first, second], values) == 50
    np.testing.assert_array_equal(np.flatnonzero(second.anomalies) + 10, np.flatnonzero(undisturbed(values) >= 3))
    assert second.anomalies.any()


async def test_a_device_can_not_recall(hub: Hub, tmp_path: Path) -> None:
    """A device keeps no anomalies: what was taken before its answer got lost is named, and has no score."""
    await publish(hub, ewma_bundle("pump"))
    folder = hub.store.bundle_folder(hub.store.catalog.serving("pump", "hub").bundle_hash)
    edge = Edge(load_bundle(folder), hub_settings(tmp_path), config=DetectorConfig())
    await edge.start()
    values = rows(60)
    async with faulty(edge) as (proxy, client), client.stream("pump", retry=QUICK) as stream:
        await stream.score(values[:20], at(0, 20), "north")
        proxy.deaf = True
        answer = await stream.send(values[20:], at(20, 40), "north")

        async def taken() -> bool:
            return edge.host.get("pump").accepted == 60

        await eventually(taken)
        proxy.cut()
        proxy.deaf = False
        second = await answer
    await edge.stop()

    assert second.resent.tolist() == list(range(40))
    assert np.isnan(second.scores).all()
    assert not second.anomalies.any()


async def test_a_connection_cut_in_mid_message_loses_no_anomaly(hub: Hub) -> None:
    """Points that the hub took before the call was cancelled are recorded like all others: once, anomalies kept."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(4000)
    async with faulty(hub) as (proxy, client), client.stream("pump", retry=QUICK) as stream:
        answer = await stream.send(values, at(-10_000, 4000), "north")

        def steps() -> float:
            labels = {"detector": "pump"}
            return hub.metrics.registry.get_sample_value("prunewatch_step_seconds_count", labels) or 0.0

        async def begun() -> bool:
            return steps() >= 100

        await eventually(begun)
        taken = steps()
        proxy.cut()
        reply = await answer

    assert taken < 4000
    assert check([reply], values) >= taken
    assert hub.host.get("pump").accepted == 4000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_faults_at_random_change_nothing(hub: Hub, seed: int) -> None:
    """Connections cut, deaf, stalled and refused at random, several senders: no point is lost or counted twice."""
    print(f"seed {seed}")
    draw = random.Random(seed)
    await publish(hub, ewma_bundle("pump"))
    series = [f"s{i}" for i in range(6)]
    values = {name: rows(300, i) for i, name in enumerate(series)}
    replies: dict[str, list[Scores]] = {name: [] for name in series}
    done = asyncio.Event()

    async def misbehave(proxy: TcpProxy) -> None:
        while not done.is_set():
            fault = draw.choice(["deaf", "stalled", "refusing", "none"])
            setattr(proxy, fault, True)
            await asyncio.sleep(draw.uniform(0, 0.1))
            proxy.cut()
            proxy.deaf = proxy.stalled = proxy.refusing = False
            await asyncio.sleep(draw.uniform(0, 0.3))

    async def send(stream: Stream, name: str) -> None:
        start, answers = 0, []
        while start < 300:
            size = min(draw.choice([1, 2, 7, 40]), 300 - start)
            part = slice(start, start + size)
            answers.append(await stream.send(values[name][part], at(start, size), name))
            start += size
            await asyncio.sleep(draw.uniform(0, 0.05))
        replies[name] = [await it for it in answers]

    async with faulty(hub) as (proxy, client):
        lasting = client.stream("pump", retry=QUICK, answer_seconds=0.5, max_bytes=20_000)
        async with lasting as stream:
            faults = asyncio.create_task(misbehave(proxy))
            await asyncio.gather(*(send(stream, name) for name in series))
            done.set()
            await faults

    for name in series:
        check(replies[name], values[name])
    assert hub.host.get("pump").accepted == 1800
    assert stream.reconnects >= 3
    assert (stream.unanswered, stream.kept_bytes) == (0, 0)


async def test_a_connection_that_stalls_is_left(hub: Hub) -> None:
    """A connection that is open but dead is given up after `answer_seconds`, and a new one made."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(20)
    async with faulty(hub) as (proxy, client), client.stream("pump", retry=QUICK, answer_seconds=0.3) as stream:
        first = await stream.score(values[:10], at(0, 10), "north")
        before = proxy.connections
        proxy.stalled = True
        answer = await stream.send(values[10:], at(10, 10), "north")

        async def connected_again() -> bool:
            return proxy.connections > before

        await eventually(connected_again)
        proxy.stalled = False
        second = await answer

    check([first, second], values)
    assert stream.last_error is not None
    assert stream.last_error.code == "DEADLINE_EXCEEDED"


async def test_an_idle_stream_has_no_deadline(hub: Hub, client: Client) -> None:
    """`answer_seconds` is about answers: a stream that has nothing to send stays connected."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(2)
    async with client.stream("pump", answer_seconds=0.1) as stream:
        await stream.score(values[:1], at(0), "north")
        await asyncio.sleep(0.4)
        await stream.score(values[1:], at(1), "north")

    assert stream.reconnects == 0


async def test_a_hub_that_restarts_loses_nothing(tmp_path: Path, unused_tcp_port: int) -> None:
    """SIGTERM and start again under a stream: all points answered, scores as if nothing had happened."""
    settings = hub_settings(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}", drain_seconds=0.3)
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump"))
    values = rows(600)
    halfway = asyncio.Event()

    async def send(client: Client) -> tuple[list[Scores], int]:
        async with client.stream("pump", retry=QUICK) as stream:
            answers = []
            for i in range(600):
                answers.append(await stream.send(values[i : i + 1], at(i), "north"))
                if i == 200:
                    halfway.set()
                await asyncio.sleep(0.002)
            return [await it for it in answers], stream.reconnects

    async with Client(settings.listen) as client:
        sending = asyncio.create_task(send(client))
        await halfway.wait()
        await hub.stop()
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await hub.start()
        replies, reconnects = await sending
        await hub.stop()

    check(replies, values)
    assert reconnects >= 1


@pytest.mark.slow
async def test_a_hub_that_is_killed_is_waited_for(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> None:
    """Kill -9 of `prunewatch serve` in mid-stream, and start again: every message is answered.

    What the hub had answered but not kept (R7) is gone from its series; what it had not answered is scored.
    """
    listen, admin = (f"127.0.0.1:{unused_tcp_port_factory()}" for _ in range(2))
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await publish(hub, ewma_bundle("pump"))
    hub.store.close()
    serve = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--store", str(tmp_path / "store")]
    values = rows(400)
    with process([*serve, "--listen", listen, "--admin", admin], tmp_path / "hub.log") as running:
        async with Client(listen) as client, client.stream("pump", retry=QUICK) as stream:
            answers = []
            for i in range(400):
                answers.append(await stream.send(values[i : i + 1], at(i), "north"))
                if i == 200:
                    await answers[100]
                    await asyncio.to_thread(running.stop, signal.SIGKILL)
                    await asyncio.to_thread(running.start)
            replies = [await it for it in answers]

    statuses = np.concatenate([it.statuses for it in replies])
    assert set(statuses.tolist()) <= {OK, WARMING_UP, LATE, DUPLICATE}
    assert (statuses[-100:] == OK).all()
    assert stream.reconnects >= 2


async def test_a_server_that_comes_late_is_waited_for(tmp_path: Path, unused_tcp_port: int) -> None:
    """Points sent before there is a server are scored when there is one."""
    settings = hub_settings(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}")
    values = rows(10)
    async with Client(settings.listen) as client, client.stream("pump", retry=QUICK) as stream:
        answer = await stream.send(values, at(0, 10), "north")

        async def tried() -> bool:
            return stream.reconnects >= 2

        await eventually(tried)
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await publish(hub, ewma_bundle("pump"))
        await hub.start()
        reply = await answer
        await stream.drain()
    await hub.stop()

    assert check([reply], values) == 0


async def test_a_fast_sender_waits_for_room(hub: Hub) -> None:
    """While nothing is answered no more than `max_bytes` are kept; the next `send` waits until there are answers."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(100)
    async with faulty(hub) as (proxy, client):
        proxy.refusing = True
        async with client.stream("pump", retry=QUICK, max_bytes=20_000) as stream:
            answers = []
            most = 0

            async def send() -> None:
                nonlocal most
                for i in range(100):
                    answers.append(await stream.send(values[i : i + 1], at(i), "north"))
                    most = max(most, stream.kept_bytes)

            sending = asyncio.create_task(send())
            for _ in range(20):
                await asyncio.sleep(0.02)
            held = len(answers)
            proxy.refusing = False
            await sending
            replies = [await it for it in answers]

    assert 10 < held < 20
    assert most <= 20_000
    assert check(replies, values) == 0


async def test_large_inputs_are_cut(hub: Hub, client: Client) -> None:
    """More points than a message takes are several messages, and one answer."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(10_000)

    async with client.stream("pump") as stream:
        answer = await stream.send(values, at(0, 10_000) - 20_000 * SECOND, "north")
        messages = stream.unanswered
        reply = await answer

    assert messages == 2
    assert check([reply], values) == 0


async def test_a_message_that_can_not_be_used_fails_alone(hub: Hub, client: Client) -> None:
    """Its sender gets the error; those around it, with names of their own, get their scores."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(30)

    async with client.stream("pump") as stream:
        bad = [await stream.send(np.zeros((1, 3)), at(0), "first")]
        answers = [await stream.send(values[:10], at(0, 10), "north")]
        bad.append(await stream.send(np.zeros((1, 3)), at(0), "other"))
        south = await stream.send(values[:10], at(0, 10), "south")
        bad.append(await stream.send(np.zeros((1, 3)), at(0), "north"))
        answers.append(await stream.send(values[10:], at(10, 20), "north"))
        failed = await asyncio.gather(*bad, return_exceptions=True)
        replies = [await it for it in answers]
        check([await south], values[:10])

    assert [(type(it), it.code) for it in failed] == [(ServiceError, "INVALID_ARGUMENT")] * 3
    assert check(replies, values) == 0
    assert hub.host.get("pump").accepted == 40


async def test_a_detector_that_is_not_there_is_said(hub: Hub, client: Client) -> None:
    """NOT_FOUND is no reason to wait."""
    async with client.stream("fan") as stream:
        with pytest.raises(ServiceError) as caught:
            await stream.score(np.zeros((1, 2)), at(0), "north")

    assert caught.value.code == "NOT_FOUND"


async def test_attempts_end(unused_tcp_port: int) -> None:
    """A stream that may not try for ever fails what it keeps, and everything that comes later."""
    retry = Retry(attempts=3, first_seconds=0.01)
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        stream = client.stream("pump", retry=retry)
        with pytest.raises(ServiceError) as caught:
            async with stream:
                await stream.score(np.zeros((1, 2)), at(0), "north")
        with pytest.raises(ServiceError) as again:
            await stream.send(np.zeros((1, 2)), at(1), "north")

    assert caught.value.code == again.value.code == "UNAVAILABLE"
    assert stream.reconnects == 2


async def test_what_can_not_be_sent_again_is_refused(hub: Hub, client: Client) -> None:
    """Points without stamps would be counted twice; arrays that do not fit together are refused at once."""
    async with client.stream("pump") as stream:
        for arguments, field in (
            ((np.zeros((2, 2)),), "stamps"),
            ((np.zeros((2, 2)), at(0)), "stamps"),
            ((np.zeros((2, 2)), at(0, 2), ["a", "b", "c"]), "series"),
            ((np.zeros((2, 2)), at(0, 2), ["a"], [0, 1]), "series_index"),
            ((np.zeros((2, 2)), at(0, 2), [1, 2]), "series"),
            ((np.zeros(2), at(0, 2)), "values"),
            ((np.zeros((0, 2)), at(0, 0)), "values"),
            (([["x", "y"]], at(0)), "values"),
        ):
            with pytest.raises(ServiceError) as caught:
                await stream.send(*arguments)
            assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", field)
    assert stream.unanswered == 0

    with pytest.raises(ServiceError, match="is closed"):
        await stream.send(np.zeros((1, 2)), at(0))


async def test_many_names_begin_another_call(hub: Hub, client: Client) -> None:
    """Series that come and go do not pile up: a call that has named many is followed by another, without a failure."""
    await publish(hub, ewma_bundle("pump"))
    names = [f"s{i}" for i in range(MAX_NAMES + 1)]
    values = np.zeros((len(names), 2))

    async with client.stream("pump") as stream:
        await stream.score(values, np.full(len(names), NOW), names)
        second = await stream.score(values[:4], np.full(4, NOW + SECOND), names[:4])
        ended = hub.metrics.calls_handled.labels(*STREAM, "OK").value

    assert hub.host.get("pump").accepted == len(names) + 4
    assert second.statuses.tolist() == [WARMING_UP] * 4
    assert (ended, stream.reconnects) == (1, 0)


async def test_leaving_by_an_exception_gives_up(unused_tcp_port: int) -> None:
    """An exception inside the block does not wait for a server; who still waits for an answer learns of it."""
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        answers = []

        async def leave() -> None:
            async with client.stream("pump") as stream:
                answers.append(await stream.send(np.zeros((1, 2)), at(0), "north"))
                raise KeyError

        with pytest.raises(KeyError):
            await leave()
        with pytest.raises(ServiceError) as caught:
            await answers[0]

    assert caught.value.code == "CANCELLED"
