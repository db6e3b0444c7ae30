"""Fitting a second machine of the same kind: from random weights, and from what the first one has learned.

Both servers of the set asd (19 features), each as the first and as the second, three seeds, with the defaults of
`prunewatch fit`: an LSTM for the first machine, then one for the second from random weights and one from the first's
(`fit --from`). Time is processor time of one thread. Quality is the mean squared error on the held-out quarter
of the second machine's training part, which none is trained on, and average precision on its labelled test part.

Example:
  PRUNEWATCH_DATA=~/data python benchmarks/warm_start.py --json warm_start.json

PRUNEWATCH_DATA names a folder of labelled series with an index.csv; without it nothing is run, and it says so.
"""

from __future__ import annotations

import time
from typing import Any

import harness
import numpy as np
import torch
from numpy.typing import NDArray

from detectors.training.fit import HELD_OUT, FitOptions, fit
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.gate import trimmed_error

MACHINES = ("asd/omi-4", "asd/omi-9")
SEEDS = (0, 1, 2)
NETWORK = "lstm"


class Machine:
    """One server: rows to learn from, rows to judge on."""

    def __init__(self, name: str) -> None:
        import pandas as pd

        path, train_rows = harness.labelled_series(name)
        frame = pd.read_csv(path)
        rows = frame.iloc[:, 1:-1].to_numpy(np.float32)
        self.name, self.features = name, tuple(frame.columns[1:-1])
        self.train, self.test = Stretches.of([rows[:train_rows]]), rows[train_rows:]
        self.labels: NDArray[np.int64] = frame["label"].to_numpy()[train_rows:]


def fitted(machine: Machine, seed: int, start: Fitted | None, updates: int | None) -> tuple[Fitted, float]:
    """A detector and the processor seconds it took."""
    began = time.process_time()
    how = FitOptions(updates=updates)
    detector = fit(NETWORK, machine.train, machine.features, seed=seed, how=how, start=start)
    return detector, time.process_time() - began


def judged(detector: Fitted, machine: Machine) -> dict[str, float]:
    """Held-out error and average precision."""
    from sklearn.metrics import average_precision_score

    _, held_out = machine.train.split(HELD_OUT, context=detector.warm_up_points)
    scores = detector.scores(Stretches((machine.test,)))
    scored = np.isfinite(scores)
    precision = average_precision_score(machine.labels[scored], scores[scored])
    return {"error": trimmed_error(detector, held_out), "average_precision": float(precision)}


def run(*, quick: bool) -> harness.Result:
    """All pairs and seeds.

    Raises:
        harness.Skip: there are no data.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    machines = [Machine(name) for name in MACHINES]
    updates = 40 if quick else None
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        for first, second in (machines, machines[::-1]):
            harness.say(f"seed {seed}: {first.name} -> {second.name}")
            known, _ = fitted(first, seed, None, updates)
            fresh, fresh_seconds = fitted(second, seed, None, updates)
            warm, warm_seconds = fitted(second, seed, known, updates)
            rows.append(
                {
                    "seed": seed,
                    "first": first.name,
                    "second": second.name,
                    "fresh": {"seconds": fresh_seconds, **judged(fresh, second)},
                    "warm": {"seconds": warm_seconds, **judged(warm, second)},
                }
            )
    return _result(rows)


def _result(rows: list[dict[str, Any]]) -> harness.Result:
    ratios = {
        key: float(np.mean([row["warm"][key] / row["fresh"][key] for row in rows])) for key in ("seconds", "error")
    }
    ratios["average_precision_change"] = float(
        np.mean([row["warm"]["average_precision"] - row["fresh"]["average_precision"] for row in rows])
    )
    lines = [
        "| from | to | seed | seconds, fresh -> warm | ratio | held-out error, same | ratio | average precision |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        fresh, warm = row["fresh"], row["warm"]
        cells = [
            row["first"],
            row["second"],
            str(row["seed"]),
            f"{fresh['seconds']:.1f} -> {warm['seconds']:.1f}",
            f"{warm['seconds'] / fresh['seconds']:.2f}",
            f"{fresh['error']:.4f} -> {warm['error']:.4f}",
            f"{warm['error'] / fresh['error']:.2f}",
            f"{fresh['average_precision']:.3f} -> {warm['average_precision']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    mean = ["mean", "", "", "", f"{ratios['seconds']:.2f}", "", f"{ratios['error']:.2f}"]
    lines.append(f"| {' | '.join([*mean, format(ratios['average_precision_change'], '+.3f')])} |")
    return harness.Result({"pairs": rows}, ratios, "\n".join(lines))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    try:
        harness.publish("warm_start", run(quick=args.quick), args)
    except harness.Skip as reason:
        harness.skip("warm_start", reason, args)


if __name__ == "__main__":
    main()
