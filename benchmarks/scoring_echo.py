"""The hub against the echo: throughput, one point alone, and how long messages take at half load."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import scoring_client as client
from scoring_client import Messages, Side
from scoring_models import FEATURES, SERIES
from scoring_report import Part, at_least, at_most, ms, rate, table, us

POINTS_TARGET = 0.4
UNARY_TARGET = 1.5
LATE = 0.1  # seconds; an open loop that falls so far behind its plan was not at half load
SIDES = ("prunewatch", "echo")
Rounds = dict[str, list[float]]


@dataclass(frozen=True)
class Length:
    """How much of everything: rounds; messages or calls a round; seconds of half load a round."""

    rounds: int
    pipelined: int
    one_by_one: int
    unary: int
    load_seconds: float


FULL, QUICK = Length(15, 3000, 1500, 800, 4.0), Length(5, 1200, 600, 400, 1.5)


async def throughput(sides: dict[str, Side], messages: Messages, length: Length) -> dict[str, Rounds]:
    """Measures both, turn by turn; by side and kind one value a round."""
    found: dict[str, Rounds] = {name: {} for name in sides}
    for turn in range(length.rounds):
        harness.say(f"round {turn + 1} of {length.rounds}")
        for name in sorted(sides, reverse=turn % 2 == 0):
            side, kept = sides[name], found[name]
            for way, n in ((client.pipelined, length.pipelined), (client.one_by_one, length.one_by_one)):
                points, cpu = await client.measured(way, side, messages.opening(), messages.stream(n))
                kept.setdefault(f"{way.__name__}_points_per_second", []).append(points)
                kept.setdefault(f"{way.__name__}_cpu_seconds", []).append(cpu)
            times = await client.unary_times(side, messages.unary(length.unary))
            kept.setdefault("unary_p50_seconds", []).append(float(np.median(times)))
    return found


async def half_load(
    sides: dict[str, Side], messages: Messages, length: Length, per_second: float
) -> tuple[dict[str, Rounds], int]:
    """Time from when a message is due until its answer, in an open loop, by side and quantile one value a round.

    Also how often a side fell behind its plan: what it took there counts all the same.
    """
    found: dict[str, Rounds] = {name: {"p50": [], "p99": []} for name in sides}
    behind = 0
    for turn in range(length.rounds):
        harness.say(f"half load, round {turn + 1} of {length.rounds}")
        for name in sorted(sides, reverse=turn % 2 == 0):
            call = sides[name].stream()
            await client.one_by_one(call, [messages.opening(), *messages.stream(20)])
            times = await open_loop(call, messages.stream(int(length.load_seconds * per_second)), per_second)
            await call.done_writing()
            behind += bool(times[-1] > LATE)
            for quantile, kept in found[name].items():
                kept.append(float(np.percentile(times, float(quantile[1:]))))
    return found, behind


async def open_loop(call: Any, messages: list[bytes], per_second: float) -> np.ndarray:
    """Sends so many messages a second, whatever the answers do; seconds from when each was due to its answer."""
    began = time.perf_counter() + 0.01
    due = began + np.arange(len(messages)) / per_second

    async def send() -> None:
        for at, message in zip(due.tolist(), messages, strict=True):
            while time.perf_counter() < at:  # noqa: ASYNC110  (a sleep would be rounded up to a millisecond)
                await asyncio.sleep(0)
            await call.write(message)

    sending = asyncio.create_task(send())
    answered = np.empty(len(messages))
    for i in range(len(messages)):
        await call.read()
        answered[i] = time.perf_counter()
    await sending
    return answered - due


def step_seconds(graph: bytes, batch: int, repeats: int = 2000) -> float:
    """One step of so many points, median."""
    from detectors.runtime import Runtime

    runtime = Runtime(graph)
    points, state = harness.drawn(1, batch, FEATURES, seed=4)[0], runtime.fresh(batch)
    return float(np.median([harness.seconds_of(lambda: runtime.step(points, state)) for _ in range(repeats)]))


async def run(config: Path, graph: bytes, folder: Path, core: int, *, quick: bool) -> Part:
    """Both services on one core.

    Args:
        config: Of the hub.
        graph: What it serves.
        folder: For logs.
        core: Of the services; this process should be on another.
        quick: Fewer and shorter rounds.
    """
    length = QUICK if quick else FULL
    (port,) = client.free_ports(1)
    async with (
        client.hub(client.serve_command(config, port), port, folder, core) as hub,
        client.echo(folder, core) as echo,
    ):
        sides, messages = {"prunewatch": hub, "echo": echo}, Messages()
        await client.require_scores(hub, messages, graph)
        found = await throughput(sides, messages, length)
        half = float(np.median(found["prunewatch"]["pipelined_points_per_second"])) / SERIES / 2
        loaded, behind = await half_load(sides, messages, length, half)
    return _part(found, loaded, behind, half, {batch: step_seconds(graph, batch) for batch in (1, SERIES)})


def _part(
    found: dict[str, Rounds], loaded: dict[str, Rounds], behind: int, half: float, steps: dict[int, float]
) -> Part:
    hub, echo = ({kind: float(np.median(values)) for kind, values in found[name].items()} for name in SIDES)
    load = {name: {kind: float(np.median(values)) for kind, values in loaded[name].items()} for name in SIDES}
    bound = echo["unary_p50_seconds"] + steps[1]
    best = {  # an echo that also does the step
        way: 1 / (1 + steps[SERIES] * echo[f"{way}_points_per_second"] / SERIES) for way in ("one_by_one", "pipelined")
    }
    ratios = {
        "points_vs_echo": hub["one_by_one_points_per_second"] / echo["one_by_one_points_per_second"],
        "points_vs_echo_pipelined": hub["pipelined_points_per_second"] / echo["pipelined_points_per_second"],
        "points_vs_echo_at_best": best["one_by_one"],
        "points_vs_echo_pipelined_at_best": best["pipelined"],
        "cpu_vs_echo": hub["one_by_one_cpu_seconds"] / echo["one_by_one_cpu_seconds"],
        "cpu_vs_echo_pipelined": hub["pipelined_cpu_seconds"] / echo["pipelined_cpu_seconds"],
        "unary_p50_vs_echo": hub["unary_p50_seconds"] / bound,
        "unary_p50_vs_bare_echo": hub["unary_p50_seconds"] / echo["unary_p50_seconds"],
        "half_load_p99_vs_p50": load["prunewatch"]["p99"] / load["prunewatch"]["p50"],
    }
    rows = []
    for way, label, suffix in (("one_by_one", "one by one", ""), ("pipelined", "pipelined", "_pipelined")):
        ratio = ratios[f"points_vs_echo{suffix}"]
        rates = [rate(side[f"{way}_points_per_second"]) for side in (hub, echo)]
        rows.append([f"points/s, {label}", *rates, f"{ratio:.2f}", at_least(ratio, POINTS_TARGET)])
        rows.append(["... of an echo that also does the step", "", "", f"{best[way]:.2f}", ""])
        times = [us(side[f"{way}_cpu_seconds"]) for side in (hub, echo)]
        rows.append([f"processor time a message, {label}", *times, f"{ratios[f'cpu_vs_echo{suffix}']:.2f}", ""])
    alone = ratios["unary_p50_vs_echo"]
    sides = [us(hub["unary_p50_seconds"]), f"{us(echo['unary_p50_seconds'])} + a step, {us(steps[1])}"]
    rows.append(["one point, unary, p50", *sides, f"{alone:.2f}", at_most(alone, UNARY_TARGET)])
    for quantile in ("p50", "p99"):
        times = [ms(load[name][quantile]) for name in SIDES]
        ratio = load["prunewatch"][quantile] / load["echo"][quantile]
        rows.append([f"a message at half load, {quantile}", *times, f"{ratio:.2f}", ""])
    figures = {
        "prunewatch": hub,
        "echo": echo,
        "step_seconds": {f"batch_{batch}": seconds for batch, seconds in steps.items()},
        "rounds": len(found["echo"]["unary_p50_seconds"]),
        "half_load_messages_per_second": half,
        "half_load": {name: {f"{kind}_seconds": value for kind, value in it.items()} for name, it in load.items()},
        "half_load_rounds_that_fell_behind": behind,
    }
    heads = ["", "prunewatch", "echo", "prunewatch / echo", "target"]
    note = f"\n\nHalf load: {half:,.0f} messages a second, half of what the hub takes pipelined, sent to both."
    return Part("Against a bare echo, LSTM 2x32", figures, ratios, table(heads, rows) + note)
