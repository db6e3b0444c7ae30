"""Points on their way into the history: collected on the scoring path as arrays, written by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray


class HistorySink(Protocol):
    """What keeps points for training (`server.history.History`); used by one thread at a time."""

    @property
    def rows(self) -> int:
        """Points kept."""

    def append(
        self,
        series: Sequence[str],
        stamps: NDArray[np.int64],
        values: FloatArray,
        scores: FloatArray,
        flagged: NDArray[np.bool_],
    ) -> None:
        """Takes N points."""

    def flush(self) -> object:
        """Makes them durable."""

    def paths(self) -> list[Path]:
        """The files that hold them, oldest first."""

    def add_points(self, stamps: NDArray[np.int64], values: FloatArray) -> Path:
        """Keeps points that came from a file, durably."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Accepted points of one request.

    Attributes:
        names: Of series; only ever grows.
        index: [N] into `names`.
        stamps: [N].
        values: [N, F].
        scores: [N].
        flagged: [N].
    """

    names: list[str]
    index: NDArray[np.int64]
    stamps: NDArray[np.int64]
    values: FloatArray
    scores: FloatArray
    flagged: NDArray[np.bool_]

    def only(self, rows: NDArray[np.bool_]) -> Kept:
        """Some of the points."""
        return Kept(
            self.names,
            self.index[rows],
            self.stamps[rows],
            self.values[rows],
            self.scores[rows],
            self.flagged[rows],
        )


class HistoryBuffer:
    """Points that are not written yet, the newest `limit` of them at most.

    Args:
        limit: More would not survive the retention of the history anyway.
        on_drop: Told how many points were lost while the history could not be written.
    """

    def __init__(self, limit: int, on_drop: Callable[[int], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._parts: deque[Kept] = deque()
        self.rows = 0
        self.stalled = False
        """The last write failed (a full disk): what does not fit is lost."""

    def append(self, part: Kept) -> None:
        """Takes the points of one request."""
        self._parts.append(part)
        self.rows += len(part.stamps)
        while len(self._parts) > 1 and self.rows - len(self._parts[0].stamps) >= self._limit:
            oldest = len(self._parts.popleft().stamps)
            self.rows -= oldest
            if self.stalled:
                self._on_drop(oldest)

    def take(self) -> list[Kept]:
        """Everything that waits; the buffer is empty afterwards."""
        parts, self._parts, self.rows = list(self._parts), deque(), 0
        return parts


def write(parts: Sequence[Kept], sink: HistorySink, scored: Callable[[FloatArray], None]) -> None:
    """Appends all parts at once and makes them durable, and has `scored` told of their scores; runs in a thread."""
    if not parts:
        return
    names: list[str] = []
    offset_of: dict[int, tuple[int, int]] = {}
    index = []
    for part in parts:
        offset, known = offset_of.get(id(part.names), (len(names), 0))
        if known < len(part.names):  # a stream may have named more series since
            offset = len(names)
            names.extend(part.names)
            offset_of[id(part.names)] = offset, len(part.names)
        index.append(part.index + offset)
    scores = np.concatenate([part.scores for part in parts])
    scored(scores)
    sink.append(
        np.array(names, object)[np.concatenate(index)].tolist(),
        np.concatenate([part.stamps for part in parts]),
        np.concatenate([part.values for part in parts]),
        scores,
        np.concatenate([part.flagged for part in parts]),
    )
    sink.flush()
