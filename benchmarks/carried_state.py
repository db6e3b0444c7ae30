"""What carrying state saves: one step a point, against running over the last 50 points again for each point.

The same LSTM 2x32 of 8 features, with the same weights, twice in ONNX Runtime on one thread:

  carried   the step graph that a bundle holds: state in, state out, one step a point, and the score
  operator  ONNX's LSTM operator over the last 50 points from a zero state, the newest one predicted from the 49 before
  unrolled  the same with 49 copies of the step graph's own cells in one graph, which is quicker for large batches

All are timed turn by turn, and the quicker form of the window counts. What favours the window is left in: building it
is not timed, and its graphs end at the error, without the calibrated score. The results for the same points are
compared by rank (Spearman), so that what is fast is also right.

Example:
  python benchmarks/carried_state.py --quick --json carried_state.json

Target at a batch of 256: at least 20 times the points a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import harness
import numpy as np
import onnxruntime as ort
import torch
from window_graphs import FORMS, WINDOW, Weights, session, window_graph

from detectors.runtime import Runtime
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, Fitted
from detectors.training.stretches import Stretches

FEATURES, WIDTH = 8, 32
BATCHES = (256, 1)
TARGET = 20.0
FIT_POINTS, COMPARED_POINTS, COMPARED_SERIES = 4000, 300, 16


def fitted_network(updates: int) -> Fitted:
    """An LSTM 2x32 of drawn data."""
    harness.say(f"fitting an LSTM 2x{WIDTH}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    data = Stretches.of([harness.drawn(FIT_POINTS, 1, FEATURES, seed=2)[:, 0]])
    names = tuple(f"f{i + 1}" for i in range(FEATURES))
    options = {"layers": 2, "width": WIDTH}
    unsmoothed = ErrorOptions(half_life=0)  # a window that is run anew for each point has no error before to smooth
    return fit("lstm", data, names, seed=0, options=options, how=FitOptions(updates=updates), error=unsmoothed)


def agreement(runtime: Runtime, windows: Mapping[str, ort.InferenceSession]) -> dict[str, float]:
    """Rank correlation of carried scores and re-run errors, and the share of large ones that all find."""
    from scipy.stats import spearmanr

    points = harness.drawn(WINDOW + COMPARED_POINTS, COMPARED_SERIES, FEATURES, seed=3)
    rng = np.random.default_rng(3)
    odd = rng.random(points.shape[:2]) < 0.02  # so that there is something to find
    points[odd] += rng.normal(0, 2, (int(odd.sum()), FEATURES)).astype(np.float32)
    state, carried = runtime.fresh(COMPARED_SERIES), []
    for row in points:
        step = runtime.step(row, state)
        state = step.state
        carried.append(step.score)
    scores = np.concatenate(carried[WINDOW - 1 :])
    found = {}
    for name, window in windows.items():
        starts = range(len(points) - WINDOW + 1)
        errors = np.concatenate([window.run(None, {"window": points[t : t + WINDOW]})[0] for t in starts])
        top = len(scores) // 100
        both = np.intersect1d(np.argsort(scores)[-top:], np.argsort(errors)[-top:])
        found |= {f"spearman_{name}": float(spearmanr(scores, errors).statistic)}
        found |= {f"top_percent_in_both_{name}": len(both) / top}
    return found


def rates(
    runtime: Runtime, windows: Mapping[str, ort.InferenceSession], batch: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Points a second of all, as medians over rounds that alternate."""
    points = harness.drawn(WINDOW, batch, FEATURES, seed=4)
    state = [runtime.fresh(batch)]

    def step() -> None:
        state[0] = runtime.step(points[0], state[0]).state

    ways: dict[str, Callable[[], object]] = {"carried": step}
    ways |= {name: partial(window.run, None, {"window": points}) for name, window in windows.items()}
    repeats = {name: max(5, math.ceil(seconds / _seconds_each(way, 10))) for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 0):
            found[name].append(batch / _seconds_each(ways[name], repeats[name]))
    return {name: float(np.median(values)) for name, values in found.items()}


def _seconds_each(way: Callable[[], object], times: int) -> float:
    way()
    began = time.perf_counter()
    for _ in range(times):
        way()
    return (time.perf_counter() - began) / times


def run(*, quick: bool) -> harness.Result:
    """All graphs at every batch."""
    fitted = fitted_network(updates=100 if quick else 400)
    runtime = Runtime(step_graph(fitted))
    weights = Weights.read(step_graph(fitted))
    windows = {name: session(window_graph(weights, form)) for name, form in FORMS.items()}
    found = {}
    for batch in BATCHES:
        harness.say(f"timing a batch of {batch}")
        found[batch] = rates(runtime, windows, batch, rounds=7 if quick else 21, seconds=0.1 if quick else 0.3)
    agreed = agreement(runtime, windows)
    ratios = {
        f"carried_vs_window_batch_{batch}": it["carried"] / max(it[name] for name in windows)
        for batch, it in found.items()
    }
    rows = [
        "| batch | carried, points/s | operator, points/s | unrolled, points/s | carried / quicker window | target |"
    ]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for batch, it in found.items():
        ratio = ratios[f"carried_vs_window_batch_{batch}"]
        target = f">= {TARGET:.0f}: {harness.verdict(ratio >= TARGET)}" if batch == BATCHES[0] else ""
        cells = " | ".join(f"{it[name]:,.0f}" for name in ("carried", *windows))
        rows.append(f"| {batch} | {cells} | {ratio:.1f} | {target} |")
    shared = agreed["top_percent_in_both_operator"]
    rows.append(
        f"\nOn the same {COMPARED_POINTS * COMPARED_SERIES:,} points: Spearman {agreed['spearman_operator']:.4f} "
        f"between carried and window; {shared:.0%} of the highest percent are the same points."
    )
    figures = {
        f"{name}_points_per_second_batch_{batch}": rate for batch, it in found.items() for name, rate in it.items()
    }
    return harness.Result(figures, {**ratios, **agreed}, "\n".join(rows))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    harness.publish("carried_state", run(quick=args.quick), args)


if __name__ == "__main__":
    main()
