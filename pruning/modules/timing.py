"""Time of a module's call in torch: one thread, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP_CALLS = 5
ROUND_SECONDS = 0.02  # of one module: long enough for a median, short enough to interleave
MINIMUM_CALLS, MAXIMUM_CALLS = 3, 100


def times(modules: Sequence[nn.Module], examples: tuple[Tensor, ...], *, rounds: int) -> list[float]:
    """Median seconds of a call of each module, in alternating turns, so that a machine that slows down slows all.

    Args:
        modules: In evaluation mode.
        examples: Arguments of every call.
        rounds: More rounds, steadier medians.
    """
    taken: list[list[int]] = [[] for _ in modules]
    with _one_thread(), torch.inference_mode():
        calls = [_calls(module, examples) for module in modules]
        for turn in range(rounds):
            for i in range(len(modules)) if turn % 2 == 0 else reversed(range(len(modules))):
                for _ in range(calls[i]):
                    taken[i].append(_once(modules[i], examples))
    return [float(np.median(each)) / 1e9 for each in taken]


def _calls(module: nn.Module, examples: tuple[Tensor, ...]) -> int:
    """Calls of a round, after some to warm up."""
    quickest = min(_once(module, examples) for _ in range(WARM_UP_CALLS))
    return int(np.clip(ROUND_SECONDS * 1e9 / quickest, MINIMUM_CALLS, MAXIMUM_CALLS))


def _once(module: nn.Module, examples: tuple[Tensor, ...]) -> int:
    began = perf_counter_ns()
    module(*examples)
    return perf_counter_ns() - began


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
