"""Time of a module's call in torch: one thread, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from detectors.timing import interleaved

WARM_UP_CALLS = 5
ROUND_SECONDS = 0.02  # of one module: long enough for a median, short enough to interleave
CALLS = (3, 100)  # in a turn


def times(modules: Sequence[nn.Module], examples: tuple[Tensor, ...], *, rounds: int) -> list[float]:
    """Median seconds of a call of each module, in alternating turns, so that a machine that slows down slows all.

    Args:
        modules: In evaluation mode.
        examples: Arguments of every call.
        rounds: More rounds, steadier medians.
    """
    calls = [partial(module, *examples) for module in modules]
    with _one_thread(), torch.inference_mode():
        taken = interleaved(calls, rounds=rounds, seconds=ROUND_SECONDS, bounds=CALLS, warm_up=WARM_UP_CALLS)
    return [float(np.median(np.concatenate(each))) for each in taken]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
