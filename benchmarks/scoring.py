"""What scoring costs over gRPC: a `prunewatch serve` against a bare echo service, each on one core.

The hub serves an LSTM 2x32 of 8 features on one core. This process, on another core, sends it messages of 256 points of
256 series with stamps through ScoreStream in LIVE mode: series keep their state and points are kept as in service. The
echo service (benchmarks/echo_service.py) takes and returns messages of the same sizes and does nothing else, so the
ratio says how much of gRPC's own throughput is left. Both get the same bytes from the same client, turn by turn, and
the medians over all turns are compared.

  one by one  the next message is sent when the answer is there
  pipelined   up to 8 messages are on their way; an echo then answers several each time it is woken, while a service
              that works between two messages is woken for each
  unary       one point in a Score call of its own: latency

Example:
  python benchmarks/scoring.py --quick --json scoring.json

Needs two cores and Linux. Target: points_vs_echo (one by one) >= 0.25; the same limit is shown for pipelined.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
from echo_service import SERVICE

from prunewatch.v1 import scoring_pb2 as pb

SERIES, FEATURES, WIDTH = 256, 8, 32
FIT_POINTS = 4000
IN_FLIGHT = 8
TARGET = 0.25
FIRST_STAMP, SECOND = 1_700_000_000_000_000_000, 1_000_000_000
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Length:
    """How much of everything: rounds, and messages or calls a round."""

    rounds: int
    pipelined: int
    one_by_one: int
    unary: int


FULL, QUICK = Length(15, 3000, 1500, 800), Length(5, 1500, 700, 400)


@dataclass(frozen=True)
class Side:
    """One of the two services, as this client sees it."""

    pid: int
    stream: Any
    unary: Any


class Messages:
    """Requests as bytes, made before the clock starts; stamps go on from request to request."""

    def __init__(self) -> None:
        self._values = harness.drawn(512, SERIES, FEATURES, seed=1)
        self._stamps = itertools.count(FIRST_STAMP, SECOND)

    def stream(self, n: int) -> list[bytes]:
        """Messages of 256 points; to be sent on an open stream."""
        return [pb.ScoreStreamRequest(sequence=k, points=self._points(k)).SerializeToString() for k in range(1, n + 1)]

    def opening(self) -> bytes:
        """The first message of a stream."""
        points = self._points(0)
        points.detector, points.mode = "detectors/machine", pb.SCORE_MODE_LIVE
        points.series.extend(f"series-{i:03}" for i in range(SERIES))
        return pb.ScoreStreamRequest(points=points).SerializeToString()

    def unary(self, n: int) -> list[bytes]:
        """Requests of one point of one series."""
        return [
            pb.ScoreRequest(
                detector="detectors/machine",
                series=["alone"],
                stamps=[next(self._stamps)],
                packed_values=self._values[k % len(self._values), 0].tobytes(),
            ).SerializeToString()
            for k in range(n)
        ]

    def _points(self, k: int) -> pb.ScoreRequest:
        values = self._values[k % len(self._values)]
        return pb.ScoreRequest(stamps=[next(self._stamps)] * SERIES, packed_values=values.tobytes())


async def pipelined(call: Any, messages: list[bytes]) -> None:
    """Sends all messages with up to `IN_FLIGHT` unanswered."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def send() -> None:
        for message in messages:
            await free.acquire()
            await call.write(message)

    sending = asyncio.create_task(send())
    for _ in messages:
        await call.read()
        free.release()
    await sending


async def one_by_one(call: Any, messages: list[bytes]) -> None:
    """Sends each message after the answer to the one before."""
    for message in messages:
        await call.write(message)
        await call.read()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def measured(
    way: Callable[[Any, list[bytes]], Awaitable[None]], side: Side, opening: bytes, messages: list[bytes]
) -> tuple[float, float]:
    """Points a second, and the service's processor seconds a message, on a stream of its own."""
    call = side.stream()
    await one_by_one(call, [opening, *messages[:20]])
    cpu, began = cpu_seconds(side.pid), time.perf_counter()
    await way(call, messages[20:])
    taken, used = time.perf_counter() - began, cpu_seconds(side.pid) - cpu
    await call.done_writing()
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


