"""What widths cost, as tables: read, kept, put together from what graphs cost. Free of torch: the service asks too.

`pruning.table` says which networks a table is made of, and measures them here; `Grid` is the same as a list of graphs,
for those who measure them elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

from detectors.failpoints import failpoint

Units = dict[str, int]
VERSION = 1


@dataclass(frozen=True)
class Cost:
    """Of a step of the whole network.

    Attributes:
        p50_seconds: See `Latency`.
        p99_seconds: See `Latency`.
        bytes: Of the graph.
    """

    p50_seconds: float
    p99_seconds: float
    bytes: int


@dataclass(frozen=True)
class Level:
    """Costs near one set of widths.

    Attributes:
        units: All widths.
        whole: What they cost.
        alone: For each group, what the whole costs with this one at another width.
    """

    units: Units
    whole: Cost
    alone: Mapping[str, Mapping[int, Cost]]


@dataclass(frozen=True)
class Table:
    """Levels from dense to floor."""

    levels: tuple[Level, ...]

    def to_json(self) -> str:
        """As caches keep it."""
        return json.dumps({"version": VERSION, "levels": [asdict(level) for level in self.levels]})

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The inverse of `to_json`.

        Raises:
            ValueError: this is none, or one of another version.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}")
            if not content["levels"]:
                raise ValueError("no levels")
            return cls(
                tuple(
                    Level(
                        {name: int(width) for name, width in level["units"].items()},
                        Cost(**level["whole"]),
                        {
                            group: {int(width): Cost(**cost) for width, cost in costs.items()}
                            for group, costs in level["alone"].items()
                        },
                    )
                    for level in content["levels"]
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no latency table") from error


class Tables(Protocol):
    """A cache of tables."""

    def get(self, key: str) -> Table | None:
        """The table of a key; None if there is none that can be read."""

    def put(self, key: str, table: Table) -> None:
        """Keeps one."""


class NoTables:
    """Nothing is kept."""

    def get(self, key: str) -> Table | None:
        """Never any."""
        del key
        return None

    def put(self, key: str, table: Table) -> None:
        """Forgets it."""


class FolderTables:
    """Tables as files of a folder; it may be emptied at any time.

    Args:
        folder: Made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Table | None:
        """The table of a key; None if there is none that can be read."""
        try:
            return Table.from_json(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, key: str, table: Table) -> None:
        """Keeps one, whole or not at all; where it can not be written it is measured again next time."""
        partial = self._path(key).with_suffix(f".{uuid4().hex}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(table.to_json(), encoding="utf-8")
            failpoint("table.before_rename")
            partial.replace(self._path(key))
        except OSError:
            with suppress(OSError):
                partial.unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


@dataclass(frozen=True)
class GridLevel:
    """A level whose networks are known by the sha256 of their graphs.

    Attributes:
        units: All widths.
        whole: The network of these widths.
        alone: For each group, the networks with this one at another width.
    """

    units: Units
    whole: str
    alone: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Grid:
    """The networks that a table is made of, as graphs.

    Attributes:
        key: Of the table (`pruning.table.table_key`).
        batch: Points a step.
        levels: From dense to floor.
        bytes: Of the step graph of each network; what is measured in its place is smaller.
    """

    key: str
    batch: int
    levels: tuple[GridLevel, ...]
    bytes: Mapping[str, int]

    @property
    def graphs(self) -> list[str]:
        """All of them, the reference first."""
        return [self.reference, *(it for it in self.bytes if it != self.reference)]

    @property
    def reference(self) -> str:
        """The dense network: what all others are measured beside."""
        return self.levels[0].whole

    def table(self, costs: Mapping[str, tuple[float, float]]) -> Table:
        """The table that costs make; a width whose cost is missing is left out, and so is a level.

        Args:
            costs: p50 and p99 in seconds by sha256.

        Raises:
            ValueError: the dense network or the floor is not among them.
        """
        if self.reference not in costs or self.levels[-1].whole not in costs:
            raise ValueError("neither end of the grid may be missing")
        known = {sha256: Cost(*costs[sha256], size) for sha256, size in self.bytes.items() if sha256 in costs}
        return Table(
            tuple(
                Level(
                    level.units,
                    known[level.whole],
                    {
                        group: {width: known[sha256] for width, sha256 in widths.items() if sha256 in known}
                        for group, widths in level.alone.items()
                    },
                )
                for level in self.levels
                if level.whole in known
            )
        )

    def to_json(self) -> dict[str, Any]:
        """As files and the trainer's result carry it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse.

        Raises:
            ValueError: this is none.
        """
        try:
            levels = tuple(
                GridLevel(
                    {name: int(width) for name, width in level["units"].items()},
                    level["whole"],
                    {
                        group: {int(width): sha256 for width, sha256 in widths.items()}
                        for group, widths in level["alone"].items()
                    },
                )
                for level in content["levels"]
            )
            found = cls(content["key"], int(content["batch"]), levels, dict(content["bytes"]))
            found.reference  # noqa: B018  (there is a level)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("no grid") from error
        return found
