"""From errors to scores: robust statistics of what is normal, and the tail probability of an error.

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
RESIDUAL_FLOOR = 0.05  # of a standard deviation of the input: keeps perfectly predicted features from dividing by zero
KNOTS = 32
TAIL_SHARE = 0.05  # the worst twentieth of the calibration points makes the tail ...
TAIL_POINTS = 20  # ... but at least this many points, however short the data
SHAPE_RANGE = (
    0.02,
    0.6,
)  # near exponential, up to clearly heavy-tailed; outside it moment estimates are not to be trusted


@dataclass(frozen=True)
class Scaler:
    """Input scale: x = clip((value - center) / scale, -CLIP, CLIP), by feature."""

    center: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, rows: NDArray[np.float32]) -> Self:
        """Mean and standard deviation [F] of rows [N, F]; a constant feature gets the scale of its own size, or 1."""
        wide = rows.astype(np.float64)
        center, deviation = wide.mean(axis=0), wide.std(axis=0)
        size = np.abs(center)
        constant = deviation <= CONSTANT * np.maximum(size, CONSTANT)
        scale = np.where(constant, np.where(size > CONSTANT, 0.1 * size, 1.0), deviation)
        return cls(center.astype(np.float32), scale.astype(np.float32))

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scaled rows, float32, in the order of operations of the graph."""
        scaled: NDArray[np.float32] = np.clip((rows - self.center) * self.inverse, -np.float32(CLIP), np.float32(CLIP))
        return scaled

    @property
    def inverse(self) -> NDArray[np.float32]:
        """1 / scale, as the graph multiplies by it."""
        return (np.float32(1) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class ResidualScale:
    """Normal residuals by feature: z = (residual - center) / scale."""

    center: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, residuals: NDArray[np.float32]) -> Self:
        """Median and the larger of two robust deviations, [F], of residuals [N, F].

        The median absolute deviation alone is too small for features that mostly stand still; the deviation of the
        middle 98 % alone is what an outlier moves most.
        """
        center = np.median(residuals, axis=0)
        away = np.abs(residuals - center)
        middle = np.minimum(away, np.quantile(away, 0.98, axis=0))
        scale = np.maximum.reduce([1.4826 * np.median(away, axis=0), np.sqrt((middle**2).mean(axis=0))])
        return cls(center.astype(np.float32), np.maximum(scale, RESIDUAL_FLOOR).astype(np.float32))

    @property
    def inverse(self) -> NDArray[np.float32]:
        """1 / scale, as the graph multiplies by it."""
        return (np.float32(1) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Error -> score.

    Attributes:
        knots: [K] strictly increasing errors; the first is 0.
        levels: [K] strictly increasing scores at the knots; the first is 0.
        tail_shape: Generalised Pareto shape above the last knot, > 0.
        tail_scale: Its scale, in units of the error.
    """

    knots: Float64
    levels: Float64
    tail_shape: float
    tail_scale: float

    @classmethod
    def fit(cls, errors: NDArray[np.floating]) -> Self:
        """Fits the score scale to the errors [N] of normal points.

        Raises:
            InvalidInputError: fewer than `TAIL_POINTS` finite errors.
        """
        e = np.sort(np.asarray(errors, np.float64)[np.isfinite(errors)])
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
        knots[0] = 0.0
        gap = max(1e-6 * knots[-1], 1e-9)
        knots = np.maximum.accumulate(knots + gap * np.arange(KNOTS))  # strictly increasing, also over ties
        knots = np.maximum(knots, gap * np.arange(KNOTS))
        over = e[e > knots[-1]] - knots[-1]
        shape, scale = _pareto(over, floor=max(1e-3 * knots[-1], gap))
        return cls(knots, levels, shape, scale)

    def score(self, errors: NDArray[np.floating]) -> NDArray[np.float32]:
        """The same arithmetic as the graph, in float64."""
        e = np.asarray(errors, np.float64)
        below = np.interp(e, self.knots, self.levels)
        over = np.maximum(e - self.knots[-1], 0)
        tail = np.log1p(self.tail_shape * over / self.tail_scale) / (self.tail_shape * math.log(10))
        score: NDArray[np.float32] = (below + tail).astype(np.float32)
        return score


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
