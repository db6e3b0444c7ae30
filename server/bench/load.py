"""What a load is: how many points, when, in which messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "constant"]
CHUNK = 1024  # gaps drawn at once


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        rate: Points a second that are intended, whatever comes back (open loop); None: each caller sends its next
            message when the last one is answered (closed loop).
        arrivals: When messages of an open loop are due: at random and independently of each other, or evenly.
        concurrency: Streams or, in a closed loop with `unary`, callers.
        unary: One call a message, instead of streams.
        series: Series in each message.
        points: Points of each of them in each message, one after the other.
        duration: Seconds that are measured.
        warm_up: Seconds of the same load before, which are not.
        live: Keep state and points under series of its own; else from a fresh state without a trace.
        timeout: Seconds after which a message is given up.
        seed: Of arrivals and values.
    """

    rate: float | None = None
    arrivals: Arrivals = "poisson"
    concurrency: int = 8
    unary: bool = False
    series: int = 1
    points: int = 1
    duration: float = 10.0
    warm_up: float = 2.0
    live: bool = False
    timeout: float = 10.0
    seed: int = 0

    @property
    def message_points(self) -> int:
        """Points in each message."""
        return self.series * self.points


def arrivals(load: Load) -> Iterator[float]:
    """Seconds after the start at which the messages of an open loop are due, without end."""
    assert load.rate is not None
    gap = load.message_points / load.rate
    if load.arrivals == "constant":
        count = 0
        while True:
            yield count * gap
            count += 1
    rng = np.random.default_rng(load.seed)
    due = 0.0
    while True:
        chunk = due + np.cumsum(rng.exponential(gap, CHUNK))
        due = float(chunk[-1])
        yield from chunk.tolist()
