"""The tables of the explanation benchmark, made from its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from detection_cells import Cell, Cells
from explain_figures import MEASURES, by_chance, mean

SIDES = ("dense", "pruned")
HEADS = {"hit_100": "HitRate@100%", "hit_150": "HitRate@150%", "top_1": "first is a cause", "top_3": "of three, causes"}
CHANCE = "by chance"
Seeds = Mapping[int, list[Cell]]
"""Cells of one kind: for each seed those of all servers."""


def result(folder: Path, versions: Mapping[str, str], servers: Sequence[str]) -> harness.Result:
    """Everything that is published.

    Args:
        folder: Of the cells.
        versions: What each kind is now; cells of another version are shown, and said to be older.
        servers: Seeds count that have a cell for each of them.

    Raises:
        harness.Skip: no kind has cells of all servers.
    """
    newest = {kind: Cells(folder / f"{kind}.jsonl").newest() for kind in versions}
    kinds = {kind: whole(cells, servers) for kind, cells in newest.items()}
    kinds = {kind: seeds for kind, seeds in kinds.items() if seeds}
    if not kinds:
        raise harness.Skip("no kind has cells of all servers yet")
    groups = {name: [it for it in servers if it.startswith(f"{name}/")] for name in ("smd", "asd")}
    groups = {name: members for name, members in groups.items() if members}
    groups |= {"all": list(servers)} if len(groups) > 1 else {}
    any_seed = next(iter(next(iter(kinds.values())).values()))
    chance = {name: chance_of(any_seed, members) for name, members in groups.items()}
    figures: dict[str, Any] = {"anomalies": sum(len(cell["causes"]) for cell in any_seed), CHANCE: chance}
    for kind, seeds in kinds.items():
        figures[kind] = {
            side: {name: hit_rates(seeds, side, members) for name, members in groups.items()} for side in SIDES
        } | {"flagged": {side: flagged(seeds, side) for side in SIDES}, "pruning": pruning(seeds)}
    last = list(groups)[-1]
    ratios = {
        f"{kind}_{side}_vs_chance": figures[kind][side][last]["hit_100"]["mean"] / chance[last]["hit_100"]
        for kind in kinds
        for side in SIDES
        if figures[kind][side][last]["hit_100"]["mean"] is not None
    }
    older = [kind for kind in kinds if newest[kind][-1]["version"] != versions[kind]]
    missing = [kind for kind in versions if kind not in kinds]
    return harness.Result(figures, ratios, _tables(figures, kinds, list(groups), older, missing))


def whole(cells: Iterable[Cell], servers: Sequence[str]) -> dict[int, list[Cell]]:
    """Cells by seed, of the seeds that have all servers."""
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell["series"] in servers:
            by_seed.setdefault(cell["seed"], []).append(cell)
    return {seed: own for seed, own in sorted(by_seed.items()) if {it["series"] for it in own} == set(servers)}


def chance_of(cells: Iterable[Cell], servers: Sequence[str]) -> dict[str, float]:
    """What random rankings give, over the anomalies of these servers."""
    rows = []
    for cell in cells:
        for n in cell["causes"] if cell["series"] in servers else ():
            causes = np.zeros(cell["features"], bool)
            causes[:n] = True
            rows.append(by_chance(causes))
    return {measure: mean(row[measure] for row in rows) for measure in MEASURES}


def hit_rates(seeds: Seeds, side: str, servers: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Each measure, every anomaly counting alike: mean and standard deviation over seeds."""

    def of(measure: str) -> Callable[[list[Cell]], float]:
        return lambda cells: mean(row[measure] for row in _rows(cells, side, "all", servers))

    return {measure: _over_seeds(seeds, of(measure)) for measure in MEASURES}


def flagged(seeds: Seeds, side: str) -> dict[str, dict[str, float | None]]:
    """Of the anomalies with a flagged row: their share, and the measures over flagged rows only."""
    found = {
        measure: _over_seeds(seeds, lambda cells, it=measure: mean(row[it] for row in _rows(cells, side, "flagged")))
        for measure in MEASURES
    }

    def share(cells: list[Cell]) -> float:
        every = sum(len(cell["causes"]) for cell in cells if cell[side])
        return len(_rows(cells, side, "flagged")) / every if every else float("nan")

    return {"found": _over_seeds(seeds, share), **found}


