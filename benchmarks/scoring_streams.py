"""Many open streams with a point a second each, and whether memory stays flat."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import harness
import numpy as np
import psutil
import scoring_client as client
from echo_service import SERVICE
from scoring_client import FIRST_STAMP, SECOND, Messages
from scoring_models import FEATURES, SERIES, SMALL
from scoring_report import Part, at_most, ms, table

from prunewatch.v1 import scoring_pb2 as pb

STREAMS, CONNECTIONS = 1000, 8
BYTES_TARGET, P99_TARGET = 64 << 10, 0.05
OPEN_AT_ONCE = 50
SETTLE_SECONDS = 8.0
"""The first history is written after five seconds, and loads what writes it: once, however many streams there are."""
WELL = {pb.POINT_STATUS_OK, pb.POINT_STATUS_WARMING_UP}
GROWTH_TARGET = 1.0  # MB an hour
MESSAGES_PER_SECOND = 100.0
SETTLE_SHARE = 0.25  # of the time, before memory counts: buffers, caches and the allocator fill
SAMPLE_SECONDS = 1.0
TIDES = 30
"""Memory rises and falls as history is written; what stays is the lowest of each of so many parts of the time."""


@dataclass
class Found:
    """Of all streams of one service.

    Attributes:
        seconds: From when each point was due to its answer.
        errors: Answers that were none, and streams that ended.
        bytes_a_stream: What the service's resident memory grew by.
    """

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    bytes_a_stream: float = 0.0


async def hold(pid: int, channels: list[Any], method: str, seconds: float, *, parse: bool) -> Found:
    """Opens all streams, sends a point a second on each, and closes them.

    Args:
        pid: Of the service.
        channels: Connections to it.
        method: Of the stream.
        seconds: How long.
        parse: Answers are those of a hub and are looked at.
    """
    found, process = Found(), psutil.Process(pid)
    before = process.memory_info().rss
    entry = asyncio.Semaphore(OPEN_AT_ONCE)
    opened = itertools.count(1)
    everyone, start = asyncio.Event(), [0.0]
    values = harness.drawn(int(seconds) + 2, STREAMS, FEATURES, seed=6)

    async def one(i: int) -> None:
        call = channels[i % len(channels)].stream_stream(method)()
        try:
            async with entry:
                await _ask(call, _message(i, 0, values), found, parse=parse)
            if next(opened) == STREAMS:
                start[0] = time.perf_counter()
                everyone.set()
            await everyone.wait()
            for turn in range(1, int(seconds) + 1):
                due = start[0] + turn + i / STREAMS
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await _ask(call, _message(i, turn, values), found, parse=parse)
                found.seconds.append(time.perf_counter() - due)
            await call.done_writing()
        except grpc.aio.AioRpcError:
            found.errors += 1
            if next(opened) == STREAMS:
                everyone.set()

    streams = [asyncio.create_task(one(i)) for i in range(STREAMS)]
    await everyone.wait()
    await asyncio.sleep(seconds - 1)
    found.bytes_a_stream = (process.memory_info().rss - before) / STREAMS
    await asyncio.gather(*streams)
    return found


async def _ask(call: Any, message: bytes, found: Found, *, parse: bool) -> None:
    await call.write(message)
    answer = await call.read()
    if answer is grpc.aio.EOF:
        found.errors += 1
    elif parse:
        told = pb.ScoreStreamResponse.FromString(answer)
        found.errors += told.WhichOneof("result") != "scores" or not set(told.scores.statuses) <= WELL


def _message(stream: int, turn: int, values: np.ndarray) -> bytes:
    points = pb.ScoreRequest(stamps=[FIRST_STAMP + turn * SECOND], packed_values=values[turn, stream].tobytes())
    if turn == 0:
        points.detector = f"detectors/{SMALL}"
        points.series.append(f"stream-{stream}")
    return pb.ScoreStreamRequest(sequence=turn, points=points).SerializeToString()


@contextlib.asynccontextmanager
async def connections(port: int) -> AsyncIterator[list[Any]]:
    """Several connections to one address."""
    async with contextlib.AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else channels of one process share a connection
        made = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CONNECTIONS)]
        for channel in made:
            await stack.enter_async_context(channel)
            await asyncio.wait_for(channel.channel_ready(), 60)
        yield made


async def run(config: Path, folder: Path, core: int, *, quick: bool) -> Part:
    """The hub, then the echo, each on one core.

    Args:
        config: Of the hub.
        folder: For logs.
        core: Of the services.
        quick: For a shorter time.
    """
    seconds, found = (8.0 if quick else 60.0), {}
    hub_port, echo_port = client.free_ports(2)
    async with client.hub(client.serve_command(config, hub_port), hub_port, folder, core) as hub:
        await client.require_scores(hub, Messages())
        await asyncio.sleep(SETTLE_SECONDS)
        harness.say(f"{STREAMS} streams of the hub")
        async with connections(hub_port) as channels:
            found["prunewatch"] = await hold(hub.pid, channels, f"{client.SCORING}ScoreStream", seconds, parse=True)
    async with client.echo(folder, core, echo_port) as echo:
        await client.one_by_one(echo.stream(), Messages().stream(client.WARM_MESSAGES))
        harness.say(f"{STREAMS} streams of the echo")
        async with connections(echo_port) as channels:
            found["echo"] = await hold(echo.pid, channels, f"/{SERVICE}/Stream", seconds, parse=False)
    return _part(found, seconds)


def _part(found: dict[str, Found], seconds: float) -> Part:
    times = {
        name: {q: float(np.percentile(it.seconds, float(q[1:]))) for q in ("p50", "p99")} for name, it in found.items()
    }
    hub, echo = found["prunewatch"], found["echo"]
    errors = f"0: {harness.verdict(hub.errors == 0)}"
    size = at_most(round(hub.bytes_a_stream / 1024, 1), BYTES_TARGET >> 10, " KiB")
    rows = [
        ["errors", str(hub.errors), str(echo.errors), errors],
        ["memory a stream, with its series", *(f"{it.bytes_a_stream / 1024:.1f} KiB" for it in (hub, echo)), size],
        ["p50", *(ms(times[name]["p50"]) for name in found), ""],
        [
            "p99",
            *(ms(times[name]["p99"]) for name in found),
            at_most(round(1e3 * times["prunewatch"]["p99"], 2), 1e3 * P99_TARGET, " ms"),
        ],
    ]
    figures = {
        "streams": STREAMS,
        "seconds": seconds,
        **{
            name: {
                "errors": it.errors,
                "points": len(it.seconds),
                "bytes_a_stream": it.bytes_a_stream,
                **{f"{q}_seconds": value for q, value in times[name].items()},
            }
            for name, it in found.items()
        },
    }
    ratios = {"stream_p99_vs_echo": times["prunewatch"]["p99"] / times["echo"]["p99"]}
    title = f"{STREAMS:,} open streams with a point a second each, for {seconds:.0f} s"
    return Part(title, figures, ratios, table(["", "prunewatch", "echo", "target"], rows))


async def memory(config: Path, folder: Path, core: int, minutes: float) -> Part:
    """Resident memory of a hub under messages that are right, wrong and cancelled.

    Args:
        config: Of the hub.
        folder: For logs.
        core: Of the hub.
        minutes: How long.
    """
    (port,) = client.free_ports(1)
    async with client.hub(client.serve_command(config, port), port, folder, core) as hub:
        messages = Messages()
        await client.require_scores(hub, messages)
        process, end = psutil.Process(hub.pid), time.monotonic() + 60 * minutes
        samples: list[tuple[float, int]] = []
        sent = {"right": 0, "wrong": 0, "cancelled": 0}
        call = hub.stream()
        await client.one_by_one(call, [messages.opening()])
        wrong = pb.ScoreStreamRequest(points=pb.ScoreRequest(packed_values=b"123")).SerializeToString()
        sampled = 0.0
        for turn in itertools.count():
            now = time.monotonic()
            if now > end:
                break
            if now - sampled >= SAMPLE_SECONDS:
                sampled = now
                samples.append((now, process.memory_info().rss))
                await _cancelled(hub, messages)
                sent["cancelled"] += 1
            is_wrong = turn % 10 == 9
            await client.one_by_one(call, [wrong] if is_wrong else messages.stream(1))
            sent["wrong" if is_wrong else "right"] += 1
            await asyncio.sleep(max(0.0, now + 1 / MESSAGES_PER_SECOND - time.monotonic()))
        await call.done_writing()
    settled = np.array(samples[int(len(samples) * SETTLE_SHARE) :], np.float64)
    tides = [it[it[:, 1].argmin()] for it in np.array_split(settled, min(TIDES, max(2, len(settled) // 2)))]
    at, size = np.array(tides).T
    slope = float(np.polyfit((at - at[0]) / 3600, size / 1e6, 1)[0])
    figures = {
        "minutes": minutes,
        "messages": sent,
        "points": sent["right"] * SERIES,
        "megabytes_an_hour": slope,
        "lowest_bytes": size.astype(int).tolist(),
    }
    heads = ["minutes", "messages right / wrong / cancelled", "resident, lowest, first -> last", "growth", "target"]
    counts = " / ".join(f"{n:,}" for n in sent.values())
    row = [
        f"{minutes:g}",
        counts,
        f"{size[0] / 1e6:.1f} -> {size[-1] / 1e6:.1f} MB",
        f"{slope:.2f} MB/h",
        at_most(round(slope, 2), GROWTH_TARGET, " MB/h"),
    ]
    return Part("Memory under load", figures, {}, table(heads, [row]))


async def _cancelled(hub: client.Side, messages: Messages) -> None:
    """A stream that its caller gives up before the answer."""
    call = hub.stream()
    await call.write(messages.opening())
    call.cancel()
