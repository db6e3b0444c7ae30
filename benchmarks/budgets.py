"""Are budgets kept? Of a hundred drawn along a frontier, how many the picked child keeps when it is measured again.

For each kind of network one parent is fitted and its frontier is built; budgets of p50 are drawn between the narrowest
child and the parent. The child that a budget picks (or, where none of the frontier fits now, the widths that a cycle
would search for, as on a hub) is measured once more, by itself. Budgets below the floor of
every structure have to be refused with what is missed and what can be reached.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/budgets.py
  PRUNEWATCH_DATA=~/data python benchmarks/budgets.py --only lstm
  python benchmarks/budgets.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and the benchmark says
so. Only times are asked for, which do not depend on weights, so children are fine-tuned for a few updates only. Kinds
that have been measured by the code as it is are kept in benchmarks/cells/budgets. --quick takes one kind and a few
budgets, and keeps nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
import pruning_series
from detection_series import Series
from pruning_cells import append, read_all, unmade
from pruning_report import markdown

if TYPE_CHECKING:
    from detectors.training.fitted import Fitted
    from detectors.training.stretches import Stretches
    from pruning.outcome import Budget
    from pruning.table import FolderTables

CELLS = harness.ROOT / "benchmarks" / "cells" / "budgets"
TABLES = harness.ROOT / "benchmarks" / "cache" / "latency_tables"  # not committed: they hold for one machine
KINDS = ("lstm", "autoencoder")
SERIES, QUICK_SERIES = "asd/omi-9", "nab/realKnownCause/nyc_taxi"
BATCH = 256
FEASIBLE, INFEASIBLE, POINTS = 100, 20, 16
QUICK = (8, 1, 4)
ABOVE_FLOOR = 1.2
"""Of the narrowest child's time: where budgets begin that can be met (the search aims at nine tenths of one)."""
BELOW_FLOOR = (0.2, 0.7)
"""Of the floor's time: budgets that can not be met."""
UPDATES = 10
ROUNDS = 21
WANTED = 0.95
SEED = 0


def measured(kind: str, series: Series, feasible: int, infeasible: int, points: int) -> dict[str, Any]:
    """Draws budgets, picks, measures again.

    Returns:
        For each feasible budget the limit, whether the frontier had a child for it, and p50 and p99 measured again
        (None: it was refused); for each infeasible one whether it was refused, and why.
    """
    from detectors.training.fit import fit
    from detectors.training.stretches import Stretches
    from pruning.cycle import split
    from pruning.frontier import FrontierOptions, build_frontier
    from pruning.latency import measure
    from pruning.outcome import Budget
    from pruning.table import FolderTables

    rows = Stretches.of([series.train])
    fitted = fit(kind, rows, series.features, seed=SEED)
    training, held_out = split(fitted, rows)
    dense = fitted.recalibrated(held_out, training)
    tables = FolderTables(TABLES)
    options = FrontierOptions(updates=UPDATES, tables=tables)
    frontier = build_frontier(fitted, rows, batch=BATCH, points=points, options=options)
    low = min(point.p50_seconds for point in frontier.facts.points) * ABOVE_FLOOR
    high = frontier.facts.parent.p50_seconds
    rng = np.random.default_rng(SEED)
    met = []
    for limit in np.exp(rng.uniform(np.log(low), np.log(high), feasible)):
        budget = Budget(p50_seconds=float(limit), batch=BATCH)
        picked = frontier.pick(dense, budget, training, held_out)
        graph = picked.graph if picked else searched(fitted, rows, budget, tables)
        again = measure([graph], BATCH, rounds=ROUNDS)[0] if graph else None
        met.append(
            {
                "limit": float(limit),
                "picked": picked is not None,
                "p50": again.p50_seconds if again else None,
                "p99": again.p99_seconds if again else None,
            }
        )
        harness.say(f"{kind}: {met[-1]}")
    return {"met": met, "refused": refused(fitted, rows, infeasible, rng)}


def searched(fitted: Fitted, rows: Stretches, budget: Budget, tables: FolderTables) -> bytes | None:
    """The graph of the widths that a cycle would prune to, untrained; None where it refuses the budget."""
    from detectors.training.export import step_graph
    from pruning.cycle import CycleOptions, run_cycle
    from pruning.structures import restructured

    options = CycleOptions(seed=SEED, dry_run=True, tables=tables)
    plan = run_cycle(fitted, rows, budget, parent_version=1, version=2, options=options).plan
    if plan is None:
        return None
    return step_graph(fitted.with_network(restructured(fitted.network, plan.structure).resized(plan.units)))


