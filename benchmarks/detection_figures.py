"""What the detection benchmark says of many cells: means over series and sets, spreads over seeds, comparisons.

Cells come as a pandas frame with one row for each method, series and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import pandas as pd

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percent: a 95 % interval


class Spread(TypedDict):
    """A figure over seeds: mean and standard deviation; no deviation of a single seed, None where there is nothing."""

    mean: float | None
    spread: float | None


class Difference(TypedDict):
    """How much higher one method scores than another, with an interval over series."""

    mean: float
    low: float
    high: float
    better: int
    series: int


def standing(cells: pd.DataFrame) -> dict[str, Spread]:
    """The main figures of one method; each is worked out for every seed by itself."""
    return {name: _over_seeds(cells, figure) for name, figure in FIGURES.items()}


def _over_sets(column: str) -> Callable[[pd.DataFrame], float]:
    return lambda cells: float(cells.groupby("dataset")[column].mean().mean())


def _event_recall(cells: pd.DataFrame) -> float:
    return float((cells.delays.map(len) / cells.events).mean())


def _median_delay(cells: pd.DataFrame) -> float:
    delays = [delay for own in cells.delays for delay in own]
    return float(np.median(delays)) if delays else float("nan")


FIGURES: dict[str, Callable[[pd.DataFrame], float]] = {
    "vus_pr": lambda cells: float(cells.vus_pr.mean()),
    "vus_pr_sets": _over_sets("vus_pr"),
    "average_precision": lambda cells: float(cells.average_precision.mean()),
    "average_precision_sets": _over_sets("average_precision"),
    "event_recall": _event_recall,
    "delay_rows": _median_delay,
    "false_alarms": lambda cells: 1000 * float(cells.false_alarms.sum() / cells.normal_rows.sum()),
    "normal_flagged": lambda cells: float((cells.normal_flagged / cells.normal_rows).mean()),
    "fit_seconds": lambda cells: float(cells.fit_seconds.median()),
    "row_microseconds": lambda cells: 1e6 * float((cells.score_seconds / cells.rows).median()),
}
"""Of one method and seed.

Means over series or, where it says so, over sets; the delay is a median over all events found; false alarms are pooled
and a thousand normal points; times are medians over series.
"""


def _over_seeds(cells: pd.DataFrame, figure: Callable[[pd.DataFrame], float]) -> Spread:
    values = np.array([figure(own) for _, own in cells.groupby("seed")])
    values = values[np.isfinite(values)]
    return {
        "mean": float(values.mean()) if len(values) else None,
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
    }


def differences(cells: pd.DataFrame, one: str, other: str) -> Difference | None:
    """VUS-PR of one method less that of another, series by series, and a bootstrap of the mean over series.

    Seeds are averaged first. None when the two share no series.
    """
    by_series = cells.groupby(["method", "series"]).vus_pr.mean()
    if not {one, other} <= set(by_series.index.get_level_values(0)):
        return None
    gaps = (by_series[one] - by_series[other]).dropna().to_numpy()
    if not len(gaps):
        return None
    drawn = np.random.default_rng(0).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[drawn].mean(axis=1), INTERVAL)
    return {
        "mean": float(gaps.mean()),
        "low": float(low),
        "high": float(high),
        "better": int((gaps > 0).sum()),
        "series": len(gaps),
    }


def flagged_share(cells: pd.DataFrame) -> float:
    """Of all normal rows, those that are flagged; series and seeds pooled."""
    return float(cells.normal_flagged.sum() / cells.normal_rows.sum())


def flagged_share_by_set(cells: pd.DataFrame) -> dict[str, float]:
    """The same for each set."""
    return {str(name): flagged_share(own) for name, own in cells.groupby("dataset")}


def false_alarms_a_day(cells: pd.DataFrame) -> dict[str, float]:
    """False alarms in a day of normal points, for each set whose rows have a known period; series and seeds pooled."""
    timed = cells[cells.normal_days.notna()].astype({"normal_days": float})
    sums = timed.groupby("dataset")[["false_alarms", "normal_days"]].sum()
    return {str(name): float(row.false_alarms / row.normal_days) for name, row in sums.iterrows()}


def fit_times(cells: pd.DataFrame, method: str, peer: str) -> dict[str, Any]:
    """Seconds of fitting a series, of fitting all of them once, and how many times longer the peer takes.

    The last is the median over series, None without cells of the peer.
    """
    seconds = cells.groupby(["method", "series"]).fit_seconds.mean()
    own = seconds[method]
    has_peer = peer in set(cells.method)
    return {
        "median_seconds": float(own.median()),
        "all_series_seconds": float(own.sum()),
        "peer_ratio": float((seconds[peer] / own).median()) if has_peer else None,
    }
