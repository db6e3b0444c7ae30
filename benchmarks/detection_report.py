"""The tables of the detection benchmark, made from its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detection_figures as figures
import harness
import pandas as pd
from detection_cells import Cells
from detection_ours import COSTLIER, DEFAULT, OURS, RATE
from detection_peers import PEERS
from detection_series import DRIFTING, REPORTED_HALF, SETS, TUNED_HALF

PAIRS = (
    *((kind, peer) for kind in (DEFAULT, COSTLIER) for peer in PEERS),
    ("autoencoder", "AutoEncoder"),
    ("isolation_forest", "IForest"),
)
"""Who is compared with whom: our default and the ensemble with every peer, others with the peer of their kind."""
SLOW_PEER = "LSTMAD"
FACTOR = 2
"""A set is calibrated when the share that is flagged is at most so many times too high or too low."""
PARTS = {
    "All sets": SETS,
    f"The half that may have been looked at while defaults were chosen: {', '.join(TUNED_HALF)}": TUNED_HALF,
    f"The half that was not: {', '.join(REPORTED_HALF)}": REPORTED_HALF,
}


def result(folder: Path, versions: Mapping[str, str]) -> harness.Result:
    """Everything that is published.

    Args:
        folder: Of the cells.
        versions: What each method is now; cells of another version are shown, and said to be older.

    Raises:
        harness.Skip: no method has a cell for every series.
    """
    cells, notes = whole(read(folder), versions)
    if cells.empty:
        raise harness.Skip("no method has cells of all series yet")
    parts = {title: cells[cells.dataset.isin(sets)] for title, sets in PARTS.items()}
    standings = {title: _each_method(part, figures.standing) for title, part in parts.items()}
    pairs = [(ours, peer) for ours, peer in PAIRS if {ours, peer} <= set(cells.method)]
    differences = {f"{a} - {b}": figures.differences(cells, a, b) for a, b in pairs}
    reported = {f"{a} - {b}": figures.differences(parts[list(PARTS)[2]], a, b) for a, b in pairs}
    steady = cells[~cells.series.isin(DRIFTING)]
    shares = _each_method(steady, figures.flagged_share_by_set)
    drifting = _each_method(cells[cells.series.isin(DRIFTING)], figures.flagged_share)
    by_set = _each_method(cells, lambda own: own.groupby("dataset").vus_pr.mean().to_dict())
    a_day = _each_method(cells, figures.false_alarms_a_day)
    fits = {m: figures.fit_times(cells, m, SLOW_PEER) for m in OURS if m in set(cells.method)}
    tables = {
        **{f"**{title}**": _standings(table) for title, table in standings.items()},
        "**VUS-PR by set**": _by_set(by_set, "{:.3f}".format),
        "**Differences in VUS-PR**, with 95 % intervals": _differences(differences, reported),
        f"**Share of normal points flagged** where {RATE} is asked for": _calibration(shares, drifting),
        "**False alarms in a day** of normal points": _by_set(a_day, _readable),
        "**Fitting**, processor time": _fits(fits),
    }
    lines = [line for title, table in tables.items() if table for line in (title, "", *table, "")]
    numbers = {
        "standings": standings,
        "vus_pr_by_set": by_set,
        "flagged_share_by_set": shares,
        "flagged_share_drifting": drifting,
        "false_alarms_a_day": a_day,
        "fits": fits,
    }
    ratios = {"vus_pr_differences": differences, "vus_pr_differences_reported_half": reported}
    return harness.Result(numbers, ratios, "\n".join([*lines, *notes]))


def read(folder: Path) -> pd.DataFrame:
    """The newest cells of every method in the folder, one a row."""
    rows = [
        {"method": name, "dataset": cell["series"].split("/")[0], **cell}
        for name in (*OURS, *PEERS)
        for cell in Cells(folder / f"{name}.jsonl").newest()
    ]
    return pd.DataFrame(rows, columns=None if rows else ["method", "series", "dataset", "seed", "version"])


def whole(cells: pd.DataFrame, versions: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Cells of the methods and seeds that have every series, so that means compare; and what to say of others."""
    count = cells.groupby(["method", "seed"]).series.nunique()
    every = cells.series.nunique()
    good = {key for key, n in count.items() if n == every}
    keep = [(method, seed) in good for method, seed in zip(cells.method, cells.seed, strict=True)]
    seeds = {m: sum(method == m for method, _ in good) for m in cells.method.unique()}
    missing = [m for m in versions if m not in seeds or not seeds[m]]
    older = [m for m, rows in cells.groupby("method") if m in versions and set(rows.version) != {versions[m]}]
    few = [f"{m} ({seeds[m]})" for m in seeds if 0 < seeds[m] < max(seeds.values())]
    by = cells.groupby("method").version.last()
    said = {
        "Made by: {}.": [f"`{m}` {by[m]}" for m in (*OURS, *PEERS) if seeds.get(m)],
        "Not run on all series yet: {}.": missing,
        "Made by an earlier version of the code or of PyOD: {}.": older,
        "Fewer seeds than the others: {}.": few,
    }
    return cells[keep], [text.format(", ".join(names)) for text, names in said.items() if names]


