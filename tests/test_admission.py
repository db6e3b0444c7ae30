"""Too much at once is turned away with a time to come again; who does not read stalls nobody but itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import QUICK_TRAINER, eventually, hub_settings, publish
from crashing import Node, stock
from google.rpc import error_details_pb2, status_pb2
from graphs import ewma_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc

from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1.scoring_pb2_grpc import ScoringServiceStub
from server.admission import Gate
from server.app import Hub
from server.bench.load import Load
from server.bench.session import connected
from server.statuses import DETAILS, PUSHBACK

SMALL_WINDOWS = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
"""Of a connection of its own: little fits between a server and a reader that does not read."""


@asynccontextmanager
async def serving(folder: Path, wasted: int = 0, **settings) -> AsyncIterator[tuple[Hub, grpc.aio.Channel]]:
    """A hub with a detector whose steps take as long as asked, and a channel to it."""
    hub = Hub(hub_settings(folder, **settings), trainer=QUICK_TRAINER)
    await hub.start()
    try:
        await publish(hub, ewma_bundle("pump", 1, wasted=wasted), time="index")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
            yield hub, channel
    finally:
        await hub.stop()


def request(points: int = 1, series: str = "a", **fields) -> pb.ScoreRequest:
    """Points of one series."""
    values = np.ones((points, 2), "<f4").tobytes()
    return pb.ScoreRequest(detector="detectors/pump", series=[series], packed_values=values, **fields)


@pytest.mark.promise("L3")
async def test_what_is_too_much_is_refused_with_a_time_to_come_again(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo and pushback, soon; health answers; what was let in is answered."""
    async with serving(tmp_path, max_calls=4, wasted=5) as (hub, channel):
        stub, health = ScoringServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        calls = [stub.Score(request(600, f"s{i}")) for i in range(60)]  # long enough to be in each other's way
        state = await asyncio.wait_for(health.Check(health_pb2.HealthCheckRequest()), 20)
        ended = await asyncio.gather(*calls, return_exceptions=True)
        again = await stub.Score(request(40, "later"))

    refused = [it for it in ended if isinstance(it, grpc.aio.AioRpcError)]
    assert state.status == health_pb2.HealthCheckResponse.SERVING
    assert 4 <= len(ended) - len(refused) < 60
    assert len(again.statuses) == 40
    for error in refused:
        metadata = dict(error.trailing_metadata())
        status, retry = status_pb2.Status.FromString(metadata[DETAILS]), error_details_pb2.RetryInfo()
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4 calls are running already" in error.details()
        assert any(it.Unpack(retry) for it in status.details)
        assert 50 <= int(metadata[PUSHBACK]) <= 10_000
        assert abs(retry.retry_delay.ToMilliseconds() - int(metadata[PUSHBACK])) <= 1
    assert len({dict(it.trailing_metadata())[PUSHBACK] for it in refused}) > len(refused) / 3  # not all at once
    assert hub.metrics.registry.get_sample_value("prunewatch_refused_total") == len(refused)


async def test_streams_are_counted_by_themselves(tmp_path: Path) -> None:
    """A third stream is refused while two are open; calls go on, and with one less there is room again."""
    async with serving(tmp_path, max_streams=2) as (hub, channel):
        stub = ScoringServiceStub(channel)

        async def opened():
            stream = stub.ScoreStream()
            await stream.write(pb.ScoreStreamRequest(sequence=1, points=request()))
            return stream, await stream.read()

        (first, _), (_second, _) = await opened(), await opened()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await opened()
        assert len((await stub.Score(request(series="b"))).statuses) == 1
        first.cancel()
        await eventually(lambda: asyncio.sleep(0, hub.listener.gate.streams == 1))
        _, answer = await opened()

    assert "2 streams are open already" in caught.value.details()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.WhichOneof("result") == "scores"


def test_the_time_to_come_again_grows_with_what_calls_take() -> None:
    """And has bounds."""
    gate = Gate(0, 1)
    short = gate.refusal(streaming=False).retry_seconds
    gate._seconds = 2.0
    long = [gate.refusal(streaming=False).retry_seconds for _ in range(50)]
    gate._seconds = 1e6
    longest = gate.refusal(streaming=False).retry_seconds
    assert 0.05 <= short <= 0.1
    assert 2 <= min(long) < max(long) <= 4
    assert 5 <= longest <= 10


