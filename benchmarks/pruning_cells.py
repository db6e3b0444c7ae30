"""Cells of the benchmarks of pruning: a line of JSON each, in files that are only added to.

A file belongs to one kind of network and one series, so several processes may work on different ones at once. A run
that is killed goes on where it was: a line counts when it is whole, and of lines about the same the last one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import harness
from detection_cells import Cell
from detection_ours import code_version

PRUNING = harness.ROOT / "pruning"
ENGINE = (
    "cycle",
    "damage",
    "derive",
    "finetune",
    "gate",
    "groups",
    "importance",
    "injection",
    "knapsack",
    "latency",
    "limits",
    "repair",
    "search",
    "structures",
    "surgery",
    "table",
)
"""The modules of `pruning` that decide what a child is and how it is judged."""
REJUDGED = "GateLimits"
"""Its thresholds may change: cells hold what the gate measured, and reports apply the limits that hold now."""


def path_of(folder: Path, kind: str, series: str) -> Path:
    """The file of a kind and a series."""
    return folder / f"{kind}--{series.replace('/', '--')}.jsonl"


def read(path: Path, *keys: str) -> dict[tuple[object, ...], Cell]:
    """The last whole line of each key.

    Args:
        path: The file; nothing where there is none.
        keys: Fields that tell cells apart.
    """
    if not path.exists():
        return {}
    cells: dict[tuple[object, ...], Cell] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            cell = json.loads(line)
            cells[tuple(cell[key] for key in keys)] = cell
        except (ValueError, KeyError, TypeError):  # half a line, from a run that was killed
            continue
    return cells


def unmade(folder: Path, kinds: Iterable[str], series: Iterable[str]) -> Iterator[tuple[Path, Cell]]:
    """Where there is no cell of the present code for a kind and a series: the file, and how the cell begins.

    Args:
        folder: Of the cells.
        kinds: Networks.
        series: Names.
    """
    for kind, name in product(kinds, list(series)):
        path, version = path_of(folder, kind, name), cell_version(kind)
        if (version,) not in read(path, "version"):
            yield path, {"kind": kind, "series": name, "version": version}


def read_all(folder: Path, *keys: str) -> Iterator[Cell]:
    """The cells of every file of a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from read(path, *keys).values()


def append(path: Path, cell: Cell) -> None:
    """Adds a cell durably; half a line that a killed run has left is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            whole = file.read(1) == b"\n"
            file.write(b"" if whole else b"\n")
        file.write(json.dumps(cell, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def cell_version(kind: str) -> str:
    """A hash of the code that fits, prunes and judges a kind; comments, docstrings and gate thresholds do not count."""
    code = [ast.unparse(_judging(PRUNING / f"{name}.py")) for name in ENGINE]
    return hashlib.sha256("\n".join([code_version(kind), *code]).encode()).hexdigest()[:12]


def _judging(path: Path) -> ast.Module:
    """A module without docstrings and without the thresholds that are applied anew."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name == REJUDGED)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
