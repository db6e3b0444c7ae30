"""Graphs that devices measure for tables: files of the store named by their sha256, made again where they are gone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from detectors.bundle import replaced, write_durably
from server.layout import TABLES

FOLDER = "graphs"


def write_graphs(root: Path, graphs: Mapping[str, bytes]) -> None:
    """Writes those that are not there yet.

    Args:
        root: The store's folder.
        graphs: By sha256.
    """
    folder = root / TABLES / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for sha256, graph in graphs.items():
        if not _is_whole(path := graph_path(root, sha256), sha256):
            with replaced(path) as partial:
                write_durably(partial, graph)


def graph_path(root: Path, sha256: str) -> Path:
    """Where a graph lies.

    Raises:
        ValueError: `sha256` is none.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(sha256[:80])
    return root / TABLES / FOLDER / f"{sha256}.onnx"


def missing_graphs(root: Path, names: Collection[str]) -> list[str]:
    """Those that are not there, or not whole."""
    return [sha256 for sha256 in names if not _is_whole(graph_path(root, sha256), sha256)]


def sweep_graphs(root: Path, named: Collection[str]) -> None:
    """Removes all but some."""
    for path in (root / TABLES / FOLDER).glob("*.onnx"):
        if path.stem not in named:
            path.unlink(missing_ok=True)


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False
