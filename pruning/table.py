"""What widths cost on this machine: the step graphs of many widths, measured side by side in the serving runtime.

Times of groups do not add up: the cost of a layer is the product of its width and its neighbour's. So there is a table
at each of a few levels, from the dense network down to the floor: there one group at a time is made wider or narrower
while the others stay, and near a level differences do add up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from detectors.failpoints import failpoint
from detectors.training.export import step_graph
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from pruning.groups import prunable
from pruning.latency import measure
from pruning.machine import machine
from pruning.outcome import Latency

Units = dict[str, int]

GRID = 8  # widths are multiples of a vector register; between them a network is not faster ("hysteresis", Yin 2019)
NARROW = (1, 2, 4, 8, 12)  # widths of groups of at most two registers: of those, bytes and products are what is left
LEVEL = 0.5  # from one level to the next
NEAR = (0.25, 2.5)  # widths of a level's table, as shares of the level's own
ROUNDS = 5
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


def table_key(fitted: Fitted, batch: int) -> str:
    """What the times of a table depend on: shapes, trees, options, batch, runtime and machine; not on weights."""
    network = fitted.network
    facts = {
        "kind": network.kind,
        "features": network.n_features,
        "units": network.units,
        "size": [network.parameters_count, network.macs],  # two forests of as many trees differ in these
        "options": network.options,
        "error": asdict(fitted.how),
        "views": [view.form.name for view in fitted.views],
        "batch": batch,
        "machine": machine(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def table_of(fitted: Fitted, batch: int, tables: Tables) -> Table:
    """The table of a network, from the cache or measured now."""
    key = table_key(fitted, batch)
    table = tables.get(key)
    if table is None:
        table = measured_table(fitted, batch)
        tables.put(key, table)
    return table


def measured_table(fitted: Fitted, batch: int) -> Table:
    """Measures all levels, in one interleaved run, with untrained weights (time does not depend on them).

    A level's differences are taken within the run.
    """
    network = fitted.network
    levels = list(level_units(network))
    wanted: list[Units] = []
    for units in levels:
        wanted.append(units)
        wanted += [{**units, name: width} for name, widths in near(network, units).items() for width in widths]
    distinct = {_key(units): units for units in wanted}
    costs = dict(zip(distinct, measured_costs(fitted, list(distinct.values()), batch), strict=True))
    return Table(
        tuple(
            Level(
                units,
                costs[_key(units)],
                {
                    name: {width: costs[_key({**units, name: width})] for width in widths}
                    for name, widths in near(network, units).items()
                },
            )
            for units in levels
        )
    )


def measured_costs(fitted: Fitted, widths: list[Units], batch: int, rounds: int = ROUNDS) -> list[Cost]:
    """Costs of networks of the given widths, untrained, side by side."""
    graphs = [graph_of(fitted, units) for units in widths]
    times = measure(graphs, batch, rounds=rounds)
    return [cost_of(latency, graph) for latency, graph in zip(times, graphs, strict=True)]


def graph_of(fitted: Fitted, units: Mapping[str, int]) -> bytes:
    """The step graph of a detector with other widths, untrained."""
    return step_graph(fitted.with_network(fitted.network.resized(units)))


def cost_of(latency: Latency, graph: bytes) -> Cost:
    """Time and bytes of a graph."""
    return Cost(latency.p50_seconds, latency.p99_seconds, len(graph))


def level_units(network: Network) -> Iterator[Units]:
    """Widths of each level: the dense ones, then halves of every group that may lose units, down to the grid."""
    widths = {group.name: group.width for group in prunable(network)}
    floor = {name: on_grid(1, width) for name, width in widths.items()}
    share, units = 1.0, widths
    yield units
    while units != floor:
        share *= LEVEL
        units = {name: on_grid(width * share, width) for name, width in widths.items()}
        yield units


def near(network: Network, units: Units) -> dict[str, list[int]]:
    """Widths that a level's table has for each group, ascending; the level's own among them."""
    low, high = NEAR
    return {
        group.name: sorted(
            {units[group.name]}
            | {width for width in grid(group.width) if low <= width / units[group.name] <= high}
            | {on_grid(1, group.width)}
        )
        for group in prunable(network)
    }


def grid(width: int) -> list[int]:
    """Widths on offer, ascending: steps of `GRID`, coarser where wide, and the dense width itself.

    Narrow groups go down to one unit.
    """
    if width <= 2 * GRID:
        return [*(it for it in NARROW if it < width), width]
    widths, at = [], GRID
    while at < width:
        widths.append(at)
        at += GRID * max(1, 2 ** max(0, math.floor(math.log2(at / 64)) + 1))
    return [*widths, width]


def on_grid(width: float, dense: int) -> int:
    """The next width of the grid, at most the dense one."""
    return next((it for it in grid(dense) if it >= width), dense)


def _key(units: Units) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(units.items()))
