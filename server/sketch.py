"""What the inputs of a detector looked like, in counts: a few dozen numbers a feature, whatever the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray

REFERENCE_WINDOWS = 4
"""Windows after a version took over that say what its inputs look like, and how much they change by themselves."""
MAXIMUM_FEATURES = 64
"""Of wider points so many are watched, evenly spaced."""
LARGEST = 3
"""Features that have moved most make the distance of the inputs."""
CUTS = 9
"""Deciles of a feature in the first window of the reference."""
Counts = NDArray[np.int64]


@dataclass
class Reference:
    """What inputs looked like after a version took over.

    Attributes:
        cuts: [F, CUTS], deciles of the first window.
        windows: [F, 2 * CUTS + 1] counts of each window so far.
    """

    cuts: FloatArray
    windows: list[Counts] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether it has all its windows."""
        return len(self.windows) >= REFERENCE_WINDOWS

    def distance(self, window: Counts) -> float:
        """How far a window is from the reference, beyond what the windows of the reference are from each other."""
        pooled = _cumulative(np.sum(self.windows, axis=0))
        own = np.max([_apart(_cumulative(one), pooled) for one in self.windows], axis=0)
        moved = np.maximum(0.0, _apart(_cumulative(window), pooled) - own)
        return float(np.sort(moved)[-LARGEST:].mean())


def to_counts(values: Any, width: int) -> Counts:
    """Counts [F, 2 * CUTS + 1] as they were written down; ValueError where they are of another width."""
    return np.array(values, np.int64).reshape(width, 2 * CUTS + 1)


def watched(n_features: int) -> NDArray[np.int64] | slice:
    """The columns of points that are looked at."""
    if n_features <= MAXIMUM_FEATURES:
        return slice(None)
    return np.linspace(0, n_features - 1, MAXIMUM_FEATURES).astype(np.int64)


def reference_of(blocks: Sequence[FloatArray]) -> Reference:
    """The beginning of a reference: its cuts, and the first window [N, F], which may come in parts."""
    values = np.concatenate(blocks)
    shares = np.linspace(0, 1, CUTS + 2)[1:-1]
    cuts = np.nanquantile(np.where(np.isfinite(values), values, np.nan), shares, axis=0).T if len(values) else values.T
    cuts = np.ascontiguousarray(np.nan_to_num(cuts), np.float32)
    return Reference(cuts, [by_cuts(values, cuts)])


def by_cuts(values: FloatArray, cuts: FloatArray) -> Counts:
    """Counts [F, 2 * CUTS + 1] of values [N, F]: below, on and between the cuts."""
    counts = np.zeros((len(cuts), 2 * CUTS + 1), np.int64)
    for feature, edges in enumerate(cuts):
        column = values[:, feature]
        places = np.searchsorted(edges, column, "left") + np.searchsorted(edges, column, "right")
        counts[feature] = np.bincount(places, minlength=2 * CUTS + 1)
    return counts


def _cumulative(counts: Counts) -> FloatArray:
    total = counts.cumsum(axis=1)
    return np.asarray(total / np.maximum(total[:, -1:], 1), np.float32)


def _apart(one: FloatArray, other: FloatArray) -> FloatArray:
    """The largest difference of two cumulative shares, by feature."""
    return np.asarray(np.abs(one - other).max(axis=1), np.float32)
