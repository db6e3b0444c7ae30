"""Time of a step in the runtime that serves: warm-up, interleaved rounds, quantiles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import Runtime
from pruning.outcome import Latency

WARM_UP_STEPS = 20
ROUND_SECONDS = 0.03  # per graph and round: long enough for a p99 of quick steps, short enough to interleave finely
MINIMUM_STEPS, MAXIMUM_STEPS = 20, 400
PROBED_STEPS = 5  # how many of them fill a round is estimated from so many


def measure(graphs: Sequence[bytes], batch: int, *, rounds: int = 9) -> list[Latency]:
    """Measures step graphs side by side.

    Each round times every graph in turn, in alternating direction, so that a machine that slows down slows all of them.
    One thread; state is carried from step to step as in service.

    Args:
        graphs: Step graphs.
        batch: Points a step.
        rounds: More rounds, steadier quantiles.

    Returns:
        For each graph p50 over all its steps, and p99 as the median of its rounds' p99: on a shared machine a single
        p99 is mostly preemption.
    """
    times = interleaved([stepping(Runtime(graph), batch) for graph in graphs], rounds=rounds)
    return [
        Latency(
            float(np.median(np.concatenate(parts))),
            float(np.median([np.quantile(part, 0.99) for part in parts])),
            batch,
        )
        for parts in times
    ]


def interleaved(
    calls: Sequence[Callable[[], Any]],
    *,
    rounds: int,
    seconds: float = ROUND_SECONDS,
    bounds: tuple[int, int] = (MINIMUM_STEPS, MAXIMUM_STEPS),
    warm_up: int = WARM_UP_STEPS,
) -> list[list[NDArray[np.float64]]]:
    """Seconds of each call, round by round; turns go back and forth.

    Args:
        calls: What is timed.
        rounds: In each of which every call has its turn.
        seconds: About as long as a turn takes.
        bounds: Calls in a turn.
        warm_up: Calls before the first.
    """
    counts = []
    for call in calls:
        for _ in range(warm_up):
            call()
        began = perf_counter_ns()
        for _ in range(PROBED_STEPS):
            call()
        per_call = max((perf_counter_ns() - began) / PROBED_STEPS / 1e9, 1e-6)
        counts.append(int(np.clip(seconds / per_call, *bounds)))
    times: list[list[NDArray[np.float64]]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
            for i in order:
                taken, call = np.empty(counts[i]), calls[i]
                for k in range(counts[i]):
                    began = perf_counter_ns()
                    call()
                    taken[k] = perf_counter_ns() - began
                times[i].append(taken / 1e9)
    finally:
        if collecting:
            gc.enable()
    return times


def stepping(runtime: Runtime, batch: int) -> Callable[[], None]:
    """A step of a graph with the state of the one before, of so many points."""
    values, state = _typical(runtime, batch), runtime.fresh(batch)

    def step() -> None:
        nonlocal state
        state = runtime.step(values, state).state

    return step


def _typical(runtime: Runtime, batch: int) -> np.ndarray:
    """Standard normal raw values; time does not depend on them (subnormals are flushed)."""
    points = () if runtime.stride == 1 else (runtime.stride,)
    return np.random.default_rng(0).standard_normal((batch, *points, runtime.n_features)).astype(np.float32)
