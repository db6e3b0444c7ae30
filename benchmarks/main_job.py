"""The main job on real data: fit an LSTM to a server, prune it to a fifth of its time, compare what both detect.

For each seed, through the command line on a fresh store, as a user would:

  prunewatch fit machine --data train.csv --seed N             LSTM 2x128, the default
  prunewatch prune machine --speedup 5 --batch 256 --json      one cycle: prune, repair, fine-tune, gate, adopt

Then the bundles that were published score the labelled test part from a fresh state (EPHEMERAL), and average precision
says what pruning cost. Times include starting Python.

Example:
  PRUNEWATCH_DATA=~/data python benchmarks/main_job.py --quick --json main_job.json

PRUNEWATCH_DATA names a folder of labelled series with an index.csv (columns dataset, name, path, train_rows) and
smd/machine-2-1 in it; without it nothing is run, and the benchmark says so. Targets, each seed: adopted; average
precision at most 0.02 below the parent's; fit < 180 s and cycle < 120 s on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

SERIES = "smd/machine-2-1"
SPEEDUP, BATCH = 5, 256
FIT_TARGET, CYCLE_TARGET, PRECISION_TARGET = 180.0, 120.0, 0.02
SEEDS = (0, 1, 2)


def timed_cli(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds a command took, and what came out of it; its progress goes to standard error."""
    harness.say("prunewatch " + " ".join(Path(it).name if os.sep in it else it for it in arguments))
    began = time.perf_counter()
    done = subprocess.run([*harness.CLI, *arguments], cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return time.perf_counter() - began, done


def one_seed(folder: Path, seed: int, test: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Fits, prunes and judges."""
    store = folder / f"store-{seed}"
    train = str(folder / "train.csv")
    fit_seconds, fitted = timed_cli("fit", "machine", "--data", train, "--store", str(store), "--seed", str(seed))
    if fitted.returncode:
        sys.exit(f"the fit failed with exit code {fitted.returncode}")
    budget = ("--speedup", str(SPEEDUP), "--batch", str(BATCH))
    cycle_seconds, pruned = timed_cli("prune", "machine", *budget, "--store", str(store), "--seed", str(seed), "--json")
    if not pruned.stdout.startswith("{"):
        sys.exit(f"the cycle failed with exit code {pruned.returncode}")
    cycle = json.loads(pruned.stdout)
    precision = {"parent": average_precision(store, cycle["parent"]["hash"], test, labels)}
    if cycle["outcome"] == "adopted":
        precision["child"] = average_precision(store, cycle["child"]["hash"], test, labels)
    return {"seed": seed, "fit_seconds": fit_seconds, "cycle_seconds": cycle_seconds, "precision": precision, **cycle}


def average_precision(store: Path, bundle_hash: str, test: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Of a published bundle's scores from a fresh state; points while it warms up are left out."""
    from sklearn.metrics import average_precision_score

    from detectors.scorer import Scorer, score_alone
    from detectors.served import Served
    from server.store import Store

    harness.say(f"scoring {len(test)} points with bundle {bundle_hash[:12]}")
    with Store.open(store, create=False) as opened:
        scorer = Scorer(Served.load(opened.read_bundle(bundle_hash)))
    scores = np.concatenate([it.score for it in score_alone(scorer, "machine", np.arange(len(test)), test)])
    scored = np.isfinite(scores)
    return float(average_precision_score(labels[scored], scores[scored]))


def run(*, quick: bool) -> harness.Result:
    """All seeds.

    Raises:
        harness.Skip: there are no data.
    """
    import pandas as pd

    path, train_rows = harness.labelled_series(SERIES)
    frame = pd.read_csv(path)
    test = frame.iloc[train_rows:]
    values = test.drop(columns=[frame.columns[0], "label"]).to_numpy(np.float32)
    with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as name:
        frame.iloc[:train_rows].to_csv(Path(name) / "train.csv", index=False)
        labels = test["label"].to_numpy()
        seeds = [one_seed(Path(name), seed, values, labels) for seed in (SEEDS[:1] if quick else SEEDS)]
    return _result(seeds, points=len(labels), anomalous=int(labels.sum()))


def _ratios(seed: dict[str, Any]) -> dict[str, float]:
    """Child against parent; nothing where the cycle was rejected."""
    parent, child = seed["parent"], seed["child"]
    if seed["outcome"] != "adopted":
        return {}
    return {
        "speedup": parent["p50_seconds"] / child["p50_seconds"],
        "p99_speedup": parent["p99_seconds"] / child["p99_seconds"],
        "parameters": child["parameters"] / parent["parameters"],
        "bytes": child["bytes"] / parent["bytes"],
        "error": child["error"] / parent["error"],
        "precision_change": seed["precision"]["child"] - seed["precision"]["parent"],
    }


def _result(seeds: list[dict[str, Any]], **facts: int) -> harness.Result:
    each = [_ratios(seed) for seed in seeds]
    adopted = [ratios for ratios in each if ratios]
    mean = {kind: float(np.mean([ratios[kind] for ratios in adopted])) for kind in (adopted[0] if adopted else ())}
    fit, cycle = (float(np.mean([seed[f"{kind}_seconds"] for seed in seeds])) for kind in ("fit", "cycle"))
    keys = (
        "seed",
        "outcome",
        "reason",
        "fit_seconds",
        "cycle_seconds",
        "stages",
        "precision",
        "parent",
        "child",
        "gate",
    )
    figures = {
        "series": SERIES,
        **facts,
        "fit_seconds": fit,
        "cycle_seconds": cycle,
        "seeds": [{key: seed.get(key) for key in keys} for seed in seeds],
    }
    ratios = {**mean, "adopted": len(adopted) / len(seeds), "seeds": each}
    return harness.Result(figures, ratios, _table(seeds, each, mean, fit, cycle))


def _table(
    seeds: list[dict[str, Any]], each: list[dict[str, float]], mean: dict[str, float], fit: float, cycle: float
) -> str:
    heads = [f"seed {seed['seed']}" for seed in seeds]

    def row(label: str, cells: list[str], last: str = "", target: str = "") -> str:
        return f"| {label} | {' | '.join(cells)} | {last} | {target} |"

    def step(side: dict[str, Any] | None, quantile: str) -> str:
        return f"{side[f'{quantile}_seconds'] * 1e3:.2f}" if side else "-"

    def pair(show: Any) -> list[str]:
        return [f"{show(seed['parent'])} -> {show(seed['child'])}" for seed in seeds]

    def ratio(kind: str, form: str) -> tuple[list[str], str]:
        cells = [format(ratios[kind], form) if ratios else "-" for ratios in each]
        return cells, format(mean[kind], form) if mean else "-"

    def goal(text: str, values: list[bool]) -> str:
        return f"{text}: {harness.verdict(all(values))}"

    slowest = {kind: max(seed[f"{kind}_seconds"] for seed in seeds) for kind in ("fit", "cycle")}
    kept = [bool(ratios) and ratios["precision_change"] >= -PRECISION_TARGET for ratios in each]
    precisions = [
        f"{seed['precision']['parent']:.3f} -> {seed['precision'].get('child', float('nan')):.3f}" for seed in seeds
    ]
    rows = [
        row("", heads, "mean", "target"),
        row("---", ["---"] * len(seeds), "---", "---"),
        row(
            "fit, s",
            [f"{seed['fit_seconds']:.0f}" for seed in seeds],
            f"{fit:.0f}",
            goal("< 180", [slowest["fit"] < FIT_TARGET]),
        ),
        row(
            "cycle, s",
            [f"{seed['cycle_seconds']:.0f}" for seed in seeds],
            f"{cycle:.0f}",
            goal("< 120", [slowest["cycle"] < CYCLE_TARGET]),
        ),
        row("outcome", [seed["outcome"] for seed in seeds], "", goal("adopted", [bool(ratios) for ratios in each])),
        row("p50 speed-up, measured", *ratio("speedup", ".1f"), goal(">= 5", _fast(each))),
        row("p99 speed-up", *ratio("p99_speedup", ".1f")),
        row("p50 of a step of 256, ms", pair(lambda side: step(side, "p50"))),
        row("p99 of a step of 256, ms", pair(lambda side: step(side, "p99"))),
        row("units", pair(lambda side: "-".join(map(str, side["units"].values())) if side else "-")),
        row("parameters", pair(lambda side: f"{side['parameters']:,}" if side else "-")),
        row("bytes", pair(lambda side: f"{side['bytes']:,}" if side else "-")),
        row("average precision", precisions),
        row("its change", *ratio("precision_change", "+.3f"), goal("at most 0.02 lower", kept)),
        row("error ratio", *ratio("error", ".2f")),
    ]
    reasons = [f"\nSeed {seed['seed']} was {seed['outcome']}: {seed['reason']}" for seed in seeds if seed["reason"]]
    return "\n".join([*rows, *reasons])


def _fast(each: list[dict[str, float]]) -> list[bool]:
    return [bool(ratios) and ratios["speedup"] >= SPEEDUP for ratios in each]


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    try:
        harness.publish("main_job", run(quick=args.quick), args)
    except harness.Skip as reason:
        harness.skip("main_job", reason, args)


if __name__ == "__main__":
    main()