def refused(fitted: Fitted, rows: Stretches, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What a dry run of a cycle says of budgets below the floor of every structure."""
    from pruning.cycle import CycleOptions, run_cycle
    from pruning.outcome import Budget

    def asked(seconds: float) -> Any:
        budget = Budget(p50_seconds=seconds, batch=BATCH)
        options = CycleOptions(seed=SEED, dry_run=True)
        return run_cycle(fitted, rows, budget, parent_version=1, version=2, options=options).outcome

    floor = asked(1e-9).best_reachable.p50_seconds
    found = []
    for share in rng.uniform(*BELOW_FLOOR, count):
        outcome = asked(float(floor * share))
        named = outcome.best_reachable is not None and "below the floor" in outcome.reason
        found.append({"refused": outcome.outcome == "rejected" and named, "reason": outcome.reason})
        harness.say(outcome.reason)
    return found


def fill(kinds: Iterable[str], series: Series, folder: Path, counts: tuple[int, int, int]) -> None:
    """Measures the kinds that have not been."""
    for path, begun in unmade(folder, kinds, [series.name]):
        append(path, begun | measured(begun["kind"], series, *counts))


def result(folder: Path) -> harness.Result:
    """How many budgets are kept, by how much, and how many are refused.

    Raises:
        harness.Skip: nothing has been measured.
    """
    cells = list(read_all(folder, "kind"))
    if not cells:
        raise harness.Skip("nothing has been measured yet")
    figures, ratios, rows = {}, {}, []
    for cell in cells:
        met, no = cell["met"], cell["refused"]
        again = [it for it in met if it["p50"] is not None]
        used = np.array([it["p50"] / it["limit"] for it in again])
        tails = np.array([it["p99"] / it["limit"] for it in again])
        kept, tails_kept = int((used <= 1).sum()), int((tails <= 1).sum())
        correct = sum(it["refused"] for it in no)
        figures[cell["kind"]] = {
            "budgets": len(met),
            "kept": kept,
            "p99_kept": tails_kept,
            "refused_feasible": len(met) - len(again),
            "from_frontier": sum(it["picked"] for it in met),
            "used_median": float(np.median(used)),
            "used_most": float(used.max()),
            "infeasible": len(no),
            "refused": correct,
        }
        ratios[f"{cell['kind']}_kept"] = kept / len(met)
        rows.append(
            [
                f"`{cell['kind']}`",
                f"{kept} of {len(met)}: {harness.verdict(kept >= WANTED * len(met))}",
                f"{np.median(used):.2f} ({used.max():.2f})",
                f"{tails_kept} of {len(met)}",
                str(sum(it["picked"] for it in met)),
                str(len(met) - len(again)),
                f"{correct} of {len(no)}: {harness.verdict(correct == len(no))}",
            ]
        )
    heads = [
        "",
        "p50 kept",
        "p50 / budget, median (most)",
        "p99 within it too",
        "from the frontier",
        "refused",
        "infeasible refused",
    ]
    return harness.Result(figures, ratios, "\n".join(markdown(heads, rows)))


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--only", metavar="A,B", type=lambda text: text.split(","), default=KINDS, help="these kinds")
    parser.add_argument("--report", action="store_true", help="only write the table, from the cells there are")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the cells are")
    args = parser.parse_args()
    if unknown := set(args.only) - set(KINDS):
        sys.exit(f"no kind {', '.join(sorted(unknown))}: choose from {', '.join(KINDS)}")
    try:
        if args.quick:
            with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
                _run(args, KINDS[1:], QUICK_SERIES, Path(folder), QUICK)
        else:
            _run(args, args.only, SERIES, args.cells, (FEASIBLE, INFEASIBLE, POINTS))
    except harness.Skip as reason:
        harness.skip("budgets", reason, args)


def _run(args: argparse.Namespace, kinds: Iterable[str], name: str, cells: Path, counts: tuple[int, int, int]) -> None:
    if not args.report:
        import torch

        torch.set_num_threads(1)
        fill(kinds, pruning_series.read((name,))[name], cells, counts)
    harness.publish("budgets", result(cells), args)


if __name__ == "__main__":
    main()