@pytest.mark.promise("L3")
async def test_a_call_whose_time_is_over_is_not_begun(tmp_path: Path) -> None:
    """Behind a long step: its points are not taken."""
    async with serving(tmp_path, wasted=20) as (hub, channel):
        stub = ScoringServiceStub(channel)
        long = stub.Score(request(60, "long"))
        await asyncio.sleep(0.05)
        late = await asyncio.gather(
            *(stub.Score(request(1, f"late{i}"), timeout=0.02) for i in range(5)), return_exceptions=True
        )
        await long
        await asyncio.sleep(0.2)
        series = hub.host.get("pump").live().series

    assert {it.code() for it in late if isinstance(it, grpc.aio.AioRpcError)} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    taken = sum(int(series.seen[slot]) for slot in series.known([f"late{i}" for i in range(5)]))
    assert taken <= sum(not isinstance(it, BaseException) for it in late)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.promise("L3")
async def test_ten_times_what_can_be_done_over_streams_is_held_back(tmp_path: Path) -> None:
    """An open loop: as much is answered as at most, no error, and health answers soon: streams push back."""
    node = Node(tmp_path / "store", tmp_path / "log", detectors={"pump": {"time": "index"}})
    stock(tmp_path / "store")
    node.start()
    waits, states = [], []

    async def ask(channel: grpc.aio.Channel) -> None:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            began = time.monotonic()
            states.append((await health.Check(health_pb2.HealthCheckRequest(), timeout=20)).status)
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.2)

    try:
        async with connected(node.address, "pump") as bench, grpc.aio.insecure_channel(node.address) as channel:
            load = Load(series=256, concurrency=4, duration=2, warm_up=1, timeout=20)
            most = (await bench.measure(load)).answered_rate
            asking = asyncio.create_task(ask(channel))
            flood = await bench.measure(replace(load, rate=10 * most, duration=3))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        node.kill()

    assert flood.answered_rate > 0.6 * most  # 0.8 are promised; this test's client shares the cores
    assert flood.measured.failed == 0
    assert set(states) == {health_pb2.HealthCheckResponse.SERVING}
    assert np.median(waits) < 1


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.promise("L2")
async def test_who_does_not_read_is_ended_and_stalls_nobody(tmp_path: Path) -> None:
    """A hundred streams that write and never read are ended soon; others are served meanwhile."""
    async with serving(tmp_path, slow_reader_seconds=5.0) as (hub, channel):
        stub = ScoringServiceStub(channel)
        calm = await _times(stub, 100)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}", options=SMALL_WINDOWS) as other:
            deaf = [asyncio.create_task(_write_only(other)) for _ in range(100)]

            await eventually(lambda: asyncio.sleep(0, len(hub.listener.streams.waiting(0.5)) == 100))
            began = time.monotonic()
            beside = await _times(stub, 100)
            await eventually(lambda: asyncio.sleep(0, hub.listener.gate.streams == 0), seconds=30)
            took = time.monotonic() - began
            for task in deaf:
                task.cancel()
            await asyncio.gather(*deaf, return_exceptions=True)
        count = hub.metrics.registry.get_sample_value("prunewatch_slow_readers_total")
        callers = hub.host.get("pump").stepper.callers

    assert (count, callers) == (100, 0)
    assert took < 15
    assert np.median(beside) < 5 * np.median(calm) + 0.005  # would be seconds if they had to wait for it


async def _times(stub: ScoringServiceStub, n: int) -> list[float]:
    times = []
    for i in range(n):
        began = time.perf_counter()
        await stub.Score(request(series=f"calm{i}"))
        times.append(time.perf_counter() - began)
    return times


async def _write_only(channel: grpc.aio.Channel) -> None:
    """Sends points of 2,000 series until the server takes no more, and never reads an answer."""
    stream = ScoringServiceStub(channel).ScoreStream()
    names = [f"s{i}" for i in range(2000)]
    values = np.ones((2000, 2), "<f4").tobytes()
    points = pb.ScoreRequest(
        detector="detectors/pump", series=names, packed_values=values, mode=pb.SCORE_MODE_EPHEMERAL
    )
    with suppress(grpc.aio.AioRpcError):
        for sequence in range(10_000):
            await stream.write(pb.ScoreStreamRequest(sequence=sequence, points=points))
            points.ClearField("series")
