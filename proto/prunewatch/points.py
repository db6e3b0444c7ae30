"""Points on their way to the service: arrays that fit together, cut into messages, their series numbered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunewatch.errors import ServiceError
from prunewatch.v1 import scoring_pb2

MESSAGE_BYTES = 1 << 20  # of one message; a service takes four times that unless it is told otherwise
MESSAGE_POINTS = 8192  # of one message; points of one series are steps one after the other, and others want a turn
DEFAULT_SERIES = ("default",)


@dataclass(frozen=True)
class Batch:
    """Points of one message of a stream.

    Attributes:
        values: [N, F].
        stamps: [N] nanoseconds or row numbers; None: row numbers go on.
        series: Names that were not sent before in this stream.
        series_index: [N] into all names sent so far; None: point i belongs to series i, or all to the only one.
    """

    values: ArrayLike
    stamps: ArrayLike | None = None
    series: Sequence[str] = ()
    series_index: ArrayLike | None = None


@dataclass(frozen=True)
class Points:
    """Points that say by themselves which series they belong to.

    Attributes:
        values: [N, F] float32.
        stamps: [N] nanoseconds or row numbers; None: row numbers go on.
        names: Of series, each once.
        index: [N] into `names`.
    """

    values: NDArray[np.float32]
    stamps: NDArray[np.int64] | None
    names: Sequence[str]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: slice | NDArray[np.int64]) -> Points:
        """Some of the points, with the names that they need."""
        used, index = np.unique(self.index[rows], return_inverse=True)
        stamps = None if self.stamps is None else self.stamps[rows]
        return Points(self.values[rows], stamps, [self.names[i] for i in used.tolist()], index)

    def messages(self) -> Iterator[Points]:
        """The same points, in parts that fit into a message each."""
        rows = message_rows(self.values.shape[1])
        if len(self) <= rows:
            yield self
            return
        for start in range(0, len(self), rows):
            yield self.take(slice(start, start + rows))


class Naming:
    """The names that one stream has sent; the service numbers them in the order of their arrival."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._sent = 0

    def __len__(self) -> int:
        return self._sent

    def add(self, names: Sequence[str]) -> list[str]:
        """Takes names; returns those that have not been sent."""
        new = [name for name in dict.fromkeys(names) if name not in self._numbers]
        self.append(new)
        return new

    def append(self, names: Sequence[str]) -> None:
        """Takes names that are sent as they are, also those that were sent before: each gets a number."""
        for name in names:
            self._numbers[name] = self._sent
            self._sent += 1

    def index(self, points: Points) -> NDArray[np.int64]:
        """[N]; the number of each point's series."""
        return np.array([self._numbers[name] for name in points.names], np.int64)[points.index]


def packed(values: ArrayLike) -> NDArray[np.float32]:
    """The values as they are sent.

    Raises:
        ServiceError: they are no table of numbers.
    """
    try:
        array = np.ascontiguousarray(values, "<f4")
    except (TypeError, ValueError) as error:
        raise refused("the values are not numbers.", "values", "Give an array [N, F] of float.") from error
    if array.ndim != 2:
        raise refused(f"values have {array.ndim} dimensions.", "values", "Give [N, F].")
    return array


def points_of(
    values: ArrayLike,
    stamps: ArrayLike | None,
    series: str | Sequence[str],
    series_index: ArrayLike | None = None,
) -> Points:
    """Arrays as the caller has them, checked against each other.

    Args:
        values: [N, F].
        stamps: [N] or None.
        series: A name for each point, or the one name of all, or the names that `series_index` points into.
        series_index: [N] or None.

    Raises:
        ServiceError: they do not fit together.
    """
    array = packed(values)
    n = len(array)
    names = [series] if isinstance(series, str) else list(series)
    if not all(isinstance(name, str) for name in names):
        raise refused("a name of a series is not text.", "series", "Give str: [str(it) for it in series].")
    times = None if stamps is None else np.asarray(stamps, np.int64)
    if times is not None and times.shape != (n,):
        raise refused(f"there are {times.size} stamps for {n} points.", "stamps", "Give [N].")
    if series_index is not None:
        index = np.asarray(series_index, np.int64)
        if index.shape != (n,):
            raise refused(f"there are {index.size} indexes for {n} points.", "series_index", "Give [N].")
        if n and not 0 <= int(index.min()) <= int(index.max()) < len(names):
            raise refused(f"an index is not one of {len(names)} names.", "series_index", "Count from 0.")
    elif len(names) in {1, n}:
        index = np.zeros(n, np.int64) if len(names) == 1 else np.arange(n)
    else:
        raise refused(
            f"it is not said to which of {len(names)} series the {n} points belong.",
            "series",
            "Give one name, or one for each point, or a series_index.",
        )
    unique = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(unique) < len(names):
        index = np.array([unique[name] for name in names], np.int64)[index]
    return Points(array, times, list(unique), index)


def message_rows(n_features: int) -> int:
    """Points of so many features that fit into one message."""
    return max(1, min(MESSAGE_POINTS, MESSAGE_BYTES // (4 * n_features + 13)))  # values, stamp, index


def request_of(batch: Batch, detector: str, *, ephemeral: bool, contributions: bool) -> scoring_pb2.ScoreRequest:
    """A message of points."""
    values = packed(batch.values)
    request = scoring_pb2.ScoreRequest(
        detector=f"detectors/{detector}",
        series=batch.series,
        packed_values=values.tobytes(),
        n_features=values.shape[1],
        mode=scoring_pb2.SCORE_MODE_EPHEMERAL if ephemeral else scoring_pb2.SCORE_MODE_LIVE,
        contributions=contributions,
    )
    if batch.stamps is not None:
        request.stamps.extend(np.asarray(batch.stamps, np.int64).tolist())
    if batch.series_index is not None:
        request.series_index.extend(np.asarray(batch.series_index, np.uint32).tolist())
    return request


def refused(problem: str, field: str, hint: str) -> ServiceError:
    """What is said of input that can not be used, before anything is sent."""
    return ServiceError("INVALID_ARGUMENT", problem, field, hint)
