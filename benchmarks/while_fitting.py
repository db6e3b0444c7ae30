"""Pruning while fitting beside fitting and then pruning: time and quality at the same speed-up.

Two series of asd, one of ucr and one of nab, `lstm` and `autoencoder` with their defaults, four times as fast at 256
points a step, latency tables cached on both sides. *Fit, then prune* is a fit and a cycle with fine-tuning against the
dense parent; *while fitting* is `fit --prune-while-fitting`. Time is processor time of one thread. Quality is the error
on the held-out quarter of the training part over the dense parent's, and average precision on the labelled test part
beside the dense parent's.

Example:
  PRUNEWATCH_DATA=~/data python benchmarks/while_fitting.py --json while_fitting.json

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and it says so.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from detection_series import Series, labelled_series

from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.cycle import CycleOptions, run_cycle, split
from pruning.gate import trimmed_error
from pruning.gradual import fit_while_pruning
from pruning.latency import measure
from pruning.outcome import Budget
from pruning.table import FolderTables

SERIES = (
    "asd/omi-4",
    "asd/omi-9",
    "ucr/116_UCR_Anomaly_CIMIS44AirTemperature4_4000_5549_5597",
    "nab/realKnownCause/machine_temperature_system_failure",
)
KINDS = ("lstm", "autoencoder")
SPEEDUP = 4.0
SEED = 0
LEAD = 300  # training rows before the test part, so that the first of it have scores


def compared(kind: str, series: Series, folder: Path, updates: int | None) -> dict[str, Any]:
    """Both ways on one series."""
    data = Stretches.of([series.train.astype(np.float32)])
    budget, tables = Budget(speedup=SPEEDUP), FolderTables(folder)
    how = FitOptions(updates=updates)

    began = time.process_time()
    parent = fit(kind, data, series.features, seed=SEED, how=how)
    fit_seconds = time.process_time() - began
    dry = CycleOptions(seed=SEED, tables=tables, dry_run=True)
    run_cycle(parent, data, budget, parent_version=1, version=2, options=dry)  # measures the table

    began = time.process_time()
    options = CycleOptions(seed=SEED, tables=tables, updates=updates or CycleOptions().updates)
    candidate = run_cycle(parent, data, budget, parent_version=1, version=2, options=options)
    cycle_seconds = time.process_time() - began

    began = time.process_time()
    gradual = fit_while_pruning(kind, data, series.features, budget, seed=SEED, how=how, tables=tables)
    gradual_seconds = time.process_time() - began

    training, held_out = split(parent, data)
    parent = parent.recalibrated(held_out, training)
    dense_error, dense_precision = trimmed_error(parent, held_out), precision(parent, series)
    row: dict[str, Any] = {"kind": kind, "series": series.name, "seconds_fit": fit_seconds}
    made = {"then": (candidate.child, fit_seconds + cycle_seconds), "while": (gradual.fitted, gradual_seconds)}
    for way, (child, seconds) in made.items():
        if child is None:
            row[way] = None
            continue
        dense, narrow = measure([step_graph(parent), step_graph(child)], budget.batch)
        row[way] = {
            "seconds": seconds,
            "speedup": dense.p50_seconds / narrow.p50_seconds,
            "error_ratio": trimmed_error(child, held_out) / max(dense_error, 1e-12),
            "average_precision_change": precision(child, series) - dense_precision,
            "adopted": way == "while" or candidate.outcome.outcome == "adopted",
        }
    return row


def precision(detector: Fitted, series: Series) -> float:
    """Average precision on the test part, warmed up with the last training rows."""
    from sklearn.metrics import average_precision_score

    rows = np.concatenate([series.train[-LEAD:], series.test]).astype(np.float32)
    scores = detector.trace(rows[None]).score[0][-len(series.test) :]
    scored = np.isfinite(scores)
    return float(average_precision_score(series.labels[scored], scores[scored]))


def run(*, quick: bool) -> harness.Result:
    """All series and networks.

    Raises:
        harness.Skip: there are no data.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    wanted = SERIES[2:3] if quick else SERIES
    rows = []
    with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
        for series in (series for read in labelled_series() if (series := read()).name in wanted):
            for kind in KINDS[1:] if quick else KINDS:
                harness.say(f"{kind} on {series.name}")
                rows.append(compared(kind, series, Path(folder), 60 if quick else None))
    return _result(rows)


def _result(rows: list[dict[str, Any]]) -> harness.Result:
    lines = [
        "| network | series | seconds: fit, then prune | while fitting | ratio | speed-up | error ratio | AP change |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    both = [row for row in rows if row["then"] and row["while"]]
    for row in rows:
        then, now = row["then"], row["while"]
        if row not in both:
            lines.append(f"| `{row['kind']}` | {row['series']} | beyond the floor | | | | | |")
            continue
        pairs = [
            f"{then['seconds']:.1f} | {now['seconds']:.1f} | {now['seconds'] / then['seconds']:.2f}",
            f"{then['speedup']:.1f} / {now['speedup']:.1f}",
            f"{then['error_ratio']:.2f} / {now['error_ratio']:.2f}",
            f"{then['average_precision_change']:+.3f} / {now['average_precision_change']:+.3f}",
        ]
        lines.append(f"| `{row['kind']}` | {row['series']} | {' | '.join(pairs)} |")
    ratios = {"seconds": float(np.mean([row["while"]["seconds"] / row["then"]["seconds"] for row in both]))}
    for key in ("error_ratio", "average_precision_change"):
        ratios |= {f"{key}_{way}": float(np.mean([row[way][key] for row in both])) for way in ("then", "while")}
    lines.append(
        f"| mean | | | | {ratios['seconds']:.2f} | | {ratios['error_ratio_then']:.2f} / "
        f"{ratios['error_ratio_while']:.2f} | {ratios['average_precision_change_then']:+.3f} / "
        f"{ratios['average_precision_change_while']:+.3f} |"
    )
    return harness.Result({"rows": rows}, ratios, "\n".join(lines))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    try:
        harness.publish("while_fitting", run(quick=args.quick), args)
    except harness.Skip as reason:
        harness.skip("while_fitting", reason, args)


if __name__ == "__main__":
    main()
