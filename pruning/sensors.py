"""What sensors are worth: how a detector would find injected anomalies without each of them. A suggestion, no more."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detectors.training.calibrate import Scaler
from detectors.training.fitted import Fitted, scored
from detectors.training.stretches import Stretches
from pruning.exam import UNSCORED, counted
from pruning.gate import Ranking
from pruning.injection import KINDS, LENGTHS, disturb, due_labels

FloatArray = NDArray[np.float32]
Json = dict[str, Any]

EVENTS = (5, 36)  # of a sensor's trial: fewer say nothing, more take long; the same ones for every sensor
MARGIN_POINTS = 25  # normal points before and after an anomaly, on average
MOST_SENSORS = 128
PASSES = 6  # over all events, beside one for each sensor
TRIAL_SECONDS = 3.5  # that all trials may take, as estimated from what one core of a shared machine took:
POINT_SECONDS = 8e-6  # for a point ...
VALUE_SECONDS = 13e-9  # ... for each value of its residual ...
MAC_SECONDS = 0.2e-9  # ... and for each multiply-accumulate ...
COMPARISON_SECONDS = 110e-9  # ... or comparison of a tree
SAME = 0.01  # a change of average precision that is not worth a sensor
SUGGESTION = "a suggestion, never automatic: injected anomalies are not those of your machine"


class Trials(NamedTuple):
    """E normal stretches with one anomaly each.

    Attributes:
        points: [E, T, F], raw values.
        labels: [E, T].
        disturbed: [E, F], the sensors that the anomaly is on.
    """

    points: FloatArray
    labels: NDArray[np.bool_]
    disturbed: NDArray[np.bool_]


def sensors(child: Fitted, held_out: Stretches, seed: int) -> Json:
    """For each feature how the child would find injected anomalies without the sensor, as changes of average precision.

    Without it: held at its median, and whatever it contributes to the error taken away; nothing is trained. `change` is
    over all anomalies: what only this sensor shows is lost. `change_elsewhere` is over those that are not on it: does
    the context that it gives to the others miss? None where every anomaly is.

    Args:
        child: Calibrated.
        held_out: Normal points.
        seed: Of the anomalies.

    Returns:
        `note`, `skipped` (why there is no table, else None), `events`, `average_precision` with all sensors, and
        `features`, those that would be missed least first; those that are `suggested` could go together.
    """
    events = _affordable(child)
    skipped = _skipped(len(child.features), events)
    empty: Json = {"note": SUGGESTION, "skipped": skipped, "events": 0, "average_precision": None, "features": []}
    if skipped:
        return empty
    normal = held_out.filled()
    asked = _Asked.of(child, normal, trials(normal, child.warm_up_points, events, np.random.default_rng(seed)))
    changes = [asked.changes([i]) for i in range(len(child.features))]
    order = sorted(range(len(changes)), key=lambda i: -changes[i][0])
    spare = _together(asked, [i for i in order if all(it is None or it >= -SAME for it in changes[i])])
    return {
        **empty,
        "events": events,
        "average_precision": asked.precision(asked.whole),
        "features": [
            {
                "feature": child.features[i],
                "change": changes[i][0],
                "change_elsewhere": changes[i][1],
                "suggested": i in spare,
            }
            for i in order
        ],
    }


def _skipped(n_features: int, events: int) -> str | None:
    if n_features == 1:
        return "there is only one sensor"
    if n_features > MOST_SENSORS:
        return f"{n_features} features are more than {MOST_SENSORS}"
    return "trials of a network of this size cost too much" if events < EVENTS[0] else None


@dataclass(frozen=True)
class _Asked:
    """A child and what it is asked about.

    Attributes:
        child: Calibrated.
        drawn: Anomalies.
        due: [E, T], points that count.
        medians: [F], of normal points.
        whole: [E, T], scores with all sensors.
    """

    child: Fitted
    drawn: Trials
    due: NDArray[np.bool_]
    medians: FloatArray
    whole: FloatArray

    @classmethod
    def of(cls, child: Fitted, normal: Stretches, drawn: Trials) -> Self:
        """Of a child and anomalies in normal points."""
        drawn = drawn._replace(labels=due_labels(drawn.labels, child.network.stride))
        due = counted(drawn.labels, child.warm_up_points) & scored(child.network, child.how, 0, drawn.points.shape[1])
        return cls(child, drawn, due, np.median(normal.rows, axis=0), child.trace(drawn.points).score)

    def changes(self, sensors: list[int]) -> tuple[float, float | None]:
        """Of average precision without some sensors: over all anomalies, and over those that are on none of them."""
        without = scores_without(self.child, self.drawn.points, sensors, self.medians)
        elsewhere = self.drawn.disturbed[:, sensors].sum(axis=1) == 0
        change = self.precision(without) - self.precision(self.whole)
        if not self.drawn.labels[elsewhere].any():
            return change, None
        return change, self.precision(without, elsewhere) - self.precision(self.whole, elsewhere)

    def precision(self, scores: FloatArray, events: NDArray[np.bool_] | slice = slice(None)) -> float:
        """Average precision of scores [E, T] over some of the events."""
        due = self.due[events]
        found = np.nan_to_num(scores[events][due], nan=UNSCORED)
        return Ranking(found, self.drawn.labels[events][due]).average_precision()


def _together(asked: _Asked, candidates: list[int]) -> set[int]:
    """The longest head of the candidates that can be done without all at once, one sensor at least being left."""
    low, high = 0, min(len(candidates), len(asked.medians) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if asked.changes(candidates[:middle])[0] >= -SAME:
            low = middle
        else:
            high = middle - 1
    return set(candidates[:low])


def trials(normal: Stretches, warm_up: int, events: int, rng: np.random.Generator) -> Trials:
    """Anomalies of one kind after the other (`pruning.injection`), with the sensors that each is on.

    Args:
        normal: Held-out normal points.
        warm_up: Points a detector needs before its scores count.
        events: E.
        rng: Where, how long, how strong, which features.
    """
    length = _length(warm_up, max(len(part) for part in normal.parts))
    parts = [part for part in normal.parts if len(part) >= length]
    room = np.array([len(part) - length + 1 for part in parts], np.float64)
    scale = Scaler.fit(normal.rows).scale
    calm, points = [], []
    for kind in islice(cycle(KINDS), events):
        part = parts[rng.choice(len(parts), p=room / room.sum())]
        start = int(rng.integers(0, len(part) - length + 1))
        calm.append(part[start : start + length])
        points.append(calm[-1].copy())
        disturb(points[-1], kind, scale, rng, first=warm_up + 1)
    changed = np.stack(points) != np.stack(calm)
    touched = changed.any(axis=2)
    begun, over = np.cumsum(touched, axis=1) > 0, np.cumsum(touched[:, ::-1], axis=1)[:, ::-1] > 0
    return Trials(np.stack(points), begun & over, changed.any(axis=1))


def _length(warm_up: int, longest: int = 1 << 30) -> int:
    return min(warm_up + 2 * MARGIN_POINTS + LENGTHS[1], longest)


def _affordable(child: Fitted) -> int:
    """Events that fit into `TRIAL_SECONDS`, at most `EVENTS`."""
    each = sum(
        POINT_SECONDS
        + VALUE_SECONDS * member.positions * member.n_features
        + (MAC_SECONDS if member.learned_by_gradient else COMPARISON_SECONDS) * member.macs
        for member in child.network.members.values()
    )
    points = _length(child.warm_up_points) * (len(child.features) + PASSES)
    return min(EVENTS[1], int(TRIAL_SECONDS / (each * points)))


def scores_without(child: Fitted, points: FloatArray, sensors: list[int], medians: FloatArray) -> FloatArray:
    """Scores [E, T] of a detector that knows nothing of some sensors.

    Args:
        child: The detector.
        points: [E, T, F], raw values.
        sensors: Indices of features.
        medians: [F], what these are held at.
    """
    held = points.copy()
    held[:, :, sensors] = medians[sensors]
    trace = child.trace(held)
    calibration = child.combined or child.views[0].calibration
    left = np.maximum(trace.error - trace.contribution[:, :, sensors].sum(axis=2), 0)
    return np.where(np.isfinite(trace.score), calibration.score(left), np.float32(np.nan))
