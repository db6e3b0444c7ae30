"""The tables of the pruning benchmark, made from its cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import harness
import pandas as pd
from pruning_cells import cell_version, read_all
from pruning_figures import aims, mean_of, spread_of, table
from pruning_peer import PACKAGE, installed

METHODS = ("ours", "random", "no_repair", "scratch", "scratch_long", "torch_pruning", "masks")
TARGETS = ("2x", "4x", "8x", "floor", "half the trees")
KINDS = (
    "lstm",
    "autoencoder",
    "gru",
    "conv_autoencoder",
    "lstm_autoencoder",
    "variational_autoencoder",
    "isolation_forest",
    "ensemble",
)
COLUMNS = {
    "speedup": ("p50 speed-up", "{:.1f}"),
    "p99_speedup": ("p99", "{:.1f}"),
    "bytes": ("bytes / it", "{:.1f}"),
    "error": ("error", "{:.2f}"),
    "ap": ("AP", "{:+.3f}"),
    "vus_pr": ("VUS-PR", "{:+.3f}"),
    "alarms": ("alarms shared", "{:.2f}"),
    "tail": ("tail", "{:.2f}"),
    "cpu_seconds": ("CPU, s", "{:.0f}"),
    "wall_seconds": ("wall, s", "{:.0f}"),
}

FORMS = ("{:.1f}", "{:.2f}")
"""Of the speed-up and the error by series."""


def result(folder: Path) -> harness.Result:
    """Everything that is published.

    Args:
        folder: Of the cells.

    Raises:
        harness.Skip: there are none.
    """
    cells = list(read_all(folder, "seed", "batch", "target", "method"))
    if not cells:
        raise harness.Skip("there are no cells yet")
    frame = table(cells)
    lines: list[str] = []
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for kind in KINDS:
        for batch in sorted(frame[frame.kind == kind].batch.unique(), reverse=True):
            part = frame[(frame.kind == kind) & (frame.batch == batch)]
            name = f"{kind}, batch {batch}"
            figures[name], ratios[name] = summary(part), aims(part)
            many = f"{part.series.nunique()} series, {part.seed.nunique()} seed{'s' * (part.seed.nunique() > 1)}"
            lines += [f"**`{kind}`, batch {batch}** ({many})", "", *_methods(figures[name]), ""]
    lines += ["**Aims**", "", *_aims(ratios), ""]
    lines += ["**By series**, ours at 4x and batch 256, children the gate let in and others", "", *_series(frame), ""]
    lines += [*_failures(frame), *_notes(cells)]
    return harness.Result(figures, ratios, "\n".join(lines))


def summary(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each target and method of one kind at one batch: means, and how many the gate let in."""
    found: dict[str, dict[str, Any]] = {}
    for target in TARGETS:
        for method in METHODS:
            here = frame[(frame.target == target) & (frame.method == method)]
            if len(here):
                row = {column: mean_of(here, column) for column in COLUMNS}
                counts = {
                    "cells": len(here),
                    "built": int(here.built.sum()),
                    "adopted": int(here.adopted.eq(True).sum()),
                }
                found[f"{target} {method}"] = row | counts
    return found


def _methods(rows: dict[str, dict[str, Any]]) -> list[str]:
    heads = ["", *(head for head, _ in COLUMNS.values()), "let in"]
    lines = []
    for name, row in rows.items():
        figures = [
            form.format(row[column]) if row[column] is not None else "-" for column, (_, form) in COLUMNS.items()
        ]
        lines.append([name, *figures, f"{row['adopted']} of {row['cells']}"])
    return markdown(heads, lines)


def _aims(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    rows = []
    for name, own in found.items():
        for aim, it in own.items():
            if it["met"] is not None:
                rows.append([name, aim, f"{it['value']:+.3f}", harness.verdict(it["met"])])
    return markdown(["", "aim", "found", ""], rows)


def _series(frame: pd.DataFrame) -> list[str]:
    here = frame[(frame.method == "ours") & (frame.target == "4x") & (frame.batch == frame.batch.max())]
    rows = []
    for (kind, series), own in here.groupby(["kind", "series"], sort=False):
        figures = [mean_of(own, column) for column in ("speedup", "error")]
        texts = ["-" if value is None else form.format(value) for value, form in zip(figures, FORMS, strict=True)]
        texts += [_spread(own, "parent_ap", "{:.3f}"), *(_spread(own, it, "{:+.3f}") for it in ("ap", "vus_pr"))]
        rows.append([f"`{kind}`", series, *texts, f"{int(own.adopted.eq(True).sum())} of {len(own)}"])
    return markdown(["", "series", "p50 speed-up", "error", "the parent's AP", "AP", "VUS-PR", "let in"], rows)


def _spread(frame: pd.DataFrame, column: str, form: str) -> str:
    """Mean over seeds, and their standard deviation where there are several."""
    found = spread_of(frame, column)
    if found is None:
        return "-"
    mean, deviation = found
    return form.format(mean) + (f" ± {deviation:.3f}" if len(frame) > 1 else "")


def _failures(frame: pd.DataFrame) -> list[str]:
    """What could not be built, and why, once for each kind and method."""
    gone = frame[~frame.built.astype(bool)]
    lines = []
    for (kind, method), own in gone[gone.method != "ours"].groupby(["kind", "method"], sort=False):
        reasons = "; ".join(sorted(set(own.reason)))
        lines.append(f"- `{kind}`, {method}: {reasons}")
    missed = gone[gone.method == "ours"]
    for (kind, batch, target), own in missed.groupby(["kind", "batch", "target"], sort=False):
        where = f"`{kind}`, batch {batch}, {target}"
        lines.append(f"- {where}: below the floor in {len(own)} cells, refused ({own.reason.iloc[0]})")
    return ["**What could not be built**", "", *lines, ""] if lines else []


def _notes(cells: Sequence[dict[str, Any]]) -> list[str]:
    now = {kind: cell_version(kind) for kind in {cell["kind"] for cell in cells}}
    older = sorted({cell["kind"] for cell in cells if cell["version"] != now[cell["kind"]]})
    notes = [f"{len(cells)} cells."]
    if older:
        notes.append(f"Some made by an earlier version of the code: {', '.join(older)}.")
    if not any(cell["method"] == "torch_pruning" and cell["built"] for cell in cells) and installed() is None:
        notes.append(f"{PACKAGE} was not installed here.")
    return [" ".join(notes)]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
