"""Pruning: a child of each network at 2, 4 and 8 times its speed and at its floor, beside other ways to come to one.

For each kind, series, seed, batch and target: a cycle as the product runs it, judged on labels that it never saw; and
children of the same widths made otherwise: of random units, without repair, from scratch with as many updates and to
the end, by Torch-Pruning, and with the masks of torch.nn.utils.prune. Each child is a cell in benchmarks/cells/pruning,
so that a run that is ended goes on later where it was. All of them take hours. The script can not be called `pruning`:
that is the name of the package it measures.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/pruning_grid.py --minutes 60
  PRUNEWATCH_DATA=~/data python benchmarks/pruning_grid.py --only lstm &
  PRUNEWATCH_DATA=~/data python benchmarks/pruning_grid.py --only autoencoder
  python benchmarks/pruning_grid.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and the benchmark says
so (--report needs the cells only). Several processes may fill cells at once if no two have a kind and a series in
common. Cells are made anew when the code that fits, prunes or judges has changed since; --keep-older takes them as
they are, and the table says so. --quick makes a few cells of one short series and keeps none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import harness
import pruning_report
import pruning_series
from detection_cells import Cell
from pruning_cells import append, cell_version, path_of, read
from pruning_set import OURS, Job, Setting, cells_of, methods_of, targets_of

CELLS = harness.ROOT / "benchmarks" / "cells" / "pruning"
TABLES = harness.ROOT / "benchmarks" / "cache" / "latency_tables"  # not committed: they hold for one machine
MAIN = ("lstm", "autoencoder")
OTHERS = ("gru", "conv_autoencoder", "lstm_autoencoder", "variational_autoencoder", "isolation_forest", "ensemble")
OF_WINDOWS = ("autoencoder", "conv_autoencoder", "lstm_autoencoder", "variational_autoencoder", "isolation_forest")
"""Those that gain at batch 1 too."""
SEEDS = (0, 1, 2)
BATCH = 256
KEYS = ("seed", "batch", "target", "method")
QUICK_SERIES = "nab/realKnownCause/nyc_taxi"
QUICK_CELLS = (("2x", OURS), ("2x", "random"), ("2x", "no_repair"))


def jobs() -> Iterator[Job]:
    """In the order of work: the first seed of all, main kinds first, series that cost less first."""
    for seed in SEEDS:
        for batch in (BATCH, 1):
            kinds = [kind for kind in MAIN if batch > 1 or kind in OF_WINDOWS]
            yield from (Job(kind, name, seed, batch) for name in pruning_series.NAMES for kind in kinds)
        if seed == SEEDS[0]:
            for batch in (BATCH, 1):
                kinds = [kind for kind in OTHERS if batch > 1 or kind in OF_WINDOWS]
                yield from (Job(kind, name, seed, batch) for name in pruning_series.PAIR for kind in kinds)


def wanted_of(job: Job) -> list[tuple[str, str]]:
    """Targets and methods of a set, ours first."""
    targets = targets_of(job.kind)
    return [(target, OURS) for target in targets] + [
        (target, method) for target in targets for method in methods_of(job, target) if method != OURS
    ]


def fill(
    work: Iterable[Job], folder: Path, *, deadline: float, keep_older: bool = False, tables: Path = TABLES
) -> list[str]:
    """Makes the cells that are missing, until the deadline; returns what failed.

    Args:
        work: Sets, in order.
        folder: Of the cells.
        deadline: Of `time.monotonic`; a cell that has begun is ended.
        keep_older: Whether cells of other versions of the code count as there.
        tables: Folder of latency tables.
    """
    series = pruning_series.read(pruning_series.NAMES)
    failed = []
    for job in work:
        path, version = path_of(folder, job.kind, job.series), cell_version(job.kind)
        have = {key: cell for key, cell in read(path, *KEYS).items() if keep_older or cell["version"] == version}
        missing = missing_of(job, have)
        if not missing:
            continue
        harness.say(f"{' '.join(map(str, job))}: {len(missing)} cells")
        try:
            setting = Setting.of(job, series[job.series], tables)
            for cell in cells_of(setting, missing, ours_of(job, have)):
                append(path, cell | {"version": version})
                harness.say(said(cell))
                if time.monotonic() > deadline:
                    return failed
        except Exception as error:  # noqa: BLE001  (one set that fails does not end hours of others; exit code 1)
            harness.say(f"FAILED {' '.join(map(str, job))}: {type(error).__name__}: {error}")
            failed.append(" ".join(map(str, job)))
    return failed


def missing_of(job: Job, have: dict[tuple[object, ...], Cell]) -> list[tuple[str, str]]:
    """Targets and methods of a set that have no cell; none to be made of a target that ours could not build."""
    ours = ours_of(job, have)
    return [
        (target, method)
        for target, method in wanted_of(job)
        if (job.seed, job.batch, target, method) not in have
        and (method == OURS or target not in ours or ours[target]["built"])
    ]


def ours_of(job: Job, have: dict[tuple[object, ...], Cell]) -> dict[str, Cell]:
    """Cells of cycles by target."""
    return {str(key[2]): cell for key, cell in have.items() if key[:2] == (job.seed, job.batch) and key[3] == OURS}


def said(cell: Cell) -> str:
    """A cell on one line."""
    head = f"  {cell['target']} {cell['method']}: {cell['outcome']}"
    if not cell["built"]:
        return f"{head} ({cell['reason']})"
    return (
        f"{head}, {cell['dense_p50'] / cell['p50']:.1f}x, error {cell['checks']['error']:.2f}, "
        f"AP {cell['ap'] - cell['parent_ap']:+.3f}, VUS-PR {cell['vus_pr'] - cell['parent_vus_pr']:+.3f}, "
        f"{cell['cpu_seconds']:.0f} s"
    )


def quick(folder: Path) -> None:
    """A few cells of one short series, in a folder of their own."""
    job = Job("autoencoder", QUICK_SERIES, SEEDS[0], BATCH)
    setting = Setting.of(job, pruning_series.read((QUICK_SERIES,))[QUICK_SERIES], folder / "tables")
    for cell in cells_of(setting, QUICK_CELLS, {}):
        append(path_of(folder, job.kind, job.series), cell | {"version": cell_version(job.kind)})
        harness.say(said(cell))


def main() -> int:
    """Runs as a script; 1 when a set failed."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the cell of that minute")
    parser.add_argument("--only", metavar="A,B", type=lambda text: text.split(","), help="these kinds alone")
    parser.add_argument("--series", metavar="A,B", type=lambda text: text.split(","), help="these series alone")
    parser.add_argument("--seeds", metavar="0,1", type=_numbers, default=SEEDS, help="these alone (default: 0,1,2)")
    parser.add_argument("--keep-older", action="store_true", help="cells of earlier versions of the code count")
    parser.add_argument("--report", action="store_true", help="only write the tables, from the cells there are")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the cells are")
    args = parser.parse_args()
    if unknown := {*(args.only or ())} - {*MAIN, *OTHERS}:
        sys.exit(f"no kind {', '.join(sorted(unknown))}: choose from {', '.join((*MAIN, *OTHERS))}")
    try:
        if not args.quick:
            return _run(args, args.cells)
        with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
            _one_thread()
            quick(Path(folder))
            harness.publish("pruning", pruning_report.result(Path(folder)), args)
    except harness.Skip as reason:
        harness.skip("pruning", reason, args)
    return 0


def _run(args: argparse.Namespace, cells: Path) -> int:
    failed = []
    if not args.report:
        _one_thread()
        work = [
            job
            for job in jobs()
            if (not args.only or job.kind in args.only)
            and (not args.series or job.series in args.series)
            and job.seed in args.seeds
        ]
        deadline = time.monotonic() + 60 * args.minutes
        failed = fill(work, cells, deadline=deadline, keep_older=args.keep_older)
    harness.publish("pruning", pruning_report.result(cells), args)
    for what in failed:
        harness.say(f"failed: {what}")
    return 1 if failed else 0


def _one_thread() -> None:
    """So that processor time is comparable, and the machine is shared."""
    import torch

    torch.set_num_threads(1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