def pruning(seeds: Seeds) -> dict[str, Any]:
    """What pruning did: adopted cycles, measured speed-up, and top threes that stayed."""
    cells = [cell for own in seeds.values() for cell in own]
    same = [value for cell in cells for value in (cell["same_top_3"] or ()) if value is not None]
    speedups = [cell["speedup"] for cell in cells if cell["speedup"]]
    return {
        "cycles": len(cells),
        "adopted": sum(cell["outcome"] == "adopted" for cell in cells),
        "built": sum(cell["pruned"] is not None for cell in cells),
        "median_speedup": float(np.median(speedups)) if speedups else None,
        "same_top_3": mean(same) if same else None,
        "fit_seconds": mean(cell["fit_seconds"] for cell in cells),
        "prune_seconds": mean(cell["prune_seconds"] for cell in cells),
    }


def _rows(cells: Iterable[Cell], side: str, rows: str, servers: Sequence[str] | None = None) -> list[dict[str, float]]:
    return [
        row
        for cell in cells
        if cell[side] and (servers is None or cell["series"] in servers)
        for row in cell[side][rows]
        if row is not None
    ]


def _over_seeds(seeds: Seeds, figure: Callable[[list[Cell]], float]) -> dict[str, float | None]:
    values = np.array([figure(cells) for cells in seeds.values()])
    values = values[np.isfinite(values)]
    return {
        "mean": float(values.mean()) if len(values) else None,
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
    }


def _tables(
    figures: Mapping[str, Any], kinds: Mapping[str, Seeds], groups: Sequence[str], older: list[str], missing: list[str]
) -> str:
    last = groups[-1]
    columns = [(measure, name) for measure in ("hit_100", "hit_150") for name in groups]
    columns += [(measure, last) for measure in ("top_1", "top_3")]
    heads = [f"{HEADS[m]}, {name}" if m.startswith("hit") else HEADS[m] for m, name in columns]
    rows = [[CHANCE, *(f"{figures[CHANCE][name][measure]:.2f}" for measure, name in columns)]]
    rows += [
        [f"`{kind}`, {side}", *(_spread(figures[kind][side][name][measure]) for measure, name in columns)]
        for kind in kinds
        for side in SIDES
    ]
    found = [
        [f"`{kind}`, {side}", *(_spread(figures[kind]["flagged"][side][key]) for key in ("found", *MEASURES))]
        for kind in kinds
        for side in SIDES
    ]
    pruned = []
    for kind in kinds:
        it = figures[kind]["pruning"]
        speedup = "-" if it["median_speedup"] is None else f"{it['median_speedup']:.1f}"
        same = "-" if it["same_top_3"] is None else f"{it['same_top_3']:.2f}"
        cycles = f"{it['adopted']} of {it['cycles']}"
        pruned.append([f"`{kind}`", cycles, speedup, same, f"{it['fit_seconds']:.0f}", f"{it['prune_seconds']:.0f}"])
    tables = {
        f"**All rows of {figures['anomalies']} anomalies**": _markdown(["", *heads], rows),
        "**Flagged rows only**": _markdown(["", "anomalies found", *HEADS.values()], found),
        "**Pruning**": _markdown(
            ["", "adopted", "speed-up, median", "top three that stayed", "fit, s", "cycle, s"], pruned
        ),
    }
    lines = [line for title, table in tables.items() for line in (title, "", *table, "")]
    lines += [f"Made by an earlier version of the code: {', '.join(older)}."] if older else []
    lines += [f"Not run on all servers yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def _spread(it: Mapping[str, float | None]) -> str:
    if it["mean"] is None:
        return "-"
    return f"{it['mean']:.2f}" + ("" if it["spread"] is None else f" ± {it['spread']:.2f}")


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
