"""A detector in the loop beside one that is left alone, on labelled series, through the real service code.

Each series is replayed as `prunewatch simulate` does: a fit to its training part, then the test part as a stream, with
a cycle (update the parent, prune to a quarter of its time, gate, adopt, probation) after every eighth of the rows.

  drifting   the seven series whose normal rows move away from the training part
  steady     smd and asd, which hardly drift: no harm may be done
  incidents  the anomalies of a series put between normal rows that are learned from, three times each, and once more
             later: are they still found?

Each cell is kept in benchmarks/cells/lifecycle, so that a run that is ended goes on later where it was; the tables are
made from the cells. All cells take more than an hour of two cores.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/lifecycle.py --minutes 30
  PRUNEWATCH_DATA=~/data python benchmarks/lifecycle.py --only drifting --series skab/other/14
  python benchmarks/lifecycle.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and the benchmark says
so (--report needs the cells only). Cells are made anew when the code behind them has changed since. --quick replays one
short series with two cycles and keeps no cells.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
import lifecycle_report
import lifecycle_runs
from detection_series import Series, labelled_series
from pruning_cells import append, path_of, read

CELLS = harness.ROOT / "benchmarks" / "cells" / "lifecycle"
QUICK = ("drifting", "skab/other/14")
QUICK_CYCLES = 2
SEED = 0


def fill(folder: Path, wanted: Sequence[tuple[str, str]], minutes: float | None, cycles: int) -> list[str]:
    """Makes the cells that are missing; returns what failed.

    Args:
        folder: Of the cells.
        wanted: Parts and series.
        minutes: No cell begins after so long; None: all do.
        cycles: Over a stream.
    """
    version, failed, began = lifecycle_runs.loop_version(), [], time.monotonic()
    missing = [it for it in wanted if (version,) not in read(path_of(folder, *it), "version")]
    every = dict(_series({name for _, name in missing}))
    for turn, (part, name) in enumerate(missing):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            harness.say(f"{len(missing) - turn} cells are left for the next run")
            break
        harness.say(f"{part}, {turn + 1} of {len(missing)}: {name}")
        try:
            found = lifecycle_runs.run(part, every[name], seed=SEED, cycles=cycles)
        except Exception as error:  # noqa: BLE001  (one that fails does not end hours of others; exit code 1)
            harness.say(f"FAILED {part}, {name}: {type(error).__name__}: {error}")
            failed.append(f"{part} on {name}")
            continue
        append(path_of(folder, part, name), {"part": part, "series": name, "version": version, **found})
    return failed


def _series(names: set[str]) -> Iterator[tuple[str, Series]]:
    return ((it.name, it) for it in (read_one() for read_one in labelled_series()) if it.name in names)


def main() -> int:
    """Runs as a script; 1 when a cell failed."""
    parser = harness.parser(__doc__ or "")
    choices = list(lifecycle_runs.parts())
    parser.add_argument("--only", metavar="PART", choices=choices, nargs="+", default=choices, help=", ".join(choices))
    parser.add_argument("--series", metavar="NAME", nargs="+", help="these alone")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no cell after so long")
    parser.add_argument("--report", action="store_true", help="only write the tables, from the cells there are")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the cells are")
    args = parser.parse_args()
    try:
        if args.quick:
            with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
                return _run(args, Path(folder), [QUICK], QUICK_CYCLES)
        wanted = [(part, name) for part in args.only for name in lifecycle_runs.parts()[part]]
        chosen = [it for it in wanted if not args.series or it[1] in args.series]
        return _run(args, args.cells, chosen, lifecycle_runs.CYCLES)
    except harness.Skip as reason:
        harness.skip("lifecycle", reason, args)
        return 0


def _run(args: argparse.Namespace, folder: Path, wanted: Sequence[tuple[str, str]], cycles: int) -> int:
    failed = [] if args.report else fill(folder, wanted, args.minutes, cycles)
    harness.publish("lifecycle", lifecycle_report.result(folder, lifecycle_runs.loop_version()), args)
    for what in failed:
        harness.say(f"failed: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
