"""The scale of inputs, and from errors to scores: the tail probability of an error.

score = -log10 P(error of a normal point > e). Up to a high quantile P is the empirical tail, interpolated between knots
(strictly increasing); beyond it a generalised Pareto tail (peaks over threshold; Pickands 1975), fitted by
probability-weighted moments (Hosking & Wallis 1987), with its shape kept above zero so that a score always can grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError

Float64 = NDArray[np.float64]

CLIP = 10.0  # scaled inputs are cut at ten standard deviations: one dead sensor must not drown the others
CONSTANT = 1e-6  # a feature whose deviation is below this share of its mean counts as constant
KNOTS = 32
TAIL_SHARE = 0.05  # the worst twentieth of the calibration points makes the tail ...
TAIL_POINTS = 20  # ... but at least this many points, however short the data
SHAPE_RANGE = (
    0.02,
    0.6,
)  # near exponential, up to clearly heavy-tailed; outside it moment estimates are not to be trusted


@dataclass(frozen=True)
class Scaler:
    """Input scale: x = clip((value - center) / scale, -clip, clip), by feature.

    Attributes:
        center: [F].
        scale: [F], > 0.
        clip: Bound of |x|; None: none.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]
    clip: float | None = CLIP

    @classmethod
    def identity(cls, n_features: int) -> Self:
        """Leaves values as they are."""
        return cls(np.zeros(n_features, np.float32), np.ones(n_features, np.float32), None)

    @classmethod
    def fit(cls, rows: NDArray[np.float32]) -> Self:
        """Mean and standard deviation [F] of rows [N, F]; a constant feature gets the scale of its own size, or 1.

        Missing values (NaN) do not count.
        """
        wide = rows.astype(np.float64)
        there = np.isfinite(wide)
        count = np.maximum(there.sum(axis=0), 1)
        center = np.where(there, wide, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(there, wide - center, 0) ** 2).sum(axis=0) / count)
        size = np.abs(center)
        constant = deviation <= CONSTANT * np.maximum(size, CONSTANT)
        scale = np.where(constant, np.where(size > CONSTANT, 0.1 * size, 1.0), deviation)
        return cls(center.astype(np.float32), scale.astype(np.float32))

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scaled rows, float32, in the order of operations of the graph."""
        scaled: NDArray[np.float32] = (rows - self.center) * self.inverse
        return scaled if self.clip is None else np.clip(scaled, -np.float32(self.clip), np.float32(self.clip))

    @property
    def inverse(self) -> NDArray[np.float32]:
        """1 / scale, as the graph multiplies by it."""
        return (np.float32(1) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Error -> score.

    Attributes:
        knots: [K] strictly increasing errors; the first is 0, or the smallest where errors are negative.
        levels: [K] strictly increasing scores at the knots; the first is 0.
        tail_shape: Generalised Pareto shape above the last knot, > 0.
        tail_scale: Its scale, in units of the error.
    """

    knots: Float64
    levels: Float64
    tail_shape: float
    tail_scale: float

    @classmethod
    def fit(cls, errors: NDArray[np.floating], seen: NDArray[np.floating] | None = None, trim: float = 0.0) -> Self:
        """Fits the score scale to the errors of normal points.

        Args:
            errors: [N], of points that were not trained on.
            seen: [M], of points that were: where those are the larger ones (a short held-out part may lack the busy
                hours), they count. Training has pushed them down, so this never makes scores larger.
            trim: Share of the largest of either that is left out: anomalies among the normal points.

        Raises:
            InvalidInputError: fewer than `TAIL_POINTS` finite errors.
        """
        e = _sorted(errors, trim)
        n = len(e)
        if n < TAIL_POINTS:
            raise InvalidInputError(
                f"{n} finite errors of normal points are too few to calibrate a score.",
                field="data",
                hint="Give more points, or another seed if training diverged.",
            )
        share = min(0.5, max(TAIL_SHARE, TAIL_POINTS / n))
        levels = np.linspace(0, -math.log10(share), KNOTS)
        knots = np.quantile(e, 1 - 10.0**-levels)
        other = _sorted(np.empty(0) if seen is None else seen, trim)
        if len(other) >= TAIL_POINTS:
            larger = np.quantile(other, 1 - 10.0**-levels)
            e = other if larger[-1] > knots[-1] else e  # the tail is that of the larger ones
            knots = np.maximum(knots, larger)
        knots[0] = min(0.0, e[0])
        size = max(-knots[0], knots[-1])
        gap = max(1e-6 * size, 1e-9)
        knots = np.maximum.accumulate(knots + gap * np.arange(KNOTS))  # strictly increasing, also over ties
        knots = np.maximum(knots, knots[0] + gap * np.arange(KNOTS))
        over = e[e > knots[-1]] - knots[-1]
        shape, scale = _pareto(over, floor=max(1e-3 * size, gap))
        return cls(knots, levels, shape, scale)

    def score(self, errors: NDArray[np.floating]) -> NDArray[np.float32]:
        """The same arithmetic as the graph, in float64."""
        e = np.asarray(errors, np.float64)
        below = np.interp(e, self.knots, self.levels)
        over = np.maximum(e - self.knots[-1], 0)
        tail = np.log1p(self.tail_shape * over / self.tail_scale) / (self.tail_shape * math.log(10))
        score: NDArray[np.float32] = (below + tail).astype(np.float32)
        return score


def _sorted(errors: NDArray[np.floating], trim: float) -> Float64:
    """The finite ones, ascending, without the largest."""
    e = np.sort(np.asarray(errors, np.float64)[np.isfinite(errors)])
    return e[: len(e) - int(len(e) * trim)]


def _pareto(over: Float64, floor: float) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution from its exceedances, by probability-weighted moments."""
    if len(over) < 3 or over.mean() <= floor:
        return SHAPE_RANGE[0], max(floor, float(over.mean()) if len(over) else 0.0)
    y = np.sort(over)
    m = len(y)
    a0 = float(y.mean())
    a1 = float((y * (1 - (np.arange(1, m + 1) - 0.35) / m)).mean())
    shape = float(np.clip(2 - a0 / (a0 - 2 * a1), *SHAPE_RANGE))  # a0 > 2 a1: weights fall while y rises
    return shape, max(a0 * (1 - shape), floor)  # the mean of the distribution is scale / (1 - shape)
