"""When the client asks again: what it is told by an overloaded service, back-off, and what may not be repeated."""

from __future__ import annotations

import asyncio
import math

import grpc
import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, hub_settings, publish
from graphs import ewma_bundle
from shedding import overload, shedding
from tcp_proxy import TcpProxy
from test_reconnecting import LATE, QUICK, at, check, rows

from prunewatch.client import Client, Retry, ServiceError
from prunewatch.errors import NEVER, PUSHBACK, call_error, status_error
from server.app import Hub

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def test_waits_double_and_are_drawn() -> None:
    """Exponential, bounded, and spread over the part that `jitter` says; told ones are never shortened."""
    low, high = (Retry(first_seconds=0.1, longest_seconds=1, jitter=0.5, draw=lambda it=it: it) for it in (1.0, 0.0))

    assert [high.wait_seconds(i) for i in (1, 2, 3, 4, 5, 5000)] == [0.1, 0.2, 0.4, 0.8, 1, 1]
    assert [low.wait_seconds(i) for i in (1, 4, 5000)] == [0.05, 0.4, 0.5]
    assert high.wait_seconds(1, told=60) == 60
    assert low.wait_seconds(1, told=60) == 60.5
    assert not Retry(attempts=None).exhausted(10_000)
    assert [Retry(attempts=3).exhausted(i) for i in (2, 3)] == [False, True]


@pytest.mark.parametrize(
    ("pushback", "seconds", "transient"),
    [("250", 0.25, True), ("0", 0, True), ("-1", NEVER, False), ("soon", NEVER, False), (b"40", 0.04, True)],
)
def test_pushback_is_read_as_grpc_defines_it(pushback: str | bytes, seconds: float, transient: bool) -> None:
    """Milliseconds from 0 on; anything else means: do not ask again."""
    error = call_error(EXHAUSTED, "busy", [(PUSHBACK, pushback)])

    assert (error.retry_seconds, error.is_transient) == (seconds, transient)


def test_retry_info_is_read() -> None:
    """`google.rpc.RetryInfo` among the details; without it a limit is a limit."""
    assert status_error(overload(1.25)).retry_seconds == 1.25
    assert status_error(overload(1.25)).is_transient
    assert status_error(overload(None)).retry_seconds is None
    assert not status_error(overload(None)).is_transient
    assert call_error(grpc.StatusCode.UNAVAILABLE, None, ()).is_transient


@pytest.mark.parametrize("way", ["pushback", "RetryInfo"])
async def test_a_call_that_was_shed_is_made_again(hub: Hub, way: str) -> None:
    """No sooner than the service has said; the points are scored once."""
    await publish(hub, ewma_bundle("pump"))
    async with shedding(hub) as (address, door):
        door.calls = 2
        door.pushback, door.retry_seconds = ("100", None) if way == "pushback" else (None, 0.1)
        async with Client(address, retry=Retry(attempts=3, first_seconds=0.001)) as client:
            reply = await client.score("pump", values=rows(10), stamps=at(0, 10), series="north")

    assert check([reply], rows(10)) == 0
    assert len(door.seen) == 3
    assert np.diff(door.seen).min() >= 0.1


async def test_without_retry_a_shed_call_is_an_error(hub: Hub) -> None:
    """The error says how long to wait, for callers with a plan of their own."""
    await publish(hub, ewma_bundle("pump"))
    async with shedding(hub) as (address, door), Client(address) as client:
        door.calls, door.retry_seconds = 1, 2.5
        with pytest.raises(ServiceError) as caught:
            await client.score("pump", values=rows(10), stamps=at(0, 10))

    assert (caught.value.code, caught.value.retry_seconds) == ("RESOURCE_EXHAUSTED", 2.5)


@pytest.mark.parametrize("pushback", ["-1", None])
async def test_a_limit_is_not_tried_again(hub: Hub, pushback: str | None) -> None:
    """A negative pushback, or a limit without a time to wait, is final."""
    await publish(hub, ewma_bundle("pump"))
    async with shedding(hub) as (address, door), Client(address, retry=Retry(first_seconds=0.001)) as client:
        door.calls, door.pushback = 9, pushback
        with pytest.raises(ServiceError) as caught:
            await client.score("pump", values=rows(10), stamps=at(0, 10))
        stream = client.stream("pump", retry=Retry(first_seconds=0.001))
        with pytest.raises(ServiceError) as streamed:
            async with stream:
                await stream.score(rows(10), at(0, 10))

    assert caught.value.code == streamed.value.code == "RESOURCE_EXHAUSTED"
    assert len(door.seen) == 2


