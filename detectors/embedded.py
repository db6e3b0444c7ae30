"""A detector inside your own program: no service, no RPC, no thread of its own.

    from detectors.embedded import Detector

    pump = Detector.load("pump.tar")                  # what `prunewatch export` wrote
    scores = pump.score([[10.2, 4.1]], "north")       # one point of the series `north`
    scores.score, scores.anomalies

It scores through `detectors.scorer`, as the service does, and gives the same scores. Needs what a device has: numpy and
ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.archive import load_bundle
from detectors.bundle import Bundle, Manifest
from detectors.errors import InvalidInputError
from detectors.runtime import FloatArray
from detectors.scorer import Scored, Scorer
from detectors.served import Served
from detectors.stamps import NO_STAMP, StampPolicy

FALSE_ALARM_RATE = 0.001
"""The default of the service."""
HINT = "Give values [N, F], and for N points one name or N of them, and N stamps or none."


@dataclass(frozen=True)
class Scores(Scored):
    """What became of N points.

    Attributes:
        threshold: From which score a point is an anomaly.
    """

    threshold: float

    @property
    def anomalies(self) -> NDArray[np.int64]:
        """Indices of the points whose score has reached the threshold."""
        return np.flatnonzero(self.score >= self.threshold)  # NaN, no score, never has


class Detector:
    """Scores points of many series with one bundle. Use it from one thread.

    State and last points of series are in memory only: after a restart of the program they warm up again, unless it
    gives `score` their last points first.

    Args:
        bundle: What it scores with.
        false_alarm_rate: Part of normal points that may be flagged; sets the threshold.
        policy: How stamps are judged.
        max_series: Refuse more series than this.

    Raises:
        InvalidInputError: the rate is not between 0 and 1.
        CorruptBundleError: ONNX Runtime can not load the graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        policy: StampPolicy | None = None,
        max_series: int = 100_000,
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise InvalidInputError(
                f"{false_alarm_rate} is no rate.", field="false_alarm_rate", hint="Write a number between 0 and 1."
            )
        self.threshold = float(np.float32(-math.log10(false_alarm_rate)))
        self.manifest: Manifest = bundle.manifest
        served = Served.load(bundle)
        self._scorer = Scorer(served, policy=policy, ring_points=served.ring_points, max_series=max_series)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        policy: StampPolicy | None = None,
        max_series: int = 100_000,
    ) -> Self:
        """Reads and verifies what `prunewatch export` wrote, or the folder of a bundle.

        Raises:
            NotFoundError: there is no such file.
            CorruptBundleError: it is not a whole bundle.
        """
        bundle = load_bundle(Path(path))
        return cls(bundle, false_alarm_rate=false_alarm_rate, policy=policy, max_series=max_series)

    @property
    def features(self) -> list[str]:
        """Names of the F numbers of a point, in their order."""
        return self.manifest.features

    def score(self, values: ArrayLike, series: str | Sequence[str] = "", stamps: ArrayLike | None = None) -> Scores:
        """Scores points in the order given, each with what its series has seen before.

        Args:
            values: [N, F] raw values, or [F] of one point. A row with NaN or infinity becomes `INVALID` and changes
                nothing, unless the bundle carries missing values on.
            series: Of all points, or [N] names. Several points of one series are taken in their order.
            stamps: [N] int64, ascending in each series; None: the next row number of each series.

        Raises:
            InvalidInputError: a shape does not fit; nothing has changed.
            ExhaustedError: more than `max_series` series.
        """
        points = _points(values, len(self.features))
        names = [series] * len(points) if isinstance(series, str) else list(series)
        given = None if stamps is None else np.asarray(stamps)
        _require(len(names) == len(points), "series", f"{len(names)} names for {len(points)} points.")
        _require(given is None or given.shape == (len(points),), "stamps", f"give {len(points)} of them.")
        _require(given is None or given.dtype.kind in "iu", "stamps", "they are whole numbers.")
        slots = self._scorer.series.slots(names)
        scored = self._scorer.score(slots, self._next(slots) if given is None else given.astype(np.int64), points)
        return Scores(scored.status, scored.score, scored.contribution, self.threshold)

    def _next(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row number of each point: one more than the last of its series."""
        last = self._scorer.series.last_stamp[slots]
        stamps = np.where(last == NO_STAMP, np.int64(0), last + 1)
        for rank, rows in enumerate(self._scorer.rounds(slots)):
            stamps[rows] += rank
        return stamps


def _points(values: ArrayLike, n_features: int) -> FloatArray:
    try:
        points = np.atleast_2d(np.asarray(values, np.float32))
    except (ValueError, TypeError) as error:
        raise InvalidInputError("these are not rows of numbers.", field="values", hint=HINT) from error
    fits = points.ndim == 2 and points.shape[1] == n_features
    _require(fits, "values", f"their shape is {points.shape}, and a point has {n_features} numbers.")
    return points


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidInputError(problem, field=field, hint=HINT)
