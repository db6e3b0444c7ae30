"""How well scores find labelled events: the measures of the detection benchmark, on arrays alone.

VUS-PR follows Paparrizos et al., "Volume Under the Surface: A New Accuracy Evaluation Measure for Time-Series Anomaly
Detection" (PVLDB 15, 2022), to the letter of the package `vus`, which is too slow for thousands of cells; a test holds
`vus_pr` against the package.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

LONGEST_BUFFER = 250
THRESHOLDS = 250  # of the curve behind each area, as in the package
LAGS, FIRST_LAG, LONGEST_PERIOD, NO_PERIOD = 400, 3, 300, 125  # of the package's `find_length`
PERIOD_ROWS = 20_000  # at most so many go into the autocorrelation, as in the package
SECONDS_A_DAY = 86_400


def measured(
    scores: Floats, labels: Flags, flagged: Flags, *, buffer: int, period_seconds: float | None
) -> dict[str, Any]:
    """Every measure of one scored test part.

    Args:
        scores: [T], higher is stranger; rows without a score (NaN) are taken as the least strange.
        labels: [T], true where the row is anomalous; at least one is.
        flagged: [T], true where the method's own threshold raises an alarm.
        buffer: Longest buffer of VUS-PR, rows.
        period_seconds: Between two rows; None when it is not known.
    """
    from sklearn.metrics import average_precision_score

    ranked = scored_everywhere(scores)
    delays = detection_delays(labels, flagged)
    normal = int((~labels).sum())
    return {
        "vus_pr": vus_pr(ranked, labels, buffer),
        "average_precision": float(average_precision_score(labels, ranked)),
        "events": len(runs(labels)),
        "delays": delays,
        "false_alarms": false_alarms(labels, flagged),
        "normal_rows": normal,
        "normal_flagged": int((flagged & ~labels).sum()),
        "normal_days": None if period_seconds is None else normal * period_seconds / SECONDS_A_DAY,
        "rows": len(labels),
        "unscored_rows": int(np.isnan(scores).sum()),
        "buffer": buffer,
    }


def scored_everywhere(scores: Floats) -> Floats:
    """Scores with NaN and minus infinity below every other, plus infinity above."""
    scores = np.asarray(scores, np.float64)
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    return np.nan_to_num(scores, nan=low - 1, neginf=low - 1, posinf=high + 1)


def runs(marked: Flags) -> list[tuple[int, int]]:
    """First and last row of every run of true rows.

    >>> runs(np.array([True, False, True, True]))
    [(0, 0), (2, 3)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    return [(int(start), int(stop) - 1) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def detection_delays(labels: Flags, flagged: Flags) -> list[int]:
    """Rows from the start of an event to its first flagged row, for every event that has one."""
    hits = [np.flatnonzero(flagged[first : last + 1]) for first, last in runs(labels)]
    return [int(rows[0]) for rows in hits if len(rows)]


def false_alarms(labels: Flags, flagged: Flags) -> int:
    """Runs of flagged rows that begin at a normal row.

    An alarm that outlasts its event is no new alarm; one that is up before an event begins was raised for nothing.
    """
    return sum(not labels[first] for first, _ in runs(flagged))


def dominant_period(rows: Floats) -> int:
    """Rows of the strongest cycle of a feature, by autocorrelation: `find_length` of the package, within 1 to 250."""
    rows = np.asarray(rows, np.float64)[:PERIOD_ROWS]
    centred = rows - rows.mean()
    size = 1 << (2 * len(rows) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(power, size)[: min(LAGS + 1, len(rows))]
    if correlation[0] <= 0 or np.ptp(rows) == 0:
        return NO_PERIOD
    late = correlation[FIRST_LAG:] / correlation[0]
    peaks = 1 + np.flatnonzero((late[1:-1] > late[:-2]) & (late[1:-1] > late[2:]))
    if not len(peaks):
        return NO_PERIOD
    best = int(peaks[np.argmax(late[peaks])])
    period = NO_PERIOD if best < FIRST_LAG or best > LONGEST_PERIOD else best + FIRST_LAG
    return min(max(period, 1), LONGEST_BUFFER)


def vus_pr(scores: Floats, labels: Flags, buffer: int) -> float:
    """Mean over buffers 0 to `buffer` of the range-based area under the precision-recall curve.

    Every buffer widens the events by half of it on both sides with weights that fall off. The package masks whole
    arrays for each pair of buffer and threshold; here one cumulative sum in the order of the scores serves all
    thresholds.
    """
    labels = np.asarray(labels, bool)
    events = runs(labels)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    thresholds = falling[np.linspace(0, len(scores) - 1, THRESHOLDS).astype(int)]
    predicted = np.searchsorted(-falling, -thresholds, side="right")  # rows at or above each threshold
    core_hits = np.cumsum(labels[order])[predicted - 1]
    near = _near(len(labels), events, buffer)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_score = near[np.argsort(rank[near], kind="stable")]  # the rows that any buffer reaches, strangest first
    reached = np.searchsorted(rank[by_score], predicted)  # of them, at or above each threshold
    positives = int(labels.sum())
    areas = []
    for width in range(buffer + 1):
        weight = _widened(labels, events, width)[by_score]
        true = np.r_[0.0, np.cumsum(weight)][reached]
        counted = positives + true - core_hits  # buffers count where they are predicted, events always
        recall = np.minimum(true / ((positives + counted) / 2), 1)
        peaks = np.array([scores[first : last + 1].max() for first, last in _merged(len(labels), events, width)])
        found = (peaks[:, None] >= thresholds).mean(axis=0)
        areas.append(np.diff(np.r_[0.0, recall * found]) @ (true / predicted))
    return float(np.mean(areas))


def _widened(labels: Flags, events: list[tuple[int, int]], width: int) -> Floats:
    """Labels with a weight of sqrt(1 - distance / width) up to half a width away from an event."""
    weight = labels.astype(np.float64)
    slope = np.sqrt(1 - np.arange(1, width // 2 + 1) / width) if width else np.empty(0)
    for first, last in events:
        after, before = weight[last + 1 : last + 1 + len(slope)], weight[max(first - len(slope), 0) : first]
        after += slope[: len(after)]
        before += slope[: len(before)][::-1]
    return np.minimum(weight, 1)


def _merged(rows: int, events: list[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """Events with half a width on both sides; those that touch become one."""
    half = width // 2
    spans: list[tuple[int, int]] = []
    for first, last in events:
        span = (max(first - half, 0), min(last + half, rows - 1))
        if spans and span[0] <= spans[-1][1]:
            spans[-1] = (spans[-1][0], span[1])
        else:
            spans.append(span)
    return spans


def _near(rows: int, events: list[tuple[int, int]], buffer: int) -> NDArray[np.int64]:
    """The rows that the widest buffer reaches."""
    reach = math.ceil(buffer / 2)
    inside = [np.arange(max(first - reach, 0), min(last + reach, rows - 1) + 1) for first, last in events]
    return np.unique(np.concatenate(inside))
