"""Replays of the lifecycle benchmark: which streams, and what is measured of each."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
from detection_measures import Flags, dominant_period, measured, runs
from detection_series import DRIFTING, Series
from numpy.typing import NDArray
from pruning_cells import cell_version

from server.config import HUB, DetectorConfig, Settings
from server.csv_input import Table
from server.simulate import replay
from server.simulate_outcome import Replay

NAME = "series"
KIND = "lstm"
CYCLES = 8
"""Over the streamed rows of a series, at most."""
FEWEST_ROWS = 100
"""Between two cycles."""
SPEEDUP = 4.0
STEADY = ("smd/machine-2-1", "asd/omi-4", "asd/omi-9")
INCIDENTS = (*STEADY, "ucr/116_UCR_Anomaly_CIMIS44AirTemperature4_4000_5549_5597")
SHIFT = 200
"""Rows of which half must be flagged until they count as normal, where that is tried."""
REPEATS = 3
"""How often every incident is in the learned stretch."""
LOOP = (
    "conduct",
    "golden",
    "history",
    "lasting",
    "maintenance",
    "pace",
    "probation",
    "publish",
    "reservoir",
    "schedule",
    "shadow",
    "simulate",
    "spans",
    "stretches",
    "trainer",
    "usage",
    "worker",
)
"""The modules of `server` that decide what is learned and what serves."""
DIGITS = 5


@dataclass(frozen=True)
class Stream:
    """What is replayed.

    Attributes:
        train: [M, F] rows that the detector is fitted to.
        rows: [N, F] that are streamed then.
        labels: [N].
        judged: Rows that count; those before are only learned from.
    """

    train: NDArray[np.float32]
    rows: NDArray[np.float32]
    labels: Flags
    judged: slice


def stream_of(series: Series) -> Stream:
    """A series as it is."""
    rows = series.test.astype(np.float32)
    return Stream(series.train.astype(np.float32), rows, series.labels, slice(0, len(rows)))


def with_incidents(series: Series, repeats: int) -> Stream:
    """The normal rows of a test part; its incidents `repeats` times in their first half, and once in the second.

    Where an incident is put in, the stream jumps there and back: in the second half at the same places whatever
    `repeats` is, so that replays with and without it can be compared.
    """
    normal = series.test[~series.labels].astype(np.float32)
    incidents = [series.test[first : last + 1].astype(np.float32) for first, last in runs(series.labels)]
    half = len(normal) // 2
    learned, _ = _spliced(normal[:half], incidents * repeats)
    later, labels = _spliced(normal[half:], incidents)
    rows = np.concatenate([learned, later])
    marked = np.concatenate([np.zeros(len(learned), np.bool_), labels])
    return Stream(series.train.astype(np.float32), rows, marked, slice(len(learned), len(rows)))


def _spliced(normal: NDArray[np.float32], incidents: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], Flags]:
    """Incidents put between normal rows, as far from each other as they can be; and which rows are theirs."""
    pieces = np.array_split(normal, len(incidents) + 1)
    parts, marks = [pieces[0]], [np.zeros(len(pieces[0]), np.bool_)]
    for incident, piece in zip(incidents, pieces[1:], strict=True):
        parts += [incident, piece]
        marks += [np.ones(len(incident), np.bool_), np.zeros(len(piece), np.bool_)]
    return np.concatenate(parts), np.concatenate(marks)


def replayed(
    stream: Stream,
    features: tuple[str, ...],
    *,
    seed: int,
    cycles: int = CYCLES,
    answered: bool = False,
    shift: int | None = None,
) -> Replay:
    """Streams through the real loop; a cycle begins every so many rows.

    Alarms are answered, and what stays flagged for `shift` rows is learned, where that is asked for.
    """
    rows = np.concatenate([stream.train, stream.rows])
    number = np.arange(len(rows))
    labels = np.concatenate([np.zeros(len(stream.train), np.bool_), stream.labels])
    table = Table(Path(NAME), list(features), number, [str(it) for it in number], rows, number, labels)
    detector = DetectorConfig(
        network=KIND,
        features=list(features),
        seed=seed,
        time="index",
        triggers={"shift": shift},
        schedule={"prune_every": f"{max(FEWEST_ROWS, len(stream.rows) // cycles)} points"},
    )
    with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
        settings = Settings(
            store=Path(folder) / "store", device_classes={HUB: {"speedup": SPEEDUP}}, detectors={NAME: detector}
        )
        return asyncio.run(
            replay(
                table,
                settings,
                NAME,
                train_rows=len(stream.train),
                step_seconds=1.0,
                answered=answered,
                report=_report(),
            )
        )


def figures(found: Replay, stream: Stream, series: Series) -> dict[str, Any]:
    """What a cell says of a replay."""
    judged = stream.judged
    sides = {
        side: _measured(scores[judged], found.threshold, stream.labels[judged], series)
        for side, scores in (("loop", found.scores), ("frozen", found.frozen))
    }
    ends = ["rolled_back" if it.went_back else it.cycle.outcome for it in found.cycles]
    last = int(found.versions[-1])
    sizes = {it.version: it for it in found.sizes}
    return {
        **sides,
        "cycles": {end: ends.count(end) for end in sorted(set(ends))},
        "reasons": sorted({it.cycle.reason[:200] for it in found.cycles if it.cycle.reason}),
        "bytes": [sizes[1].bytes, sizes[last].bytes] if 1 in sizes and last in sizes else None,
        "p50_seconds": [sizes[1].p50_seconds, sizes[last].p50_seconds] if 1 in sizes and last in sizes else None,
        "rows": len(stream.rows),
        "seconds": round(found.seconds, 1),
    }


def _measured(scores: NDArray[np.float32], threshold: float, labels: Flags, series: Series) -> dict[str, Any]:
    flagged = scores >= threshold
    buffer = dominant_period(series.train[:, 0])
    every = measured(scores, labels, flagged, buffer=buffer, period_seconds=None)
    kept = ("vus_pr", "average_precision", "events", "false_alarms", "normal_rows", "normal_flagged", "rows")
    found = {key: every[key] for key in kept}
    found |= {
        "found": len(every["delays"]),
        "rows_found": int((flagged & labels).sum()),
        "anomalous": int(labels.sum()),
    }
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in found.items()}


def parts() -> dict[str, tuple[str, ...]]:
    """Names of the series by part of the benchmark."""
    return {"drifting": tuple(sorted(DRIFTING)), "steady": STEADY, "incidents": INCIDENTS}


def run(part: str, series: Series, *, seed: int, cycles: int = CYCLES) -> dict[str, Any]:
    """One cell."""
    if part != "incidents":
        stream = stream_of(series)
        found = figures(replayed(stream, series.features, seed=seed, cycles=cycles), stream, series)
        if part == "drifting":
            again = figures(replayed(stream, series.features, seed=seed, cycles=cycles, answered=True), stream, series)
            found["answered"] = {**again["loop"], "cycles": again["cycles"], "reasons": again["reasons"]}
            again = figures(replayed(stream, series.features, seed=seed, cycles=cycles, shift=SHIFT), stream, series)
            found["shift"] = {**again["loop"], "cycles": again["cycles"], "reasons": again["reasons"]}
        return found
    cell = {}
    for side, repeats in (("taught", REPEATS), ("untaught", 0)):
        stream = with_incidents(series, repeats)
        cell[side] = figures(replayed(stream, series.features, seed=seed, cycles=cycles), stream, series)
    return cell


def loop_version() -> str:
    """A hash of the code that fits, prunes, judges and decides what is learned; docstrings do not count."""
    code = [ast.unparse(_bare(harness.ROOT / "server" / f"{name}.py")) for name in LOOP]
    code += [ast.unparse(_bare(harness.ROOT / "pruning" / f"{name}.py")) for name in ("parent_gate", "update")]
    return hashlib.sha256("\n".join([cell_version(KIND), *code]).encode()).hexdigest()[:12]


def _bare(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _report():
    """Says where a replay is, every tenth of it."""
    said = [-1]

    def report(_stage: str, done: float, message: str) -> None:
        if int(10 * done) != said[0]:
            said[0] = int(10 * done)
            harness.say(f"  {message}")

    return report