async def test_points_that_could_count_twice_are_sent_once(hub: Hub) -> None:
    """LIVE points without stamps are not sent again when their answer is missing; with stamps they are."""
    await publish(hub, ewma_bundle("pump"), time="index")
    async with TcpProxy(f"127.0.0.1:{hub.listener.port}") as proxy:
        patient = Client(proxy.address, timeout_seconds=0.3, retry=Retry(attempts=3, first_seconds=0.01))
        async with patient as client:
            await client.score("pump", values=rows(5), stamps=np.arange(5))
            proxy.deaf = True
            with pytest.raises(ServiceError) as caught:
                await client.score("pump", values=rows(5))
            proxy.cut()
            proxy.deaf = False
            again = await client.score("pump", values=rows(5), stamps=np.arange(5))

    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert hub.host.get("pump").accepted == 10
    assert set(again.statuses.tolist()) == {LATE}


async def test_reading_waits_for_a_server(tmp_path, unused_tcp_port: int) -> None:
    """With `retry` a client that starts before its server gets its answer."""
    settings = hub_settings(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}")
    async with Client(settings.listen, retry=QUICK) as client:
        asked = asyncio.create_task(client.get("pump"))
        await asyncio.sleep(0.1)
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await publish(hub, ewma_bundle("pump"))
        await hub.start()
        assert (await asked)["features"] == ["f1", "f2"]
    await hub.stop()


async def test_a_timeout_is_an_error_with_a_code(hub: Hub) -> None:
    """A server that does not answer: DEADLINE_EXCEEDED, for all calls or for one."""
    async with TcpProxy(f"127.0.0.1:{hub.listener.port}") as proxy:
        proxy.stalled = True
        async with Client(proxy.address, timeout_seconds=0.1) as client:
            with pytest.raises(ServiceError) as all_calls:
                await client.list()
        async with Client(proxy.address) as client:
            with pytest.raises(ServiceError) as one:
                await client.score("pump", values=np.zeros((1, 2)), stamps=[NOW], timeout_seconds=0.1)

    assert all_calls.value.code == one.value.code == "DEADLINE_EXCEEDED"


async def test_a_stream_that_is_shed_comes_back(hub: Hub) -> None:
    """A refused call and refused messages are sent again after the time that was asked for, in order, scored once."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(60)
    async with shedding(hub) as (address, door), Client(address) as client:
        door.calls, door.retry_seconds, door.messages = 1, 0.1, [3, 4, 20]
        async with client.stream("pump", retry=QUICK, unanswered=1) as stream:
            answers = [await stream.send(values[i : i + 1], at(i), "north") for i in range(60)]
            replies = [await it for it in answers]

    assert check(replies, values) == 0
    assert hub.host.get("pump").accepted == 60
    assert stream.reconnects == 4
    assert np.diff(door.seen)[0] >= 0.1  # the second call
    assert [after - refused >= 0.1 for refused, after in zip(door.seen[2::2], door.seen[3::2], strict=True)] == [
        True
    ] * 3


async def test_what_is_overtaken_while_it_is_refused_is_late(hub: Hub) -> None:
    """With several messages on their way a refused one may be overtaken: its points say LATE, and are not `resent`."""
    await publish(hub, ewma_bundle("pump"))
    values = rows(20)
    async with shedding(hub) as (address, door), Client(address) as client:
        door.retry_seconds, door.messages = 0.01, [5]
        async with client.stream("pump", retry=QUICK, unanswered=8) as stream:
            await stream.score(values[:1], at(0), "north")
            answers = [await stream.send(values[i : i + 1], at(i), "north") for i in range(1, 20)]
            replies = [await it for it in answers]

    assert replies[4].statuses.tolist() == [LATE]
    assert math.isnan(replies[4].scores[0])
    assert not len(replies[4].resent)
    assert [it.statuses[0] for it in replies if it is not replies[4]].count(LATE) == 0
