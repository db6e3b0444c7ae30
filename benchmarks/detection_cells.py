"""Cells of the detection benchmark: one line of JSON for each series and seed, one file for each method.

A run that is killed goes on where it was: a line counts when it is whole, and half a line is left behind by the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
Key = tuple[str, int]
"""Name of the series, and seed."""


class Cells:
    """The cells of one method.

    Args:
        path: The file; it and its folder appear with the first cell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Cell]:
        """The whole lines, oldest first; the last of a series, seed and version wins."""
        if not self.path.exists():
            return []
        cells = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                cell = json.loads(line)
                cells[cell["series"], cell["seed"], cell["version"]] = cell
            except (ValueError, KeyError, TypeError):  # half a line, from a run that was killed
                continue
        return list(cells.values())

    def of(self, version: str) -> dict[Key, Cell]:
        """Those that one version of the method made."""
        return {(cell["series"], cell["seed"]): cell for cell in self.read() if cell["version"] == version}

    def newest(self) -> list[Cell]:
        """Those of the version that wrote last."""
        cells = self.read()
        return [cell for cell in cells if cell["version"] == cells[-1]["version"]]

    def append(self, cell: Cell) -> None:
        """Adds a cell durably; cells of other versions go, since the method is no longer what made them."""
        if any(other["version"] != cell["version"] for other in self.read()):
            self.replace(self.of(cell["version"]).values())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write((b"" if self._whole() else b"\n") + _line(cell))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, cells: Iterable[Cell]) -> None:
        """Writes the file anew, beside itself and then in one rename."""
        fresh = self.path.with_suffix(".partial")
        with fresh.open("wb") as file:
            file.writelines(_line(cell) for cell in cells)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

    def drop(self) -> None:
        """Forgets every cell."""
        self.path.unlink(missing_ok=True)

    def _whole(self) -> bool:
        """Whether the last line was written to its end."""
        if not self.path.stat().st_size:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _line(cell: Cell) -> bytes:
    return json.dumps(cell, allow_nan=False).encode() + b"\n"