async def compare(hub: Side, echo: Side, length: Length) -> dict[str, dict[str, list[float]]]:
    """Measures both, turn by turn; by side and kind one value a round."""
    messages, sides = Messages(), {"hub": hub, "echo": echo}
    await answers_are_scores(hub, messages)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for turn in range(length.rounds):
        harness.say(f"round {turn + 1} of {length.rounds}")
        for name in sorted(sides, reverse=turn % 2 == 0):
            side, kept = sides[name], found[name]
            for way, n in ((pipelined, length.pipelined), (one_by_one, length.one_by_one)):
                rate, cpu = await measured(way, side, messages.opening(), messages.stream(n))
                kept.setdefault(f"{way.__name__}_points_per_second", []).append(rate)
                kept.setdefault(f"{way.__name__}_cpu_seconds", []).append(cpu)
            times = await unary_times(side, messages.unary(length.unary))
            kept.setdefault("unary_p50_seconds", []).append(float(np.median(times)))
    return found


async def answers_are_scores(hub: Side, messages: Messages) -> None:
    """Warms every series up and stops the benchmark when the hub does not answer with scores."""
    call = hub.stream()
    for message in [messages.opening(), *messages.stream(60)]:
        await call.write(message)
        answer = pb.ScoreStreamResponse.FromString(await call.read())
    await call.done_writing()
    if answer.WhichOneof("result") != "scores" or set(answer.scores.statuses) != {pb.POINT_STATUS_OK}:
        sys.exit(f"the hub does not score: {answer}")


def fitted_store(folder: Path, width: int = WIDTH) -> Path:
    """A configuration beside a store that holds an LSTM of two such layers, fitted through the command line."""
    import pandas as pd

    values = harness.drawn(FIT_POINTS, 1, FEATURES, seed=2)[:, 0]
    frame = pd.DataFrame(values, columns=[f"f{i + 1}" for i in range(FEATURES)])
    frame.to_csv(folder / "train.csv", index_label="row")
    config = folder / "prunewatch.yaml"
    config.write_text(f"store: {folder / 'store'}\ndetectors:\n  machine: {{options: {{layers: 2, width: {width}}}}}\n")
    command = ["fit", "machine", "--data", str(folder / "train.csv"), "--config", str(config)]
    harness.say(f"fitting an LSTM 2x{width}")
    subprocess.run([*harness.CLI, *command, "--store", str(folder / "store")], cwd=harness.ROOT, check=True, stdout=2)
    return config


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def answer_sizes() -> Iterator[int]:
    """Bytes of the hub's answers: in a stream, and to one point."""
    for n in (SERIES, 1):
        scores = pb.ScoreResponse(version=1, threshold=3, packed_scores=bytes(4 * n), statuses=bytes([1]) * n)
        yield (pb.ScoreStreamResponse(sequence=1000, scores=scores) if n > 1 else scores).ByteSize()


def run(*, quick: bool) -> harness.Result:
    """Starts both services, compares them, and ends them.

    Raises:
        harness.Skip: there are no two cores, or processes can not be pinned here.
    """
    cores = harness.cores()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        raise harness.Skip("it needs Linux and two cores, one for the service and one for the client")
    with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as name:
        folder = Path(name)
        config = fitted_store(folder)
        scoring_port, admin_port, echo_port = free_ports(3)
        serve = [*harness.CLI, "serve", "--config", str(config), "--listen", f"127.0.0.1:{scoring_port}"]
        serve += ["--admin", f"127.0.0.1:{admin_port}"]
        stream_bytes, unary_bytes = answer_sizes()
        echo = [sys.executable, str(Path(__file__).with_name("echo_service.py")), "--port", str(echo_port)]
        echo += ["--stream-bytes", str(stream_bytes), "--unary-bytes", str(unary_bytes)]
        with (
            harness.running(harness.pinned(cores[1], serve), folder / "hub.log") as hub_process,
            harness.running(harness.pinned(cores[1], echo), folder / "echo.log") as echo_process,
        ):
            os.sched_setaffinity(0, {cores[0]})
            try:
                found = asyncio.run(
                    _connected(scoring_port, hub_process.pid, echo_port, echo_process.pid, QUICK if quick else FULL)
                )
            finally:
                os.sched_setaffinity(0, set(cores))
    return _result(found)


