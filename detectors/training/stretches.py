"""Training data: contiguous stretches of points; lanes that run through them, and windows out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.errors import InvalidInputError

FloatArray = NDArray[np.float32]
Missing = Literal["reject", "carry"]


@dataclass(frozen=True)
class Stretches:
    """Runs of consecutive normal points, [T, F] each; nothing is carried from one to the next."""

    parts: tuple[FloatArray, ...]

    @classmethod
    def of(cls, parts: Sequence[FloatArray], *, missing: Missing = "reject") -> Self:
        """Cuts parts at rows with infinite values, and with missing ones unless those are carried.

        Rows where it is cut are left out; missing values that are carried stay NaN until the network sees them.
        """
        clean: list[FloatArray] = []
        for raw in parts:
            part = np.asarray(raw, np.float32)
            good = (np.isfinite(part) | (np.isnan(part) if missing == "carry" else False)).all(axis=1)
            edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(np.int8)))
            clean += [part[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        return cls(tuple(clean))

    def filled(self) -> Stretches:
        """The same with missing values carried on; at the beginning of a part, its first value carried back."""
        if all(np.isfinite(part).all() for part in self.parts):
            return self
        parts = []
        for part in self.parts:
            forward, _ = carried(part[None])
            backward, _ = carried(part[None, ::-1])
            parts.append(np.where(np.isfinite(forward[0]), forward[0], backward[0, ::-1]))
        return Stretches(tuple(np.nan_to_num(part, nan=0.0) for part in parts))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def n_features(self) -> int:
        """F."""
        return int(self.parts[0].shape[1]) if self.parts else 0

    @property
    def rows(self) -> FloatArray:
        """All points, [N, F]."""
        return np.concatenate(self.parts)

    def split(self, fraction: float, *, context: int, minimum: int = 16) -> tuple[Stretches, Stretches]:
        """The first points of every part, and the last `fraction` of it.

        Splitting part by part leaves both sides some of every regime the points come from.

        Args:
            fraction: Of each part that goes to the second side.
            context: How much earlier the second side starts, so that a network can warm up on what the first has seen.
            minimum: A part whose tail would be shorter goes to the first side whole.
        """
        first: list[FloatArray] = []
        second: list[FloatArray] = []
        for part in self.parts:
            tail = round(len(part) * fraction)
            cut = len(part) - tail if tail >= minimum else len(part)
            first.append(part[:cut])
            if cut < len(part):
                second.append(part[max(cut - context, 0) :])
        return Stretches(tuple(first)), Stretches(tuple(second))

    def longer_than(self, points: int) -> Stretches:
        """Without the parts of `points` or fewer."""
        return Stretches(tuple(part for part in self.parts if len(part) > points))

    def require(self, points: int, what: str) -> None:
        """Refuses too little data.

        Raises:
            InvalidInputError: fewer than `points` usable points.
        """
        if len(self) < points:
            raise InvalidInputError(
                f"{len(self)} usable rows are too few for {what}, which needs {points} complete ones in a row.",
                field="data",
                hint="Give more rows; rows with missing values are left out and break a run.",
            )


def carried(points: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Points [B, T, F] with the last value of a feature where one is missing (NaN before the first); what was there."""
    known = np.isfinite(points)
    last = np.maximum.accumulate(np.where(known, np.arange(points.shape[1])[:, None], -1), axis=1)
    filled = np.take_along_axis(points, np.maximum(last, 0), axis=1)
    return np.where(last >= 0, filled, np.float32(np.nan)), known


@dataclass(frozen=True)
class Chunk:
    """T points of each of B lanes.

    Attributes:
        points: [B, T, F], scaled.
        counted: [B, T] of the points that are judged, False for padding and for the blind first points of a stretch;
            [B, 1] for windows, of which only the last point is.
        restarted: [B], True where the lane begins a stretch and its state is to be zeroed.
    """

    points: Tensor
    counted: Tensor
    restarted: Tensor


class Windows:
    """Windows drawn at random, for networks whose only state is the window: neighbours are nearly the same.

    Args:
        parts: Scaled stretches [T, F], each at least a window long.
        batch: B.
        window: W.
        rng: Where windows lie.
    """

    def __init__(self, parts: Sequence[FloatArray], *, batch: int, window: int, rng: np.random.Generator) -> None:
        self._points = torch.from_numpy(np.concatenate(parts))
        sizes = np.array([len(part) for part in parts])
        starts = np.cumsum(sizes) - sizes
        self._firsts = np.concatenate(
            [np.arange(start, start + size - window + 1) for start, size in zip(starts, sizes, strict=True)]
        )
        self._batch, self._window, self._rng = batch, window, rng

    def chunks(self, count: int) -> Iterator[Chunk]:
        """`count` batches of windows [B, W, F]; all are seen about equally often."""
        order = np.empty(0, np.int64)
        counted, restarted = torch.ones(self._batch, 1, dtype=torch.bool), torch.ones(self._batch, dtype=torch.bool)
        for _ in range(count):
            while len(order) < self._batch:
                order = np.concatenate([order, self._rng.permutation(self._firsts)])
            first, order = order[: self._batch], order[self._batch :]
            index = torch.from_numpy(first[:, None] + np.arange(self._window))
            yield Chunk(self._points[index], counted, restarted)


class Lanes:
    """B lanes over stretches, for truncated back-propagation through time.

    A lane starts at a random point of a random stretch (longer ones more often), runs for up to `carry` chunks and then
    starts somewhere else.

    Args:
        parts: Scaled stretches [T, F].
        batch: B.
        length: T, points a chunk: how far gradients reach.
        carry: Chunks after which a lane moves on.
        blind: Points after a start that do not count.
        rng: Where lanes start.
    """

    def __init__(
        self,
        parts: Sequence[FloatArray],
        *,
        batch: int,
        length: int,
        carry: int,
        blind: int,
        rng: np.random.Generator,
    ) -> None:
        self._points = torch.from_numpy(np.concatenate(parts))
        sizes = np.array([len(part) for part in parts])
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._weights = sizes / sizes.sum()
        self._batch, self._length, self._carry, self._blind, self._rng = batch, length, carry, blind, rng

    def chunks(self, count: int) -> Iterator[Chunk]:
        """`count` chunks in a row."""
        at = np.zeros(self._batch, np.int64)
        end = np.zeros(self._batch, np.int64)
        age = np.zeros(self._batch, np.int64)
        left = np.zeros(self._batch, np.int64)
        stay = self._rng.integers(1, self._carry + 1, self._batch)  # first starts are staggered
        for _ in range(count):
            restarted = (left == 0) | (end - at < 1)
            if restarted.any():
                part = self._rng.choice(len(self._ends), size=int(restarted.sum()), p=self._weights)
                room = np.maximum(self._ends[part] - self._starts[part] - (self._blind + self._length), 0)
                at[restarted] = self._starts[part] + (self._rng.random(len(part)) * (room + 1)).astype(np.int64)
                end[restarted] = self._ends[part]
                age[restarted], left[restarted] = 0, stay[restarted]
                stay[restarted] = self._carry
            index = at[:, None] + np.arange(self._length)
            counted = (index < end[:, None]) & (age[:, None] + np.arange(self._length) >= self._blind)
            points = self._points[torch.from_numpy(np.minimum(index, end[:, None] - 1))]
            yield Chunk(points, torch.from_numpy(counted), torch.from_numpy(restarted))
            at, age, left = at + self._length, age + self._length, left - 1
