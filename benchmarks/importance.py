"""Do importance criteria know which hidden units matter? Each against the single-unit ablation oracle.

For each kind, series and seed a parent is fitted. The oracle masks one unit at a time and measures how much the loss on
held-out normal points rises; a criterion sees training points only. Their agreement is Spearman's rank correlation over
all units of a group. Each kind and series is a cell in benchmarks/cells/importance.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/importance.py
  PRUNEWATCH_DATA=~/data python benchmarks/importance.py --only lstm
  python benchmarks/importance.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and the benchmark says
so (--report needs the cells only). --quick takes one kind and one short series, and keeps no cells.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
import pruning_series
from detection_series import Series
from pruning_cells import append, cell_version, read_all, unmade
from pruning_report import markdown

if TYPE_CHECKING:
    from detectors.training.networks import Group, Network
    from detectors.training.stretches import Chunk

CELLS = harness.ROOT / "benchmarks" / "cells" / "importance"
KINDS = ("lstm", "autoencoder", "gru", "conv_autoencoder")
CRITERIA = ("random", "l1", "l2", "activation", "taylor", "fisher", "reconstruction")
NAMES = (
    "nab/realKnownCause/nyc_taxi",
    "cloud/mongodb-machine-rps/machine-01",
    "asd/omi-9",
    "smd/machine-2-1",
)
SEED = 0
JUDGED = 4
"""Chunks of held-out points that the oracle looks at."""
QUICK_KIND, QUICK_SERIES = "autoencoder", "nab/realKnownCause/nyc_taxi"


def agreement(kind: str, series: Series) -> dict[str, dict[str, float]]:
    """Spearman's correlation of each criterion with the oracle, by criterion and group."""
    from scipy.stats import spearmanr

    from detectors.training.fit import chunks_over, fit
    from detectors.training.stretches import Stretches
    from pruning.cycle import split
    from pruning.groups import prunable
    from pruning.importance import Evidence, importance

    rows = Stretches.of([series.train])
    fitted = fit(kind, rows, series.features, seed=SEED)
    training, held_out = split(fitted, rows)
    network = fitted.network
    judged = list(chunks_over(held_out, fitted.scaler, network, SEED + 1).chunks(JUDGED))
    rises = {group.name: ablations(network, group, judged) for group in prunable(network)}
    found: dict[str, dict[str, float]] = {}
    for criterion in CRITERIA:
        chunks = chunks_over(training, fitted.scaler, network, SEED)
        scores = importance(criterion, Evidence(network, chunks, SEED))
        found[criterion] = {
            name: round(float(spearmanr(scores[name].numpy(), rise).statistic), 4) for name, rise in rises.items()
        }
    return found


def ablations(network: Network, group: Group, judged: list[Chunk]) -> list[float]:
    """For each unit of a group, the loss on held-out points when nothing reads it."""
    import torch

    from detectors.training.fit import held_out_loss
    from pruning.surgery import masked

    losses = []
    for unit in range(group.width):
        keep = torch.tensor([it for it in range(group.width) if it != unit])
        losses.append(held_out_loss(masked(network, {group.name: keep}), judged))
    return losses


def fill(kinds: Iterable[str], series: Mapping[str, Series], folder: Path) -> None:
    """Makes the cells that are missing."""
    for path, begun in unmade(folder, kinds, series):
        harness.say(f"{begun['kind']}, {begun['series']}")
        append(path, begun | {"agreement": agreement(begun["kind"], series[begun["series"]])})


def result(folder: Path) -> harness.Result:
    """Means and ranges over groups and series.

    Raises:
        harness.Skip: there are no cells.
    """
    cells = list(read_all(folder, "kind"))
    if not cells:
        raise harness.Skip("there are no cells yet")
    figures: dict[str, Any] = {}
    rows = []
    for kind in [it for it in KINDS if any(cell["kind"] == it for cell in cells)]:
        own = [cell["agreement"] for cell in cells if cell["kind"] == kind]
        for criterion in CRITERIA:
            values = np.array([value for cell in own for value in cell[criterion].values()])
            values = values[np.isfinite(values)]
            low, mean, high = float(values.min()), float(values.mean()), float(values.max())
            figures[f"{kind} {criterion}"] = {"mean": mean, "low": low, "high": high, "groups": len(values)}
            rows.append([f"`{kind}`", criterion, f"{mean:.2f}", f"{low:.2f} to {high:.2f}", str(len(values))])
    versions = {cell["kind"]: cell_version(cell["kind"]) for cell in cells}
    older = sorted({cell["kind"] for cell in cells if cell["version"] != versions[cell["kind"]]})
    notes = ["", f"Made by an earlier version of the code: {', '.join(older)}."] if older else []
    table = markdown(["", "criterion", "mean", "range", "groups x series"], rows)
    return harness.Result(figures, {}, "\n".join([*table, *notes]))


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
                _run(args, [QUICK_KIND], (QUICK_SERIES,), Path(folder))
        else:
            _run(args, args.only, NAMES, args.cells)
    except harness.Skip as reason:
        harness.skip("importance", reason, args)


def _run(args: argparse.Namespace, kinds: Iterable[str], names: tuple[str, ...], cells: Path) -> None:
    if not args.report:
        import torch

        torch.set_num_threads(1)
        fill(kinds, pruning_series.read(names), cells)
    harness.publish("importance", result(cells), args)


if __name__ == "__main__":
    main()
