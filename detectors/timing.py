"""Time of a call, taken the same way on the hub and on a device: warm-up, turns that interleave, quantiles.

A turn times one call many times over. Whoever compares calls gives each of them its turn in every round, back and
forth, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import Runtime

WARM_UP_STEPS = 20
ROUND_SECONDS = 0.03  # per call and round: long enough for a p99 of quick steps, short enough to interleave finely
MINIMUM_STEPS, MAXIMUM_STEPS = 20, 400
PROBED_STEPS = 5  # how many of them fill a round is estimated from so many

Call = Callable[[], Any]
Times = NDArray[np.float64]
"""Seconds of each call of a turn."""


def _never() -> bool:
    return False


def interleaved(
    calls: Sequence[Call],
    *,
    rounds: int,
    seconds: float = ROUND_SECONDS,
    bounds: tuple[int, int] = (MINIMUM_STEPS, MAXIMUM_STEPS),
    warm_up: int = WARM_UP_STEPS,
) -> list[list[Times]]:
    """Seconds of each call, round by round; turns go back and forth.

    Args:
        calls: What is timed.
        rounds: In each of which every call has its turn.
        seconds: About as long as a turn takes.
        bounds: Calls in a turn.
        warm_up: Calls before the first.
    """
    counts = [counted(call, seconds, bounds, warm_up) for call in calls]
    times: list[list[Times]] = [[] for _ in calls]
    with uncollected():
        for number in range(rounds):
            for i in order(len(calls), number):
                taken = turn(calls[i], counts[i])
                if taken is not None:
                    times[i].append(taken)
    return times


def order(calls: int, number: int) -> Sequence[int]:
    """Whose turn it is, one after the other, in the round of a number: forth, then back.

    >>> list(order(3, 0)), list(order(3, 1))
    ([0, 1, 2], [2, 1, 0])
    """
    return range(calls) if number % 2 == 0 else range(calls)[::-1]


def counted(
    call: Call,
    seconds: float = ROUND_SECONDS,
    bounds: tuple[int, int] = (MINIMUM_STEPS, MAXIMUM_STEPS),
    warm_up: int = WARM_UP_STEPS,
) -> int:
    """Warms a call up; how many of it fill a turn of so many seconds."""
    for _ in range(warm_up):
        call()
    began = perf_counter_ns()
    for _ in range(PROBED_STEPS):
        call()
    per_call = max((perf_counter_ns() - began) / PROBED_STEPS / 1e9, 1e-6)
    return int(np.clip(seconds / per_call, *bounds))


def turn(call: Call, count: int, disturbed: Callable[[], bool] = _never) -> Times | None:
    """Seconds of each of `count` calls; None where something came between.

    Args:
        call: What is timed.
        count: How often.
        disturbed: Asked after each call, outside the time that is taken; once it is true the turn ends at once.
    """
    taken = np.empty(count)
    for k in range(count):
        began = perf_counter_ns()
        call()
        taken[k] = perf_counter_ns() - began
        if disturbed():
            return None
    return taken / 1e9


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would be timed too; afterwards it is as it was."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def quantiles(turns: Sequence[Times]) -> tuple[float, float]:
    """p50 over all calls, and p99 as the median of the turns' own: on a shared machine a single p99 is preemption."""
    return float(np.median(np.concatenate(turns))), float(np.median([np.quantile(it, 0.99) for it in turns]))


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
