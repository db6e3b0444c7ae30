"""Are the features that contribute most the ones an anomaly is in? Against experts, before and after pruning.

The servers of smd and asd come with the features that experts named as causes of each anomaly. For each kind of
detector, server and seed: fit to the training part, score the test part through the service's scorer, prune to a
quarter of the time, score again. The features of an anomaly are ranked by their mean contribution over its rows.
Each such cell is kept in benchmarks/cells/explain, so that a run that is ended goes on later where it was.

Examples:
  PRUNEWATCH_DATA=~/data python benchmarks/explain.py
  PRUNEWATCH_DATA=~/data python benchmarks/explain.py --kinds lstm --seeds 0 --json explain.json
  python benchmarks/explain.py --report

PRUNEWATCH_DATA names a folder of labelled series with an index.csv and the interpretation files beside the series;
without it nothing is run, and the benchmark says so (--report needs the cells only). Cells are made anew when the code
that fits or prunes has changed since. --quick takes one kind, server and seed, and keeps no cells.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import explain_report
import harness
import numpy as np
from detection_cells import Cell, Cells
from detection_ours import THRESHOLD, WARM_ROWS, code_version
from detection_series import Stopwatch
from explain_figures import Explained, measured, read_interpretation, shared
from numpy.typing import NDArray

if TYPE_CHECKING:
    from detectors.training.fitted import Fitted

CELLS = harness.ROOT / "benchmarks" / "cells" / "explain"
KINDS = ("ensemble", "lstm", "autoencoder")
CLOSED = {"smd/machine-2-1": False, "asd/omi-4": True, "asd/omi-9": True}
"""Servers, and whether the ends in their interpretation files are still part of the anomaly."""
SEEDS = (0, 1, 2)
SPEEDUP = 4
QUICK_KIND, QUICK_SERVER = "lstm", "asd/omi-4"
DIGITS = 4


@dataclass(frozen=True)
class Server:
    """A labelled series with causes.

    Attributes:
        name: `<set>/<name>` of the index.
        features: F names.
        train: [N, F].
        test: [T, F].
        anomalies: Of the test part.
    """

    name: str
    features: tuple[str, ...]
    train: NDArray[np.float32]
    test: NDArray[np.float32]
    anomalies: list[Explained]


def read_server(name: str) -> Server:
    """One of `CLOSED`.

    Raises:
        harness.Skip: the data are not here.
    """
    import pandas as pd

    path, train_rows = harness.labelled_series(name)
    causes = path.with_name(path.name.removesuffix(".csv.gz") + "_interpretation.txt")
    if not causes.is_file():
        raise harness.Skip(f"{causes.name} is not beside {name}")
    values = pd.read_csv(path).iloc[:, 1:-1]
    rows = values.to_numpy(np.float32)
    anomalies = read_interpretation(causes, values.shape[1], closed=CLOSED[name])
    return Server(name, tuple(values.columns), rows[:train_rows], rows[train_rows:], anomalies)


def fill(kinds: Sequence[str], servers: Sequence[Server], seeds: Sequence[int], folder: Path) -> None:
    """Makes the cells that are missing, seed by seed."""
    for seed in seeds:
        for kind in kinds:
            kept, version = Cells(folder / f"{kind}.jsonl"), cell_version(kind)
            have = kept.of(version)
            for server in servers:
                if (server.name, seed) not in have:
                    harness.say(f"{kind}, seed {seed}: {server.name}")
                    kept.append({"series": server.name, "seed": seed, "version": version, **cell(kind, server, seed)})


def cell(kind: str, server: Server, seed: int) -> Cell:
    """Fits, explains, prunes, explains again."""
    from detectors.training.fit import fit
    from detectors.training.stretches import Stretches
    from pruning.cycle import prune

    watch = Stopwatch()
    dense = fit(kind, Stretches.of([server.train]), server.features, seed=seed)
    fit_seconds = watch.lap()
    candidate = prune(dense, server.train, speedup=SPEEDUP, seed=seed)
    prune_seconds, child = watch.lap(), candidate.child
    before = contributions(dense, server)
    after = None if child is None else contributions(child, server)
    times = [side.p50_seconds if side else None for side in (candidate.outcome.parent, candidate.outcome.child)]
    return {
        "features": len(server.features),
        "causes": [int(it.causes.sum()) for it in server.anomalies],
        "dense": explained(server, before),
        "pruned": None if after is None else explained(server, after),
        "same_top_3": None if after is None else same_top(server, before, after),
        "outcome": candidate.outcome.outcome,
        "reason": candidate.outcome.reason,
        "speedup": round(times[0] / times[1], 2) if child is not None and times[0] and times[1] else None,
        "fit_seconds": round(fit_seconds, 2),
        "prune_seconds": round(prune_seconds, 2),
    }


@dataclass(frozen=True)
class Contributions:
    """What a detector makes of the test part.

    Attributes:
        score: [T]; NaN where there is none.
        contribution: [T, F].
    """

    score: NDArray[np.float32]
    contribution: NDArray[np.float32]

    def over(self, rows: slice, *, flagged: bool = False) -> NDArray[np.float64] | None:
        """[F] means over the scored (or the flagged) rows of an anomaly; None where there are none."""
        score = self.score[rows]
        taken = score >= THRESHOLD if flagged else np.isfinite(score)
        return self.contribution[rows][taken].mean(axis=0, dtype=np.float64) if taken.any() else None


def contributions(fitted: Fitted, server: Server) -> Contributions:
    """Scores the test part point after point through the scorer of the service, warmed up with training rows."""
    from detectors.bundle import Lineage
    from detectors.scorer import Scorer, score_alone
    from detectors.served import Served
    from detectors.training.export import to_bundle

    lineage = Lineage(cause="fit", seed=0, data_rows=len(server.train))
    bundle = to_bundle(fitted, detector="server", version=1, device_class="hub", lineage=lineage)
    scorer = Scorer(Served.load(bundle))
    warm = server.train[-(bundle.manifest.warm_up_points + WARM_ROWS) :]
    for _ in score_alone(scorer, "server", np.arange(len(warm)), warm):
        pass
    stamps = np.arange(len(warm), len(warm) + len(server.test))
    parts = list(score_alone(scorer, "server", stamps, server.test))
    return Contributions(
        np.concatenate([part.score for part in parts]), np.concatenate([part.contribution for part in parts])
    )


def explained(server: Server, found: Contributions) -> dict[str, list[dict[str, float] | None]]:
    """For each anomaly the measures over its scored rows, and over its flagged rows (None where there are none)."""
    out: dict[str, list[dict[str, float] | None]] = {"all": [], "flagged": []}
    for rows, measures in out.items():
        for it in server.anomalies:
            means = found.over(it.rows, flagged=rows == "flagged")
            measures.append(
                None if means is None else {key: round(v, DIGITS) for key, v in measured(means, it.causes).items()}
            )
    return out


def same_top(server: Server, before: Contributions, after: Contributions) -> list[float | None]:
    """For each anomaly, how many of the three features named first are the same after pruning."""
    pairs = [(before.over(it.rows), after.over(it.rows)) for it in server.anomalies]
    return [None if one is None or other is None else round(shared(one, other), DIGITS) for one, other in pairs]


def cell_version(kind: str) -> str:
    """A hash of the code that fits, exports and prunes a kind; comments do not count."""
    sources = sorted((harness.ROOT / "pruning").glob("*.py"))
    code = [ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) for path in sources]
    return hashlib.sha256("\n".join([code_version(kind), *code]).encode()).hexdigest()[:12]


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--kinds", metavar="A,B", type=lambda text: text.split(","), default=KINDS, help="these alone")
    parser.add_argument("--seeds", metavar="0,1", type=_numbers, default=SEEDS, help="these alone (default: 0,1,2)")
    parser.add_argument("--report", action="store_true", help="only write the tables, from the cells there are")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the cells are")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        sys.exit(f"no kind {', '.join(sorted(unknown))}: choose from {', '.join(KINDS)}")
    try:
        if args.quick:
            with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
                _run(args, Path(folder), [QUICK_KIND], [QUICK_SERVER], SEEDS[:1])
        else:
            _run(args, args.cells, args.kinds, list(CLOSED), args.seeds)
    except harness.Skip as reason:
        harness.skip("explain", reason, args)


def _run(args: Any, cells: Path, kinds: Sequence[str], names: Sequence[str], seeds: Sequence[int]) -> None:
    if not args.report:
        import torch

        servers = [read_server(name) for name in names]
        torch.set_num_threads(1)  # so that processor time is comparable, and the machine is shared
        fill(kinds, servers, seeds, cells)
    versions = {kind: cell_version(kind) for kind in KINDS}
    harness.publish("explain", explain_report.result(cells, versions, names), args)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    main()