def _each_method(cells: pd.DataFrame, found: Callable[[pd.DataFrame], Any]) -> dict[str, Any]:
    return {m: found(cells[cells.method == m]) for m in (*OURS, *PEERS) if (cells.method == m).any()}


def _standings(table: Mapping[str, dict[str, figures.Spread]]) -> list[str]:
    heads = {
        "vus_pr": ("VUS-PR", 3),
        "vus_pr_sets": ("VUS-PR, sets", 3),
        "average_precision": ("AP", 3),
        "average_precision_sets": ("AP, sets", 3),
        "event_recall": ("events found", 2),
        "delay_rows": ("delay, rows", 0),
        "false_alarms": ("false alarms / 1,000", 1),
        "normal_flagged": ("normal flagged", 3),
        "fit_seconds": ("fit, s", 2),
        "row_microseconds": ("score, us / row", 0),
    }
    rows = [
        [f"`{method}`", *(_spread(row[key], digits) for key, (_, digits) in heads.items())]
        for method, row in table.items()
    ]
    return _markdown(["", *(head for head, _ in heads.values())], rows)


def _by_set(table: Mapping[str, Mapping[str, float]], form: Callable[[float], str]) -> list[str]:
    sets = [name for name in SETS if any(name in row for row in table.values())]
    rows = [[f"`{m}`", *(form(row[name]) if name in row else "" for name in sets)] for m, row in table.items()]
    return _markdown(["", *sets], rows)


def _differences(
    every: Mapping[str, figures.Difference], reported: Mapping[str, figures.Difference | None]
) -> list[str]:
    def cell(it: figures.Difference | None) -> str:
        return f"{it['mean']:+.3f} ({it['low']:+.3f} to {it['high']:+.3f})" if it else "-"

    rows = [
        [name, cell(it), f"{it['better']} of {it['series']}" if it else "-", cell(reported[name])]
        for name, it in every.items()
    ]
    return _markdown(["", "all series", "better on", "the half not looked at"], rows)


def _calibration(shares: Mapping[str, Mapping[str, float]], drifting: Mapping[str, float]) -> list[str]:
    sets = [name for name in SETS if any(name in row for row in shares.values())]
    rows = []
    for method, row in shares.items():
        near = sum(RATE / FACTOR <= share <= RATE * FACTOR for share in row.values())
        last = f"{drifting[method]:.3f}" if method in drifting else "-"
        within = f"{near} of {len(row)}"
        rows.append([f"`{method}`", *(f"{row[name]:.3f}" if name in row else "" for name in sets), within, last])
    return _markdown(["", *sets, f"within a factor {FACTOR}", "drifting series"], rows)


def _fits(fits: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    rows = [
        [f"`{m}`", f"{it['median_seconds']:.2f}", f"{it['all_series_seconds']:.0f}", _ratio(it["peer_ratio"])]
        for m, it in fits.items()
    ]
    return _markdown(["", "median, s", "all series, s", f"{SLOW_PEER} / it, median over series"], rows)


def _readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _spread(it: figures.Spread, digits: int) -> str:
    if it["mean"] is None:
        return "-"
    return f"{it['mean']:.{digits}f}" + ("" if it["spread"] is None else f" ± {it['spread']:.{digits}f}")


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, nothing without rows."""
    rows = list(rows)
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
