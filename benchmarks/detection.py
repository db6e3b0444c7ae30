"""Detection quality on labelled series: prunewatch against detectors of PyOD, everything with its defaults.

For each method, series and seed: fit to the training part without its labels, score the test part, measure. Each
such cell is kept in benchmarks/cells/detection, so that a run that is ended goes on later where it was; the tables are
made from the cells. All cells take hours; with all of them there, this only writes the tables.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/detection.py
  PRUNEWATCH_DATA=~/data python benchmarks/detection.py --methods lstm,LSTMAD --seeds 0
  PRUNEWATCH_DATA=~/data python benchmarks/detection.py --fresh lstm
  python benchmarks/detection.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and the benchmark says
so (--report needs the cells only). Cells are made anew when the code that fits their method has changed since, or PyOD.
--quick runs the quick methods on two short series with one seed and keeps no cells. Do not use --fresh or --remeasure
on a method that another process is working on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import detection_report
import harness
import numpy as np
from detection_cells import Cell, Cells
from detection_measures import dominant_period, measured
from detection_ours import ours
from detection_peers import PEERS
from detection_series import Detection, Series, labelled_series

CELLS = harness.ROOT / "benchmarks" / "cells" / "detection"
SCORES = harness.ROOT / "benchmarks" / "cache" / "detection"  # not committed; --remeasure reads them
SEEDS = (0, 1, 2)
QUICK_SERIES = ("skab/valve1/0", "nab/realTraffic/TravelTime_451")
QUICK_METHODS = ("autoencoder", "isolation_forest", "AutoEncoder", "IForest", "PCA")
DIGITS = 6


class Method(Protocol):
    """Fits to the training part of a series with a seed, and scores its test part."""

    @property
    def version(self) -> str:
        """Changes when its scores may."""

    @property
    def seeded(self) -> bool:
        """Whether the seed matters; if not, one is enough."""

    def __call__(self, series: Series, seed: int) -> Detection:
        """What it makes of a series."""


def fill(
    methods: Mapping[str, Method], series: Iterable[Series], seeds: Iterable[int], cells: Path, scores: Path
) -> list[str]:
    """Makes the cells that are missing, seed by seed and method by method; returns what failed.

    Args:
        methods: By name.
        series: To fit and score.
        seeds: In this order; a method without randomness takes the first only.
        cells: Folder of the cells.
        scores: Folder for the scores behind them.
    """
    series, seeds, failed = list(series), list(seeds), []
    for seed in seeds:
        for name, method in methods.items():
            if seed != seeds[0] and not method.seeded:
                continue
            kept, version = Cells(cells / f"{name}.jsonl"), method.version
            have = kept.of(version)
            missing = [it for it in series if (it.name, seed) not in have]
            for i, it in enumerate(missing):
                harness.say(f"{name}, seed {seed}, {i + 1} of {len(missing)}: {it.name}")
                try:
                    found = method(it, seed)
                except Exception as error:  # noqa: BLE001  (one that fails does not end hours of others; exit code 1)
                    harness.say(f"FAILED {name}, seed {seed}, {it.name}: {type(error).__name__}: {error}")
                    failed.append(f"{name} on {it.name}, seed {seed}")
                    continue
                _keep_scores(_scores_path(scores, name, it.name, seed), found, version)
                cell = {"series": it.name, "seed": seed, "version": version, **_figures(it, found)}
                kept.append(cell)
    return failed


def remeasure(names: Iterable[str], series: Iterable[Series], cells: Path, scores: Path) -> None:
    """Measures the scores that were kept once more, after a change to the measures; the times stay."""
    by_name = {it.name: it for it in series}
    for name in names:
        kept, anew = Cells(cells / f"{name}.jsonl"), []
        for cell in kept.newest():
            anew.append(cell)
            path = _scores_path(scores, name, cell["series"], cell["seed"])
            if not path.exists() or cell["series"] not in by_name:
                harness.say(f"no scores of {name}, seed {cell['seed']}, {cell['series']}")
                continue
            with np.load(path, allow_pickle=False) as file:
                if str(file["version"]) != cell["version"]:
                    harness.say(f"other scores of {name}, seed {cell['seed']}, {cell['series']}")
                    continue
                found = Detection(file["scores"], file["flagged"], cell["fit_seconds"], cell["score_seconds"])
            anew[-1] = {**cell, **_figures(by_name[cell["series"]], found)}
        if anew:
            kept.replace(anew)


def _figures(series: Series, found: Detection) -> Cell:
    """What a cell says beside whose it is."""
    figures = measured(
        found.scores,
        series.labels,
        found.flagged,
        buffer=dominant_period(series.train[:, 0]),
        period_seconds=series.period_seconds,
    )
    figures |= {"train_rows": len(series.train), "fit_seconds": found.fit_seconds, "score_seconds": found.score_seconds}
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in figures.items()}


def _scores_path(folder: Path, method: str, series: str, seed: int) -> Path:
    return folder / method / f"{series.replace('/', '--')}-{seed}.npz"


def _keep_scores(path: Path, found: Detection, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, scores=found.scores, flagged=found.flagged, version=np.array(version))
    partial.replace(path)


def one_thread() -> None:
    """Lets numpy, scikit-learn and torch use one thread, so that processor time is comparable."""
    import sklearn.ensemble  # noqa: F401  (brings its pools of threads, so that they can be limited)
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def main() -> int:
    """Runs as a script; 1 when a method failed on a series."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--methods", metavar="A,B", type=lambda text: text.split(","), help="these alone")
    parser.add_argument("--seeds", metavar="0,1", type=_numbers, default=SEEDS, help="these alone (default: 0,1,2)")
    parser.add_argument("--report", action="store_true", help="only write the tables, from the cells there are")
    parser.add_argument("--fresh", metavar="METHOD", action="append", default=[], help="forget its cells first")
    parser.add_argument("--remeasure", action="store_true", help="measure kept scores once more; fits nothing")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the cells are")
    args = parser.parse_args()
    try:
        if args.quick:
            with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
                return _run(args, Path(folder), Path(folder) / "scores")
        return _run(args, args.cells, SCORES if args.cells == CELLS else args.cells / "scores")
    except harness.Skip as reason:
        harness.skip("detection", reason, args)
        return 0


def _run(args: argparse.Namespace, cells: Path, scores: Path) -> int:
    readers = [] if args.report else labelled_series()
    methods: dict[str, Method] = {**ours(), **PEERS}
    unknown = {*(args.methods or ()), *args.fresh} - methods.keys()
    if unknown:
        sys.exit(f"no method {', '.join(sorted(unknown))}: choose from {', '.join(methods)}")
    names = args.methods or ([it for it in QUICK_METHODS if it in methods] if args.quick else methods)
    chosen = {name: methods[name] for name in names}
    for name in args.fresh:
        Cells(cells / f"{name}.jsonl").drop()
    failed = []
    if not args.report:
        every = [read() for read in readers]
        one_thread()
        if args.remeasure:
            remeasure(chosen, every, cells, scores)
        else:
            series = [it for it in every if not args.quick or it.name in QUICK_SERIES]
            failed = fill(chosen, series, args.seeds[:1] if args.quick else args.seeds, cells, scores)
    versions = {name: method.version for name, method in methods.items()}
    harness.publish("detection", detection_report.result(cells, versions), args)
    for what in failed:
        harness.say(f"failed: {what}")
    return 1 if failed else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
