"""Synthetic anomalies in normal points, for judging a detector without labels.

Each event is a copy of a real normal stretch with one disturbance in it; kinds after the taxonomy of Lai et al. 2021
("Revisiting Time Series Outlier Detection") and the generators used for TSB-AD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.training.stretches import Stretches

FloatArray = NDArray[np.float32]
Segment = NDArray[np.floating]
Disturb = Callable[[FloatArray, FloatArray, np.random.Generator], Segment]
"""segment [L, M] of the disturbed features, their scale [M], generator -> new segment [L, M]"""

LENGTHS = (8, 48)
MARGIN_POINTS = 40  # normal points before and after a disturbance, on average: where it lies is drawn
MOST_TIMES = (
    4  # as long, and as far apart, for detectors that score every so many points: else few of those are in them
)
ATTEMPTS = 8  # a constant sensor can not hang: where nothing changed, something else is drawn


@dataclass(frozen=True)
class Events:
    """E normal stretches, disturbed.

    Attributes:
        points: [E, T, F] raw values.
        labels: [E, T], True from the first to the last point that changed; with a stride as `due_labels` has them.
        kinds: E names.
    """

    points: FloatArray
    labels: NDArray[np.bool_]
    kinds: tuple[str, ...]


def inject(
    normal: Stretches, scale: FloatArray, *, per_kind: int, warm_up: int, rng: np.random.Generator, stride: int = 1
) -> Events:
    """Cuts stretches at random and disturbs each in one place.

    Args:
        normal: Held-out normal points.
        scale: [F], a standard deviation of each feature.
        per_kind: Events of each kind.
        warm_up: Points a detector needs before its scores count.
        rng: Where, how long, how strong, which features.
        stride: Of the detectors that are asked. Where they score fewer points, stretches and what is disturbed in them
            are longer, up to `MOST_TIMES` and as far as the normal stretches go.
    """
    once = 2 * MARGIN_POINTS + LENGTHS[1]
    parts = [part for part in normal.parts if len(part) > warm_up + LENGTHS[0] + 2]
    if not parts:
        raise ValueError("no normal stretch is long enough to inject anomalies into")
    sizes = np.sort([len(part) for part in parts])[::-1]
    half = int(np.searchsorted(np.cumsum(sizes), sizes.sum() / 2))  # half of the points lie in stretches this long
    times = int(np.clip((sizes[half] - warm_up) // once, 1, min(stride, MOST_TIMES)))
    length = min(warm_up + times * once, int(sizes[half]))
    parts = [part for part in parts if len(part) >= length]
    weights = np.array([len(part) - length + 1 for part in parts], np.float64)
    kinds = [kind for kind in KINDS for _ in range(per_kind)]
    points = np.empty((len(kinds), length, normal.n_features), np.float32)
    labels = np.zeros((len(kinds), length), bool)
    for i, kind in enumerate(kinds):
        for _ in range(ATTEMPTS):
            part = parts[rng.choice(len(parts), p=weights / weights.sum())]
            start = int(rng.integers(0, len(part) - length + 1))
            points[i] = part[start : start + length]
            disturb(points[i], kind, scale, rng, first=warm_up + 1, times=times)
            changed = np.flatnonzero((points[i] != part[start : start + length]).any(axis=1))
            if len(changed):
                labels[i, changed[0] : changed[-1] + 1] = True
                break
    return Events(points, due_labels(labels, stride), tuple(kinds))


def due_labels(labels: NDArray[np.bool_], stride: int) -> NDArray[np.bool_]:
    """Labels [E, T] as a detector is asked that scores only each `stride`-th point: it looks at all since the last one.

    >>> due_labels(np.array([[False, True, False, False, False, False]]), 3)[0].nonzero()[0].tolist()
    [1, 2]
    """
    due = labels.copy()
    last = labels.shape[1] // stride * stride
    due[:, stride - 1 : last : stride] = labels[:, :last].reshape(len(labels), -1, stride).any(axis=2)
    return due


def disturb(
    points: FloatArray, kind: str, scale: FloatArray, rng: np.random.Generator, *, first: int = 0, times: int = 1
) -> None:
    """Disturbs one place of a stretch [T, F], in place, from point `first` on; `times` as long, but for spikes."""
    length, n_features = points.shape
    shortest, longest = (min(times * it, length - first) for it in LENGTHS)
    if kind == "spike":
        shortest, longest = 1, min(3, longest)
    span = int(rng.integers(shortest, longest + 1))
    at = int(rng.integers(first, length - span + 1))
    features = rng.permutation(n_features)[: max(1, round(n_features * rng.uniform(0.1, 0.4)))]
    window = np.ix_(np.arange(at, at + span), features)
    points[window] = KINDS[kind](points[window], scale[features], rng)


def spike(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """One to three points far off."""
    return x + _signs(scale, rng) * rng.uniform(3, 6) * scale


def level_shift(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """All points of the span moved by the same amount."""
    return x + _signs(scale, rng) * rng.uniform(1.5, 3) * scale


def drift(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """A ramp."""
    return x + np.linspace(0, 1, len(x))[:, None] * _signs(scale, rng) * rng.uniform(2, 4) * scale


def noise(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """A sensor that trembles."""
    return x + rng.standard_normal(x.shape) * rng.uniform(1, 2) * scale


def flat_line(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """A sensor that hangs."""
    return np.broadcast_to(x[:1], x.shape).copy()


def stretch_scale(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """Swings about the mean, larger or smaller than normal."""
    mean: Segment = x.mean(axis=0)
    return mean + (x - mean) * (rng.uniform(2, 4) if rng.random() < 0.5 else rng.uniform(0, 0.3))


def cut_off(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """A saturated sensor: everything above (or below) the median is cut."""
    cut = np.minimum if rng.random() < 0.5 else np.maximum
    return np.asarray(cut(x, np.median(x, axis=0)))


def time_warp(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """The same course at another pace."""
    pace = rng.choice([0.4, 2.5])
    index = (np.arange(len(x)) * pace) % max(len(x) - 1, 1)
    low = index.astype(int)
    share = (index - low)[:, None]
    return np.asarray(x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share)


def sensor_break(x: FloatArray, scale: FloatArray, rng: np.random.Generator) -> Segment:
    """Values that are normal one by one but no longer fit the other sensors or the past: the course runs backwards."""
    return x[::-1].copy()


def _signs(scale: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.choice([-1.0, 1.0], size=len(scale)).astype(np.float32)


KINDS: Mapping[str, Disturb] = {
    "spike": spike,
    "level_shift": level_shift,
    "drift": drift,
    "noise": noise,
    "flat_line": flat_line,
    "scale": stretch_scale,
    "cut_off": cut_off,
    "time_warp": time_warp,
    "sensor_break": sensor_break,
}

TAUGHT = ("spike", "level_shift", "noise", "scale", "flat_line")
"""Kinds that fine-tuning may show; the others are seen for the first time by the gate."""
