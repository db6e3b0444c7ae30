"""L7: who is told to end says so first, answers what it has begun, ends its streams, and exits well."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from crashing import Node, stock
from grpc_health.v1 import health_pb2, health_pb2_grpc

from detectors.stamps import Status
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1.scoring_pb2_grpc import ScoringServiceStub

CALLERS, STREAMS = 8, 4
ONE = np.ones((1, 2), "<f4").tobytes()
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def point(series: str, row: int) -> pb.ScoreRequest:
    """One point of a series."""
    return pb.ScoreRequest(detector="detectors/pump", series=[series], stamps=[row], packed_values=ONE)


class Load:
    """Callers and streams that send a point after the other until the server is gone; remembers what was answered."""

    def __init__(self, stub: ScoringServiceStub) -> None:
        self._stub = stub
        self.answered: dict[str, int] = {}
        """Points of each series, from the first on."""
        self.codes: dict[str, grpc.StatusCode] = {}
        """How each caller and stream ended."""
        self.first_failure = float("inf")

    def _ended(self, series: str, error: grpc.aio.AioRpcError) -> None:
        self.codes[series] = error.code()
        self.first_failure = min(self.first_failure, time.monotonic())

    async def call(self, series: str) -> None:
        """Calls, one after the other."""
        self.answered[series] = 0
        try:
            while True:
                await self._stub.Score(point(series, self.answered[series]))
                self.answered[series] += 1
        except grpc.aio.AioRpcError as error:
            self._ended(series, error)

    async def stream(self, series: str, pause: float) -> None:
        """A stream; with a long pause an idle one."""
        self.answered[series] = 0
        call = self._stub.ScoreStream()
        try:
            while True:
                points = point(series, self.answered[series])
                if self.answered[series]:
                    points.ClearField("series")  # named once
                await call.write(pb.ScoreStreamRequest(sequence=1, points=points))
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    break
                assert answer.WhichOneof("result") == "scores"
                self.answered[series] += 1
                if pause and await call.read() is grpc.aio.EOF:
                    break
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        code = await call.code()
        # What a client says itself that writes to a stream which has just been ended.
        is_own = "Internal error from Core" in (await call.details() or "")
        self.codes[series] = grpc.StatusCode.UNAVAILABLE if is_own else code


@pytest.mark.slow
@pytest.mark.promise("L7")
async def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    """Twice: NOT_SERVING before anything fails, nothing is taken and not answered, streams end soon, exit 0."""
    node = Node(tmp_path / "store", tmp_path / "log", detectors={"pump": {"time": "index"}}, drain_seconds=20)
    stock(tmp_path / "store")
    node.start()
    process = node.process
    assert process is not None
    not_serving = float("inf")

    async def watch(channel: grpc.aio.Channel) -> None:
        nonlocal not_serving
        async for state in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            if state.status == NOT_SERVING:
                not_serving = time.monotonic()

    try:
        async with grpc.aio.insecure_channel(node.address) as channel, grpc.aio.insecure_channel(node.address) as own:
            load = Load(ScoringServiceStub(channel))
            watching = asyncio.create_task(watch(own))
            working = [
                *(asyncio.create_task(load.call(f"call{i}")) for i in range(CALLERS)),
                *(asyncio.create_task(load.stream(f"stream{i}", 0)) for i in range(STREAMS)),
                asyncio.create_task(load.stream("idle", 60)),
            ]
            await asyncio.sleep(2)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*working), 30)
            code = await asyncio.to_thread(process.wait, 30)
            took = time.monotonic() - began
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        node.start()
        async with grpc.aio.insecure_channel(node.address) as channel:
            stub = ScoringServiceStub(channel)
            again = {
                series: [(await stub.Score(point(series, row))).statuses[0] for row in (count - 1, count) if row >= 0]
                for series, count in load.answered.items()
            }
    finally:
        node.kill()

    assert code == 0
    assert took < 12  # half of it may be a busy machine; without an end of idle streams it would be 20
    assert set(load.codes.values()) == {grpc.StatusCode.UNAVAILABLE}, load.codes
    assert not_serving < load.first_failure
    assert all(count > 0 for count in load.answered.values())
    taken = {Status.OK, Status.WARMING_UP}  # the idle stream has sent one point
    assert not {series: it for series, it in again.items() if it[0] != Status.DUPLICATE or it[1] not in taken}
