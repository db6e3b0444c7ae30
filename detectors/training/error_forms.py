"""From residuals to what each feature contributes to one error, in numpy and as the same arithmetic in the graph.

`Robust` is what every network that is fitted here gets. The other forms are the errors of detectors that come from
elsewhere (`detectors.training.import_pyod`) or that judge by themselves (an isolation forest).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from detectors.training.graph import Graph
from detectors.training.networks.base import Normal

FloatArray = NDArray[np.float32]

RESIDUAL_FLOOR = 0.05  # of a standard deviation of the input: keeps perfectly predicted features from dividing by zero
WORST_SHARE = 0.25  # of the features: wide machines fail in a few sensors, and the mean over all drowns them ...
WORST_LEAST = 8  # ... but the fewest that `worst` looks at: narrow machines fail as a whole
SHRINK_POINTS = 1000  # of the labelled sets that defaults were chosen on, the short ones want the common scale
POINT_CLIP = 4.0  # robust deviations: one dead sensor must not drown the rest, nor one spike the points after it ...
WINDOW_CLIP = 8.0  # ... which in a window is one of many positions
Aggregate = Literal["mean", "worst"]


class ErrorForm(ABC):
    """How residuals [N, R, F] become contributions [N, F] whose sum is the error."""

    name: ClassVar[str]

    @abstractmethod
    def refitted(self, residuals: FloatArray, points: int) -> Self:
        """The same form with its statistics fitted anew.

        Args:
            residuals: [N, F] of normal points, over positions too; may be a sample.
            points: How many points they were taken from.
        """

    def newest(self, positions: int) -> Self:
        """The form of a shorter window: of its last positions."""
        del positions
        return self

    @property
    @abstractmethod
    def normal(self) -> Normal:
        """What the network folds into its weights."""

    @abstractmethod
    def __call__(self, residual: FloatArray, known: FloatArray | None = None) -> FloatArray:
        """Contributions [N, F] of residuals [N, R, F].

        Args:
            residual: Of the network, in scaled units.
            known: [N, R, F], 0 where a value was missing: it contributes nothing; None: nothing was.
        """

    @abstractmethod
    def draw(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        """The same in the graph, from normalised residuals [B, R * F] to contributions [B, F]."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """What has to be kept to build it again."""

    @classmethod
    @abstractmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """The inverse of `arrays`."""


def worst_of(n_features: int) -> int:
    """How many features the worst few are.

    >>> [worst_of(n_features) for n_features in (1, 8, 9, 38, 55)]
    [1, 8, 8, 10, 14]
    """
    return min(n_features, max(WORST_LEAST, math.ceil(n_features * WORST_SHARE)))


@dataclass(frozen=True)
class Robust(ErrorForm):
    """Clipped squares of robustly normalised residuals; the mean over all features or over the worst few.

    The error is spread over the features as their squares are before they were clipped: clipped ones are alike, and
    would not say which sensor failed.

    Attributes:
        center: [F], median residual.
        scale: [F], robust deviation with a floor.
        weights: [R], what each position counts; they sum to 1.
        clip: |z| is cut here.
        worst: Features that make the error: the mean of the `worst` largest.
    """

    name = "robust"
    center: FloatArray
    scale: FloatArray
    weights: FloatArray
    clip: float
    worst: int

    @classmethod
    def blank(
        cls, n_features: int, *, positions: int = 1, half_life: float = 0.0, aggregate: Aggregate = "mean"
    ) -> Self:
        """Before it is fitted.

        Args:
            n_features: F.
            positions: R.
            half_life: A position so many points before the newest counts half; 0: all count alike.
            aggregate: Over features.
        """
        worst = n_features if aggregate == "mean" else worst_of(n_features)
        zeros, ones = np.zeros(n_features, np.float32), np.ones(n_features, np.float32)
        clip = POINT_CLIP if positions == 1 else WINDOW_CLIP
        age = np.arange(positions)[::-1]
        weights = 0.5 ** (age / half_life) if half_life > 0 else np.ones(positions)
        return cls(zeros, ones, (weights / weights.sum()).astype(np.float32), clip, worst)

    def refitted(self, residuals: FloatArray, points: int) -> Self:
        """Median, and the larger of two robust deviations, drawn towards what all features have in common.

        The median absolute deviation alone is too small for features that mostly stand still; the deviation of the
        middle 98 % alone is what an outlier moves most. A scale estimated from few points says little of one feature
        against another, so it is shrunk (on the logarithm) towards the geometric mean of all: by half where it comes
        from `SHRINK_POINTS`.
        """
        center = np.median(residuals, axis=0)
        away = np.abs(residuals - center)
        middle = np.minimum(away, np.quantile(away, 0.98, axis=0))
        scale = np.maximum(1.4826 * np.median(away, axis=0), np.sqrt((middle**2).mean(axis=0)))
        own = np.log(np.maximum(scale, RESIDUAL_FLOOR))
        trust = points / (points + SHRINK_POINTS)
        shrunk = np.exp(trust * own + (1 - trust) * own.mean())
        return replace(self, center=center.astype(np.float32), scale=shrunk.astype(np.float32))

    def newest(self, positions: int) -> Self:
        """See `ErrorForm`; what is left of the weights sums to 1 again."""
        weights = self.weights[-positions:]
        return replace(self, weights=(weights / weights.sum()).astype(np.float32))

    @property
    def normal(self) -> Normal:
        """Folded so that contributions sum to the mean over the worst: z / sqrt(worst)."""
        return Normal(self.center, (1 / (self.scale * math.sqrt(self.worst))).astype(np.float32))

    @property
    def _bound(self) -> float:
        return self.clip / math.sqrt(self.worst)

    def __call__(self, residual: FloatArray, known: FloatArray | None = None) -> FloatArray:
        """See `ErrorForm`."""
        z = (residual - self.normal.center) * self.normal.inverse
        away = self._averaged(np.square(z), known)
        clipped = self._averaged(np.square(np.clip(z, -self._bound, self._bound)), known)
        if self.worst < clipped.shape[-1]:
            clipped = -np.partition(-clipped, self.worst - 1, axis=-1)[..., : self.worst]
        error, whole = (each.sum(axis=-1, keepdims=True) for each in (clipped, away))
        return np.asarray(away * (error / np.maximum(whole, np.float32(TINY))), np.float32)

    def _averaged(self, squared: FloatArray, known: FloatArray | None) -> FloatArray:
        """Over positions, [N, R, F] -> [N, F]."""
        present = squared if known is None else squared * known
        return np.asarray(np.einsum("...rf,r->...f", present, self.weights), np.float32)

    def draw(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        """See `ErrorForm`."""
        clipped = graph.op("Clip", z, graph.const(-self._bound), graph.const(self._bound))
        each = self._squared(graph, clipped, positions, n_features, known)
        if n_features == 1:
            return each  # all of the error is its own
        away = self._squared(graph, z, positions, n_features, known)
        if self.worst < n_features:
            each = graph.ops("TopK", each, graph.const([self.worst], np.int64), outputs=2, axis=1)[0]
        error, whole = graph.total(each, self.worst, n_features), graph.total(away, n_features, n_features)
        return graph.op("Mul", away, graph.op("Div", error, graph.op("Max", whole, graph.number(TINY))))

    def _squared(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        squared = graph.op("Mul", z, z)
        if known is not None:
            squared = graph.op("Mul", squared, known)
        return self._over_positions(graph, squared, positions, n_features)

    def _over_positions(self, graph: Graph, squared: str, positions: int, n_features: int) -> str:
        """The weighted mean, [B, R * F] -> [B, F]."""
        if positions == 1:
            return squared
        if n_features == 1:
            return graph.op("MatMul", squared, graph.const(self.weights[:, None]))
        shaped = graph.op("Reshape", squared, graph.const([-1, positions, n_features], np.int64))
        weighed = graph.op("MatMul", graph.const(self.weights[None]), shaped)  # [B, 1, F]
        return graph.op("Squeeze", weighed, graph.const([1], np.int64))

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """See `ErrorForm`."""
        shape = np.array([self.clip, self.worst], np.float64)
        return {"center": self.center, "scale": self.scale, "weights": self.weights, "shape": shape}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """See `ErrorForm`."""
        clip, worst = arrays["shape"]
        center, scale, weights = (arrays[name].astype(np.float32) for name in ("center", "scale", "weights"))
        return cls(center, scale, weights, float(clip), int(worst))


@dataclass(frozen=True)
class Summed(ErrorForm):
    """Contributions are the squared residuals as they are: the network has judged already (an isolation forest).

    Attributes:
        n_features: F.
        offset: Added to the error, an equal part to each feature.
    """

    name = "summed"
    n_features: int
    offset: float = 0.0

    def refitted(self, residuals: FloatArray, points: int) -> Self:
        """Nothing to fit."""
        del residuals, points
        return self

    @property
    def normal(self) -> Normal:
        """Nothing is moved or scaled."""
        return Normal(np.zeros(self.n_features, np.float32), np.ones(self.n_features, np.float32))

    def __call__(self, residual: FloatArray, known: FloatArray | None = None) -> FloatArray:
        """See `ErrorForm`."""
        squared = np.square(residual) if known is None else np.square(residual) * known
        each: FloatArray = squared.sum(axis=-2) + np.float32(self.offset / self.n_features)
        return each

    def draw(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        """See `ErrorForm`."""
        squared = graph.op("Mul", z, z)
        if known is not None:
            squared = graph.op("Mul", squared, known)
        each = _summed(graph, squared, positions, n_features)
        return graph.op("Add", each, graph.number(self.offset / self.n_features)) if self.offset else each

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """See `ErrorForm`."""
        return {"shape": np.array([self.n_features, self.offset], np.float64)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """See `ErrorForm`."""
        return cls(int(arrays["shape"][0]), float(arrays["shape"][1]))


@dataclass(frozen=True)
class Euclidean(ErrorForm):
    """The error is the Euclidean length of the residual, as in PyOD's autoencoders; contributions are r^2 / length."""

    name = "euclidean"
    n_features: int

    def refitted(self, residuals: FloatArray, points: int) -> Self:
        """Nothing to fit."""
        del residuals, points
        return self

    @property
    def normal(self) -> Normal:
        """Nothing is moved or scaled."""
        return Normal(np.zeros(self.n_features, np.float32), np.ones(self.n_features, np.float32))

    def __call__(self, residual: FloatArray, known: FloatArray | None = None) -> FloatArray:
        """See `ErrorForm`."""
        squared = np.square(residual) if known is None else np.square(residual) * known
        each: FloatArray = squared.sum(axis=-2)
        length = np.sqrt(each.sum(axis=-1, keepdims=True))
        return np.asarray(each / np.maximum(length, np.float32(TINY)), np.float32)

    def draw(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        """See `ErrorForm`."""
        squared = graph.op("Mul", z, z)
        if known is not None:
            squared = graph.op("Mul", squared, known)
        each = _summed(graph, squared, positions, n_features)
        length = graph.op("Sqrt", graph.op("ReduceSum", each, graph.const([1], np.int64), keepdims=1))
        return graph.op("Div", each, graph.op("Max", length, graph.number(TINY)))

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """See `ErrorForm`."""
        return {"shape": np.array([self.n_features], np.float64)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """See `ErrorForm`."""
        return cls(int(arrays["shape"][0]))


@dataclass(frozen=True)
class Mahalanobis(ErrorForm):
    """The squared Mahalanobis distance of a forecast's residual, as in PyOD's LSTMAD (Malhotra et al. 2015).

    Contributions d_f * (d P)_f sum to d P d'; where sensors go together a single one may be negative.

    Attributes:
        center: [F], mean residual.
        precision: [F, F], inverse covariance P.
    """

    name = "mahalanobis"
    center: FloatArray
    precision: FloatArray

    def refitted(self, residuals: FloatArray, points: int) -> Self:
        """Mean and inverse covariance, regularised as PyOD does."""
        del points
        wide = residuals.astype(np.float64)
        covariance = np.atleast_2d(np.cov(wide.T)) + 1e-6 * np.eye(wide.shape[1])
        precision = np.linalg.inv(covariance)
        return type(self)(wide.mean(axis=0).astype(np.float32), precision.astype(np.float32))

    @property
    def normal(self) -> Normal:
        """Moved, not scaled."""
        return Normal(self.center, np.ones(len(self.center), np.float32))

    def __call__(self, residual: FloatArray, known: FloatArray | None = None) -> FloatArray:
        """See `ErrorForm`."""
        away = residual[..., 0, :] - self.center
        if known is not None:
            away = away * known[..., 0, :]
        return np.asarray(away * (away @ self.precision), np.float32)

    def draw(self, graph: Graph, z: str, positions: int, n_features: int, known: str | None) -> str:
        """See `ErrorForm`."""
        del positions, n_features
        away = z if known is None else graph.op("Mul", z, known)
        return graph.op("Mul", away, graph.op("MatMul", away, graph.const(self.precision)))

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """See `ErrorForm`."""
        return {"center": self.center, "precision": self.precision}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """See `ErrorForm`."""
        return cls(arrays["center"].astype(np.float32), arrays["precision"].astype(np.float32))


TINY = 1e-12
FORMS: Mapping[str, type[ErrorForm]] = {form.name: form for form in (Robust, Summed, Euclidean, Mahalanobis)}


def _summed(graph: Graph, squared: str, positions: int, n_features: int) -> str:
    """The sum over positions, [B, R * F] -> [B, F]."""
    if positions == 1:
        return squared
    shaped = graph.op("Reshape", squared, graph.const([-1, positions, n_features], np.int64))
    return graph.op("ReduceSum", shaped, graph.const([1], np.int64), keepdims=0)
