"""The client side of the benchmark of scoring: messages, ways to send them, and what the two services look like."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
from echo_service import SERVICE
from scoring_models import FEATURES, SERIES, SMALL

from prunewatch.v1 import scoring_pb2 as pb

IN_FLIGHT = 8
FIRST_STAMP, SECOND = 1_700_000_000_000_000_000, 1_000_000_000
TICK = os.sysconf("SC_CLK_TCK")
WARM_MESSAGES = 60
SCORING = "/prunewatch.v1.ScoringService/"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Side:
    """One of the services, as this client sees it.

    Attributes:
        pid: Of its process.
        stream: Opens a stream.
        unary: Calls once.
        scores: Its answers are those of a hub.
    """

    pid: int
    stream: Any
    unary: Any
    scores: bool


class Messages:
    """Requests as bytes, made before the clock starts; stamps go on from request to request.

    Args:
        detector: Who scores them.
    """

    def __init__(self, detector: str = SMALL) -> None:
        self._detector = f"detectors/{detector}"
        self._values = harness.drawn(512, SERIES, FEATURES, seed=1)
        self._stamps = itertools.count(FIRST_STAMP, SECOND)

    def stream(self, n: int) -> list[bytes]:
        """Messages of 256 points; to be sent on an open stream."""
        return [pb.ScoreStreamRequest(sequence=k, points=self._points(k)).SerializeToString() for k in range(1, n + 1)]

    def opening(self) -> bytes:
        """The first message of a stream."""
        points = self._points(0)
        points.detector, points.mode = self._detector, pb.SCORE_MODE_LIVE
        points.series.extend(f"series-{i:03}" for i in range(SERIES))
        return pb.ScoreStreamRequest(points=points).SerializeToString()

    def unary(self, n: int) -> list[bytes]:
        """Requests of one point of one series."""
        return [
            pb.ScoreRequest(
                detector=self._detector,
                series=["alone"],
                stamps=[next(self._stamps)],
                packed_values=self.values(k)[0].tobytes(),
            ).SerializeToString()
            for k in range(n)
        ]

    def values(self, k: int) -> np.ndarray:
        """Values [B, F] of message `k` of a stream; 0 is the opening."""
        return self._values[k % len(self._values)]

    def _points(self, k: int) -> pb.ScoreRequest:
        return pb.ScoreRequest(stamps=[next(self._stamps)] * SERIES, packed_values=self.values(k).tobytes())


async def pipelined(call: Any, messages: list[bytes]) -> bytes:
    """Sends all messages with up to `IN_FLIGHT` unanswered; returns the last answer."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def send() -> None:
        for message in messages:
            await free.acquire()
            await call.write(message)

    sending = asyncio.create_task(send())
    answer = b""
    for _ in messages:
        answer = await call.read()
        free.release()
    await sending
    return answer


async def one_by_one(call: Any, messages: list[bytes]) -> bytes:
    """Sends each message after the answer to the one before; returns the last."""
    answer = b""
    for message in messages:
        await call.write(message)
        answer = await call.read()
    return answer


Way = Callable[[Any, list[bytes]], Awaitable[bytes]]


def require_scored(answer: bytes) -> pb.ScoreResponse:
    """What a hub has answered in a stream; ends the benchmark where a point has no score."""
    told = pb.ScoreStreamResponse.FromString(answer)
    if told.WhichOneof("result") != "scores" or set(told.scores.statuses) != {pb.POINT_STATUS_OK}:
        sys.exit(f"the hub does not score: {told}")
    return told.scores


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def measured(way: Way, side: Side, opening: bytes, messages: list[bytes]) -> tuple[float, float]:
    """Points a second, and the service's processor seconds a message, on a stream of its own."""
    call = side.stream()
    await one_by_one(call, [opening, *messages[:20]])
    cpu, began = cpu_seconds(side.pid), time.perf_counter()
    answer = await way(call, messages[20:])
    taken, used = time.perf_counter() - began, cpu_seconds(side.pid) - cpu
    await call.done_writing()
    if side.scores:
        require_scored(answer)
    n = len(messages) - 20
    return n * SERIES / taken, used / n


