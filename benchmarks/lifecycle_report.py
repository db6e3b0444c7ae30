"""The tables of the lifecycle benchmark, made from its cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from detection_series import TUNED_HALF
from pruning_cells import read_all

HALVED = 0.5  # of the false alarms of the frozen detector
HARM = 0.01  # of VUS-PR
KEPT = 0.9  # of the recall
Cell = Mapping[str, Any]


def result(folder: Path, version: str) -> harness.Result:
    """Everything that is published.

    Args:
        folder: Of the cells.
        version: Of the code now; cells of another one are shown, and said to be older.

    Raises:
        harness.Skip: there are no cells.
    """
    cells = list({(it["part"], it["series"]): it for it in read_all(folder, "part", "series")}.values())
    if not cells:
        raise harness.Skip("there are no cells yet")
    parts = {
        part: [it for it in cells if it["part"] == part and not _empty(it)]
        for part in ("drifting", "steady", "incidents")
    }
    tables, ratios = [], {}
    for part, make in (("drifting", _drifting), ("steady", _steady), ("incidents", _incidents)):
        if parts[part]:
            lines, found = make(parts[part])
            tables += [*lines, ""]
            ratios |= found
    older = sorted(f"{it['series']} ({it['part']})" for it in cells if it["version"] != version)
    if older:
        tables.append(f"Made by an earlier version of the code: {', '.join(older)}.")
    return harness.Result({"cells": cells}, ratios, "\n".join(tables))


def _empty(cell: Cell) -> bool:
    return "loop" not in cell and "taught" not in cell


def alarms(side: Cell) -> float:
    """Normal rows flagged, of a thousand."""
    return 1000 * side["normal_flagged"] / max(side["normal_rows"], 1)


def recall(side: Cell) -> float:
    """Of the rows of labelled events, flagged."""
    return side["rows_found"] / max(side["anomalous"], 1)


def _drifting(cells: Sequence[Cell]) -> tuple[list[str], dict[str, Any]]:
    sides = {
        "frozen": "frozen",
        "loop": "loop",
        "answered": "loop, alarms answered",
        "shift": "loop, what stays flagged learned",
    }
    sides = {side: name for side, name in sides.items() if all(side in it for it in cells)}
    lines = [f"**Drifting series**: {' / '.join(sides.values())}", "", *_beside(cells, sides)]
    ratios, sentences = {}, []
    for side in list(sides)[1:]:
        halved = sum(alarms(it[side]) <= HALVED * alarms(it["frozen"]) for it in cells)
        change = _vus_change(cells, side)
        many, few = harness.verdict(halved == len(cells)), harness.verdict(min(change) >= -HARM)
        sentences.append(
            f"{sides[side].capitalize()}: flagged normal rows at least halved on {halved} of {len(cells)} series: "
            f"{many}; mean change of VUS-PR {np.mean(change):+.3f}, worst {min(change):+.3f} (aim: none lost, to "
            f"{HARM}): {few}."
        )
        ratios |= {
            f"drifting_{side}_halved": halved / len(cells),
            f"drifting_{side}_vus_pr_change": float(np.mean(change)),
            f"drifting_{side}_vus_pr_worst": float(min(change)),
        }
    looked_at = sum(it["series"].split("/")[0] in TUNED_HALF for it in cells)
    sentences.append(f"{looked_at} of the series are of sets that may be looked at.")
    return [*lines, "", " ".join(sentences)], ratios


def _steady(cells: Sequence[Cell]) -> tuple[list[str], dict[str, Any]]:
    change = _vus_change(cells, "loop")
    lines = [
        "**Series that hardly drift**: frozen / with the loop",
        "",
        *_beside(cells, ("frozen", "loop")),
        "",
        f"Worst change of VUS-PR {min(change):+.3f} (aim: not below -{HARM}): {harness.verdict(min(change) >= -HARM)}.",
    ]
    return lines, {"steady_vus_pr_worst": float(min(change))}


def _incidents(cells: Sequence[Cell]) -> tuple[list[str], dict[str, Any]]:
    lines = [
        "**Incidents in the learned stretch**: found again by a loop that met them, and by one that never did",
        "",
        "| series | rows of them flagged: never met | met thrice | part of it kept | events found: never met | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    kept = []
    for it in cells:
        met, never = it["taught"]["loop"], it["untaught"]["loop"]
        share = recall(met) / recall(never) if recall(never) else 1.0
        kept.append(share)
        lines.append(
            f"| {it['series']} | {recall(never):.2f} | {recall(met):.2f} | {share:.2f} | {never['found']} of "
            f"{never['events']} | {met['found']} of {met['events']} |"
        )
    lines += ["", f"Least part kept {min(kept):.2f} (aim: {KEPT}): {harness.verdict(min(kept) >= KEPT)}."]
    return lines, {"incidents_recall_kept": float(min(kept))}


def _beside(cells: Sequence[Cell], sides: Collection[str]) -> list[str]:
    """A row for each series, in each cell one measure of every side."""
    heads = ("series", "cycles", *MEASURES, "bytes", "p50")
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *(_row(it, sides) for it in cells)]


def _vus_change(cells: Sequence[Cell], side: str) -> list[float]:
    return [it[side]["vus_pr"] - it["frozen"]["vus_pr"] for it in cells]


def _row(cell: Cell, sides: Collection[str]) -> str:
    ends = ", ".join(f"{count} {end.replace('_', ' ')}" for end, count in cell["cycles"].items()) or "none"
    size, time = cell["bytes"], cell["p50_seconds"]
    columns = [
        cell["series"],
        ends,
        *(" / ".join(text(cell[side]) for side in sides) for text in MEASURES.values()),
        "" if size is None else f"{size[0] / size[1]:.1f}x less",
        "" if time is None or None in time else f"{time[0] / time[1]:.1f}x faster",
    ]
    return f"| {' | '.join(columns)} |"


MEASURES: dict[str, Callable[[Cell], str]] = {
    "normal rows flagged / 1,000": lambda it: f"{alarms(it):.1f}",
    "false alarms / 1,000": lambda it: f"{1000 * it['false_alarms'] / it['normal_rows']:.2f}",
    "VUS-PR": lambda it: f"{it['vus_pr']:.3f}",
    "events found": lambda it: f"{it['found']} of {it['events']}",
}