async def _connected(
    hub_port: int, hub_pid: int, echo_port: int, echo_pid: int, length: Length
) -> dict[str, dict[str, list[float]]]:
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{hub_port}") as to_hub,
        grpc.aio.insecure_channel(f"127.0.0.1:{echo_port}") as to_echo,
    ):
        await asyncio.wait_for(asyncio.gather(to_hub.channel_ready(), to_echo.channel_ready()), 60)
        scoring = "/prunewatch.v1.ScoringService/"
        hub = Side(hub_pid, to_hub.stream_stream(f"{scoring}ScoreStream"), to_hub.unary_unary(f"{scoring}Score"))
        echo = Side(echo_pid, to_echo.stream_stream(f"/{SERVICE}/Stream"), to_echo.unary_unary(f"/{SERVICE}/Unary"))
        return await compare(hub, echo, length)


def _result(found: dict[str, dict[str, list[float]]]) -> harness.Result:
    hub, echo = ({kind: float(np.median(values)) for kind, values in found[name].items()} for name in ("hub", "echo"))
    ratios = {
        "points_vs_echo": hub["one_by_one_points_per_second"] / echo["one_by_one_points_per_second"],
        "points_vs_echo_pipelined": hub["pipelined_points_per_second"] / echo["pipelined_points_per_second"],
        "cpu_vs_echo": hub["one_by_one_cpu_seconds"] / echo["one_by_one_cpu_seconds"],
        "cpu_vs_echo_pipelined": hub["pipelined_cpu_seconds"] / echo["pipelined_cpu_seconds"],
        "unary_p50_vs_echo": hub["unary_p50_seconds"] / echo["unary_p50_seconds"],
    }
    rows = ["| | prunewatch | echo | prunewatch / echo | target |", "| --- | --- | --- | --- | --- |"]
    for way, label, suffix in (("one_by_one", "one by one", ""), ("pipelined", "pipelined", "_pipelined")):
        ratio = ratios[f"points_vs_echo{suffix}"]
        rates = [f"{side[f'{way}_points_per_second'] / 1e6:.2f} M" for side in (hub, echo)]
        rows.append(_row(f"points/s, {label}", rates, ratio, f">= {TARGET}: {harness.verdict(ratio >= TARGET)}"))
        times = [_us(side[f"{way}_cpu_seconds"]) for side in (hub, echo)]
        rows.append(_row(f"processor time a message, {label}", times, ratios[f"cpu_vs_echo{suffix}"]))
    unary = [_us(side["unary_p50_seconds"]) for side in (hub, echo)]
    rows.append(_row("one point, unary, p50", unary, ratios["unary_p50_vs_echo"]))
    figures = {"prunewatch": hub, "echo": echo, "rounds": len(found["hub"]["unary_p50_seconds"])}
    return harness.Result(figures, ratios, "\n".join(rows))


def _row(label: str, sides: Iterable[str], ratio: float, target: str = "") -> str:
    return f"| {label} | {' | '.join(sides)} | {ratio:.2f} | {target} |"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    try:
        harness.publish("scoring", run(quick=args.quick), args)
    except harness.Skip as reason:
        harness.skip("scoring", reason, args)


if __name__ == "__main__":
    main()