async def unary_times(side: Side, requests: list[bytes]) -> np.ndarray:
    """Seconds of each call."""
    times = []
    for request in requests:
        began = time.perf_counter()
        await side.unary(request)
        times.append(time.perf_counter() - began)
    return np.array(times[len(times) // 10 :])


async def require_scores(hub: Side, messages: Messages, graph: bytes | None = None) -> None:
    """Warms every series up and stops the benchmark when the hub does not answer with scores.

    Args:
        hub: Whose series are fresh where `graph` is given.
        messages: To send.
        graph: Of the bundle that serves: the answers must be the scores of its steps from a fresh state.
    """
    call = hub.stream()
    answer = await one_by_one(call, [messages.opening(), *messages.stream(WARM_MESSAGES)])
    await call.done_writing()
    scores = require_scored(answer)
    if graph is None:
        return
    from detectors.runtime import Runtime

    runtime = Runtime(graph)
    state = runtime.fresh(SERIES)
    for k in range(WARM_MESSAGES + 1):
        step = runtime.step(messages.values(k), state)
        state = step.state
    served = np.frombuffer(scores.packed_scores, "<f4")
    if not np.allclose(served, step.score, rtol=1e-4, atol=1e-4):
        sys.exit(f"the hub's scores are not those of its bundle: {np.abs(served - step.score).max():.2g} apart")


_GIVEN: set[int] = set()


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on and that were not given before: the system likes to give the last one again."""
    ports: list[int] = []
    while len(ports) < n:
        with socket.create_server(("127.0.0.1", 0)) as made:
            port = made.getsockname()[1]
        if port not in _GIVEN:
            _GIVEN.add(port)
            ports.append(port)
    return ports


def answer_sizes() -> Iterator[int]:
    """Bytes of the hub's answers: in a stream, and to one point."""
    for n in (SERIES, 1):
        scores = pb.ScoreResponse(version=1, threshold=3, packed_scores=bytes(4 * n), statuses=bytes([1]) * n)
        yield (pb.ScoreStreamResponse(sequence=1000, scores=scores) if n > 1 else scores).ByteSize()


def two_cores() -> list[int]:
    """The cores for client and services.

    Raises:
        harness.Skip: there are no two, or processes can not be pinned here.
    """
    cores = harness.cores()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        raise harness.Skip("it needs Linux and two cores, one for the service and one for the client")
    return cores


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keeps this process on one core; those that it starts inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


Command = tuple[str, ...]


def serve_command(config: Path, port: int) -> Command:
    """A hub, as a user starts it."""
    (admin,) = free_ports(1)
    addresses = ("--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}")
    return (*harness.CLI, "serve", "--config", str(config), *addresses)


@contextlib.asynccontextmanager
async def hub(command: Command, port: int, folder: Path, core: int) -> AsyncIterator[Side]:
    """A hub on one core, and the way to it."""
    log = folder / f"hub-{port}.log"
    with harness.running(harness.pinned(core, command), log) as process:
        async with connected(port, log=log) as channel:
            stream, unary = (channel.stream_stream(f"{SCORING}ScoreStream"), channel.unary_unary(f"{SCORING}Score"))
            yield Side(process.pid, stream, unary, scores=True)


@contextlib.asynccontextmanager
async def echo(folder: Path, core: int, port: int = 0) -> AsyncIterator[Side]:
    """The echo on one core: answers of the sizes that the hub's have; port 0: a free one."""
    port = port or free_ports(1)[0]
    stream_bytes, unary_bytes = answer_sizes()
    command = [sys.executable, str(HERE / "echo_service.py"), "--port", str(port)]
    command += ["--stream-bytes", str(stream_bytes), "--unary-bytes", str(unary_bytes)]
    with harness.running(harness.pinned(core, command), folder / "echo.log") as process:
        async with connected(port) as channel:
            stream, unary = channel.stream_stream(f"/{SERVICE}/Stream"), channel.unary_unary(f"/{SERVICE}/Unary")
            yield Side(process.pid, stream, unary, scores=False)


@contextlib.asynccontextmanager
async def connected(port: int, seconds: float = 60, log: Path | None = None) -> AsyncIterator[Any]:
    """A channel, once somebody listens.

    Args:
        port: Of a service that has just been started.
        seconds: How long to wait for it.
        log: Of the service; its end is shown when nobody listens.

    Raises:
        TimeoutError: nobody listens.
    """
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), seconds)
        except TimeoutError:
            harness.say(_end_of(log))
            raise TimeoutError(f"it did not listen within {seconds:.0f} s") from None
        yield channel


def _end_of(log: Path | None) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log else ""
