"""The points that a load sends, as bytes that are made before the clock starts."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from prunewatch import prepared
from server.bench.load import Load

POOL_BYTES = 16 << 20  # of values that are made beforehand; then they come again
POOL_MESSAGES = 256
Values = NDArray[np.float32]


def random_walk(rows: int, series: int, features: int, seed: int) -> Values:
    """[rows, series, features]: walks that end where they began, of mean 0 and deviation 1.

    They come again without a jump when they are sent in a circle.
    """
    steps = np.random.default_rng(seed).standard_normal((rows, series, features), np.float32)
    walk = np.cumsum(steps - steps.mean(axis=0), axis=0)
    walk -= walk.mean(axis=0)
    deviation = walk.std(axis=0)
    return (walk / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def rows_wanted(load: Load, features: int) -> int:
    """Rows of each series that a pool of messages takes."""
    size = 4 * load.message_points * features
    return load.points * max(2, min(POOL_MESSAGES, POOL_BYTES // size))


def spread(rows: Values, load: Load) -> Values:
    """[R, series, F] of the rows [N, F] of one file: each series goes through all of it, from a place of its own."""
    wanted = min(rows_wanted(load, rows.shape[1]), -(-len(rows) // load.points) * load.points)
    first = np.arange(load.series) * len(rows) // load.series
    at = (np.arange(wanted)[:, None] + first) % len(rows)
    return np.asarray(rows[at], np.float32)


class Messages:
    """The messages of one load.

    Args:
        load: What to send.
        detector: To which detector.
        values: [R, series, F]; R is a multiple of the points of a series in a message.
        stamped: Whether points of a LIVE load need stamps; a fresh state counts rows by itself.
        prefix: Of the names of series.
    """

    def __init__(self, load: Load, detector: str, values: Values, *, stamped: bool, prefix: str) -> None:
        self._load = load
        self._detector = detector
        self._stamped = stamped and load.live
        self._prefix = prefix
        index = np.tile(np.arange(load.series), load.points) if load.series > 1 and load.points > 1 else None
        rounds = values.reshape(-1, load.message_points, values.shape[2])
        self._bodies = [prepared.body(each, index) for each in rounds]
        self._wrapped = [] if self._stamped or load.unary else [prepared.streamed(it) for it in self._bodies]

    def probe(self) -> bytes:
        """A request by which a service can be asked whether it takes such messages; it leaves no trace."""
        names = [f"{self._prefix}{i}" for i in range(self._load.series)]
        return prepared.head(self._detector, names, ephemeral=True) + self._bodies[0]

    def sender(self, number: int) -> Sender:
        """What one stream or caller sends; its series are its own where they are LIVE."""
        place = f"{self._prefix}{number}-" if self._load.live else self._prefix
        names = [f"{place}{i}" for i in range(self._load.series)]
        head = prepared.head(self._detector, names, ephemeral=not self._load.live)
        start = number * 7919 % len(self._bodies)  # callers do not send the same at the same time
        points = self._load.points if self._stamped else 0
        return Sender(head, self._bodies, self._wrapped, start, points, self._load.series)


class Sender:
    """The messages of one stream or caller, one after the other."""

    def __init__(
        self, head: bytes, bodies: list[bytes], wrapped: list[bytes], start: int, stamped_points: int, series: int
    ) -> None:
        self._head = head
        self._bodies = bodies
        self._wrapped = wrapped
        self._next = start
        self._stamped_points = stamped_points
        self._series = series
        self._last_stamp = 0

    def request(self) -> bytes:
        """A request of its own."""
        return self._head + self._points()

    def opening(self) -> bytes:
        """The first message of a stream."""
        return prepared.streamed(self.request())

    def following(self) -> bytes:
        """Any other message of a stream."""
        if not self._wrapped:
            return prepared.streamed(self._points())
        self._next = (self._next + 1) % len(self._wrapped)
        return self._wrapped[self._next]

    def _points(self) -> bytes:
        self._next = (self._next + 1) % len(self._bodies)
        body = self._bodies[self._next]
        return body + prepared.stamps(self._stamps()) if self._stamped_points else body

    def _stamps(self) -> NDArray[np.int64]:
        """Now; the points of a series in one message are a nanosecond apart, and later than all before."""
        first = max(time.time_ns() - self._stamped_points, self._last_stamp + 1)
        rounds = first + np.arange(self._stamped_points)
        self._last_stamp = int(rounds[-1])
        return np.repeat(rounds, self._series)
