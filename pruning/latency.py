"""Time of a step in the runtime that serves; how it is taken is in `detectors.timing`, which devices use too."""

from __future__ import annotations

from collections.abc import Sequence

from detectors.runtime import Runtime
from detectors.timing import interleaved, quantiles, stepping
from pruning.outcome import Latency


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
    return [Latency(*quantiles(turns), batch) for turns in times]
