"""What cells of the pruning benchmark say together: the gate applied anew, means, aims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from detection_cells import Cell

from pruning.gate import GateLimits

QUALITY = ("error", "alarms", "tail", "injected")
"""The checks whose thresholds are config."""
LARGEST_DROP = {"4x": 0.005, "8x": 0.01, "floor": 0.02}
"""Of mean average precision and VUS-PR: what a pruned detector may lose."""
BEATEN = ("random", "scratch", "no_repair")
HALF_DROP = 0.01
A_TENTH = 0.1


def passed(checks: Mapping[str, float | None], limits: GateLimits) -> bool:
    """Whether what the gate measured is inside thresholds; what could not be measured is not."""
    error, alarms, tail, injected = (checks[name] for name in QUALITY)
    if error is None or alarms is None or tail is None or injected is None:
        return False
    return (
        error <= limits.error_ratio
        and alarms >= limits.alarm_jaccard
        and tail >= limits.tail_agreement
        and injected >= -limits.injected_drop
    )


def table(cells: Iterable[Cell], limits: GateLimits | None = None) -> pd.DataFrame:
    """One row a child, with what is compared; children that were not built have no figures.

    Args:
        cells: Of the benchmark.
        limits: Of the gate; None: as they are now.
    """
    rows = []
    for cell in cells:
        row = {key: cell[key] for key in ("kind", "series", "seed", "batch", "target", "method", "built", "reason")}
        if cell["built"]:
            checks = cell["checks"]
            row |= {
                "adopted": passed(checks, limits or GateLimits()) and cell["alarm_rate_passed"] and cell["in_budget"],
                "speedup": cell["dense_p50"] / cell["p50"],
                "p99_speedup": cell["dense_p99"] / cell["p99"],
                "bytes": cell["dense_bytes"] / cell["bytes"],
                "parent_ap": cell["parent_ap"],
                "ap": cell["ap"] - cell["parent_ap"],
                "vus_pr": cell["vus_pr"] - cell["parent_vus_pr"],
                "cpu_seconds": cell["cpu_seconds"],
                "wall_seconds": cell["wall_seconds"],
                "train_seconds": cell["train_seconds"],
                **{name: checks[name] for name in QUALITY},
            }
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame if "adopted" in frame else frame.assign(adopted=False)


def by_series(frame: pd.DataFrame, column: str) -> pd.Series:
    """Means over seeds for each series, so that every series counts alike."""
    return frame.groupby("series")[column].mean()


def mean_of(frame: pd.DataFrame, column: str) -> float | None:
    """Over seeds and then over series; None where there is nothing."""
    values = by_series(frame[frame.built.astype(bool)], column) if column in frame else pd.Series(dtype=float)
    return float(values.mean()) if values.notna().any() else None


def spread_of(frame: pd.DataFrame, column: str) -> tuple[float, float] | None:
    """Mean and standard deviation over the seeds of one series; None where nothing was built."""
    values = frame[frame.built.astype(bool)][column]
    return (float(values.mean()), float(values.std(ddof=0))) if len(values) else None


def paired(frame: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Children of two methods where both built one: columns with the method behind the name."""
    keys = ["kind", "series", "seed", "batch", "target"]
    built = frame[frame.built.astype(bool)]
    return built[built.method == one].merge(built[built.method == other], on=keys, suffixes=(f"_{one}", f"_{other}"))


def aims(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Each aim: what was found, and whether it is met (None: there are no cells for it yet).

    Args:
        frame: Cells of one kind at one batch.
    """
    ours = frame[frame.method == "ours"]
    found: dict[str, dict[str, Any]] = {}
    for target, most in LARGEST_DROP.items():
        there = ours[(ours.target == target) & ours.adopted.astype(bool)]
        for column, name in (("ap", "AP"), ("vus_pr", "VUS-PR")):
            change = mean_of(there, column) if len(there) else None
            met = None if change is None else change >= -most
            found[f"{target}: mean {name} at most {most:g} below the parent's, adopted children"] = _aim(change, met)
    for other in BEATEN:
        for target in [it for it in frame.target.unique() if it in {"2x", *LARGEST_DROP}]:
            both = paired(frame[frame.target == target], "ours", other)
            if len(both):
                difference = float((by_series(both, f"error_{other}") - by_series(both, "error_ours")).mean())
                found[f"{target}: mean error below `{other}`"] = _aim(difference, difference > 0)
    both = paired(frame, "ours", "scratch_long")
    if len(both):
        difference = float((by_series(both, "error_scratch_long") - by_series(both, "error_ours")).mean())
        share = float(both.train_seconds_ours.sum() / both.train_seconds_scratch_long.sum())
        found["mean error not above `scratch_long`"] = _aim(difference, difference >= 0)
        found["a tenth of its training time"] = _aim(share, share <= A_TENTH)
    half = ours[ours.target == "half the trees"]
    if len(half):
        change = mean_of(half, "ap")
        found[f"half the trees: mean AP at most {HALF_DROP:g} below the parent's"] = _aim(
            change, change is not None and change >= -HALF_DROP
        )
    return found


def _aim(value: float | None, met: bool | None) -> dict[str, Any]:
    return {"value": value, "met": met}
