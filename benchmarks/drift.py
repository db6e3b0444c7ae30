"""When does the drift trigger fire? Where little changes, and after inputs have moved by a known distance.

Detectors are fitted on the training part of series of the tuned half and score the test part as a stream; drift is
looked for as the hub does it. Where nothing drifts it should fire rarely. Into a copy a shift is put in the middle:
every feature moves by so many standard deviations of the training part, over 200 points, and stays there; the delay
counts from where it begins. A series whose normal rows move by themselves stands in the table too.

Examples:
  python benchmarks/drift.py
  python benchmarks/drift.py --quick
  python benchmarks/drift.py --json drift.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import harness
import numpy as np
from detection_series import DRIFTING, TUNED_HALF, Series, labelled_series
from numpy.typing import NDArray

from detectors.scorer import Scorer
from server.drift import Drift

WINDOWS = (400, 1000)
"""Points of a window that are tried; the second is the default."""
SHIFTS = (1.0, 2.0, 4.0)
RAMP_POINTS = 200
REQUEST_POINTS = 50
UPDATES = 400
FEWEST_POINTS = 4000
"""Shorter test parts leave no room for a reference, a quiet stretch and a shift."""
QUICK_SERIES = 3
RATE = 0.001
THRESHOLD = -np.log10(RATE)


@dataclass(frozen=True)
class Stream:
    """The test part of a series, as it is and shifted, with the scores of a detector of the training part.

    Attributes:
        name: Of the series.
        runs: Values [N, F] and scores [N] by shift; 0 is as it is.
    """

    name: str
    runs: dict[float, tuple[NDArray[np.float32], NDArray[np.float32]]]


def main() -> None:
    """Runs it and writes the table."""
    args = harness.parser(__doc__ or "").parse_args()
    try:
        result = measured(quick=args.quick)
    except harness.Skip as reason:
        harness.skip("drift", reason, args)
        return
    harness.publish("drift", result, args)


def measured(*, quick: bool) -> harness.Result:
    """The whole benchmark."""
    streams = [streamed(series) for series in chosen(quick=quick)]
    rows = [row for window in WINDOWS for row in of_window(streams, window)]
    calm = [row for row in rows if row["drifts_itself"] is False]
    figures = {"rows": rows}
    ratios = {
        f"false_fires_per_10000_points_{window}": _rate([row for row in calm if row["window"] == window])
        for window in WINDOWS
    }
    return harness.Result(figures, ratios, table(rows, ratios))


def chosen(*, quick: bool) -> list[Series]:
    """Series of the tuned half whose test part is long enough."""
    found = []
    for read in labelled_series():
        series = read()
        if series.dataset in TUNED_HALF and len(series.test) >= FEWEST_POINTS:
            found.append(series)
    return found[:QUICK_SERIES] if quick else found


def streamed(series: Series) -> Stream:
    """Fits a detector on the training part, and has it score the test part."""
    from detectors.bundle import Lineage
    from detectors.scorer import score_alone
    from detectors.served import Served
    from detectors.training.export import to_bundle
    from detectors.training.fit import FitOptions, fit
    from detectors.training.stretches import Stretches

    harness.say(series.name)
    train, test = series.train.astype(np.float32), series.test.astype(np.float32)
    detector = fit("lstm", Stretches.of([train]), series.features, seed=0, how=FitOptions(updates=UPDATES))
    lineage = Lineage(cause="fit", seed=0, data_rows=len(train))
    bundle = to_bundle(detector, detector="series", version=1, device_class="parent", lineage=lineage)
    warm, scale = train[-200:], train.std(axis=0, dtype=np.float64)
    runs = {}
    for shift in (0.0, *SHIFTS):
        moved = test + _ramp(len(test), len(test) // 2)[:, None] * (shift * scale).astype(np.float32)
        both = np.concatenate([warm, moved])
        parts = score_alone(Scorer(Served.load(bundle)), "series", np.arange(len(both)), both)
        runs[shift] = moved, np.concatenate([part.score for part in parts])[len(warm) :]
    return Stream(series.name, runs)


def of_window(streams: Sequence[Stream], window: int) -> list[dict[str, object]]:
    """A row for each series."""
    rows: list[dict[str, object]] = []
    for stream in streams:
        points = len(stream.runs[0.0][0])
        row: dict[str, object] = {
            "series": stream.name,
            "window": window,
            "points": points,
            "drifts_itself": stream.name in DRIFTING,
            "fires": len(fired(*stream.runs[0.0], window)),
        }
        for shift in SHIFTS:
            later = [at for at in fired(*stream.runs[shift], window) if at >= points // 2]
            row[f"delay_{shift:g}"] = later[0] - points // 2 if later else None
        rows.append(row)
    return rows


def fired(values: NDArray[np.float32], scores: NDArray[np.float32], window: int) -> list[int]:
    """Rows after which drift began."""
    drift, before, found = Drift(window), False, []
    flagged = scores >= THRESHOLD
    for start in range(0, len(values), REQUEST_POINTS):
        rows = slice(start, start + REQUEST_POINTS)
        drift.take(1, scores[rows], flagged[rows], values[rows])
        drift.work()
        if drift.drifts and not before:
            found.append(start + REQUEST_POINTS)
        before = drift.drifts
    return found


def table(rows: Sequence[dict[str, object]], ratios: dict[str, float]) -> str:
    """All of it as Markdown."""
    lines = [
        "| series | window | points | fires | delay at "
        + " | ".join(f"{shift:g} standard deviation{'s' if shift > 1 else ''}" for shift in SHIFTS)
        + " |",
        "| --- | --: | --: | --: |" + " --: |" * len(SHIFTS),
    ]
    for row in rows:
        name = f"{row['series']}{' (drifts by itself)' if row['drifts_itself'] else ''}"
        delays = [row[f"delay_{shift:g}"] for shift in SHIFTS]
        shown = " | ".join("not found" if delay is None else f"{delay}" for delay in delays)
        lines.append(f"| {name} | {row['window']} | {row['points']} | {row['fires']} | {shown} |")
    lines += ["", "False fires in 10,000 points where nothing drifts by itself:"]
    lines.append(", ".join(f"{ratios[f'false_fires_per_10000_points_{it}']:.2f} (window {it})" for it in WINDOWS) + ".")
    return "\n".join(lines)


def _ramp(points: int, middle: int) -> NDArray[np.float32]:
    return np.clip((np.arange(points) - middle) / RAMP_POINTS, 0, 1).astype(np.float32)


def _rate(rows: Sequence[dict[str, object]]) -> float:
    points = sum(int(str(row["points"])) for row in rows)
    return 1e4 * sum(int(str(row["fires"])) for row in rows) / max(points, 1)


if __name__ == "__main__":
    main()
