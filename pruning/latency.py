"""Time of a step in the runtime that serves: warm-up, interleaved rounds, quantiles."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from time import perf_counter_ns

import numpy as np

from detectors.runtime import Runtime
from pruning.outcome import Latency

WARM_UP_STEPS = 20
ROUND_SECONDS = 0.03  # per graph and round: long enough for a p99 of quick steps, short enough to interleave finely
MINIMUM_STEPS, MAXIMUM_STEPS = 20, 400


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
    runtimes = [Runtime(graph) for graph in graphs]
    values = [_typical(runtime, batch) for runtime in runtimes]
    states = [runtime.fresh(batch) for runtime in runtimes]
    steps = []
    for i, runtime in enumerate(runtimes):
        for _ in range(WARM_UP_STEPS):
            states[i] = runtime.step(values[i], states[i]).state
        began = perf_counter_ns()
        for _ in range(5):
            runtime.step(values[i], states[i])
        per_step = max((perf_counter_ns() - began) / 5e9, 1e-6)
        steps.append(int(np.clip(ROUND_SECONDS / per_step, MINIMUM_STEPS, MAXIMUM_STEPS)))
    times: list[list[np.ndarray]] = [[] for _ in runtimes]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            order = range(len(runtimes)) if turn % 2 == 0 else reversed(range(len(runtimes)))
            for i in order:
                taken = np.empty(steps[i])
                runtime, points, state = runtimes[i], values[i], states[i]
                for k in range(steps[i]):
                    began = perf_counter_ns()
                    state = runtime.step(points, state).state
                    taken[k] = perf_counter_ns() - began
                states[i] = state
                times[i].append(taken / 1e9)
    finally:
        if collecting:
            gc.enable()
    return [
        Latency(
            float(np.median(np.concatenate(parts))),
            float(np.median([np.quantile(part, 0.99) for part in parts])),
            batch,
        )
        for parts in times
    ]


def _typical(runtime: Runtime, batch: int) -> np.ndarray:
    """Standard normal raw values; time does not depend on them (subnormals are flushed)."""
    points = () if runtime.stride == 1 else (runtime.stride,)
    return np.random.default_rng(0).standard_normal((batch, *points, runtime.n_features)).astype(np.float32)
