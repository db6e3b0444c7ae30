"""How well a ranking of features names the causes of an anomaly: what experts say, hit rates, and what chance gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEASURES = ("hit_100", "hit_150", "top_1", "top_3")


@dataclass(frozen=True)
class Explained:
    """An anomaly of which experts have said which features it is in.

    Attributes:
        rows: Of the test part.
        causes: [F], true of the features.
    """

    rows: slice
    causes: NDArray[np.bool_]


def interpretation(text: str, n_features: int, *, closed: bool) -> list[Explained]:
    """The anomalies of an interpretation file: lines `start-end:feature,feature`, features counted from 1.

    Args:
        text: Of the file.
        n_features: F.
        closed: Whether the end is still part of the anomaly (asd) or is the row behind it (smd).

    >>> (one,) = interpretation("2-4:1,3", 4, closed=True)
    >>> one.rows, one.causes.tolist()
    (slice(2, 5, None), [True, False, True, False])
    """
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        span, features = line.split(":")
        start, end = map(int, span.split("-"))
        causes = np.zeros(n_features, bool)
        causes[[int(feature) - 1 for feature in features.split(",")]] = True
        found.append(Explained(slice(start, end + closed), causes))
    return found


def read_interpretation(path: Path, n_features: int, *, closed: bool) -> list[Explained]:
    """The same of a file."""
    return interpretation(path.read_text(encoding="utf-8"), n_features, closed=closed)


def measured(contribution: NDArray[np.floating], causes: NDArray[np.bool_]) -> dict[str, float]:
    """The measures of one ranking.

    Args:
        contribution: [F] of each feature; the largest is named first.
        causes: [F].

    Returns:
        `hit_100`, `hit_150`: HitRate@P% of OmniAnomaly (Su et al., KDD 2019): of the causes, the share that is among as
        many (half as many again) features as there are causes. `top_1`, `top_3`: of so many features, the share that is
        a cause.
    """
    n, cuts = int(causes.sum()), _cuts(causes)
    return {
        name: hits(contribution, causes, k) / (n if name.startswith("hit") else k)
        for name, k in zip(MEASURES, cuts, strict=True)
    }


def by_chance(causes: NDArray[np.bool_]) -> dict[str, float]:
    """What a random ranking gives on average: constant contributions are one."""
    return measured(np.zeros(len(causes)), causes)


def hits(contribution: NDArray[np.floating], causes: NDArray[np.bool_], k: int) -> float:
    """Causes among the k largest contributions; where some are equal, how many there are on average.

    >>> hits(np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, True]), 2)
    1.5
    """
    last = np.sort(contribution)[-k]
    above, tied = contribution > last, contribution == last
    room = k - int(above.sum())
    return float((causes & above).sum() + room * (causes & tied).sum() / tied.sum())


def shared(one: NDArray[np.floating], other: NDArray[np.floating], k: int = 3) -> float:
    """Of the k largest contributions of one, the share that is among the k largest of the other.

    >>> shared(np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 0.0, 2.0, 1.0]), 2)
    0.5
    """
    first = np.zeros(len(one), bool)
    first[np.argsort(-one, kind="stable")[:k]] = True
    return hits(other, first, k) / k


def mean(rows: Iterable[float]) -> float:
    """NaN of nothing."""
    values = list(rows)
    return float(np.mean(values)) if values else math.nan


def _cuts(causes: NDArray[np.bool_]) -> tuple[int, ...]:
    n = int(causes.sum())
    return tuple(min(k, len(causes)) for k in (n, n * 3 // 2, 1, 3))
