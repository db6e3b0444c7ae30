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
from dataclasses import asdict

from detectors.training.export import step_graph
from detectors.training.fit import seeded
from detectors.training.fitted import Fitted
from detectors.training.light import light_graph
from detectors.training.networks import Network
from pruning.costs import Cost, FolderTables, Grid, GridLevel, Level, NoTables, Table, Tables, Units
from pruning.groups import prunable
from pruning.latency import measure
from pruning.machine import machine
from pruning.outcome import Latency

__all__ = [
    "Cost",
    "FolderTables",
    "Level",
    "NoTables",
    "Table",
    "Tables",
    "Units",
    "cost_of",
    "graph_of",
    "grid",
    "level_units",
    "measured_table",
    "near",
    "on_grid",
    "probe_grid",
    "table_key",
    "table_of",
]

GRID = 8  # widths are multiples of a vector register; between them a network is not faster ("hysteresis", Yin 2019)
NARROW = (1, 2, 4, 8, 12)  # widths of groups of at most two registers: of those, bytes and products are what is left
LEVEL = 0.5  # from one level to the next
NEAR = (0.25, 2.5)  # widths of a level's table, as shares of the level's own
ROUNDS = 5
MOST_GRAPHS = 64  # that a device is asked to measure for a table


def table_key(fitted: Fitted, batch: int, where: Mapping[str, str] | None = None) -> str:
    """What the times of a table depend on: shapes, trees, options, batch, runtime and machine; not on weights.

    Args:
        fitted: The dense detector.
        batch: Points a step.
        where: What is measured on; None: this machine.
    """
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
        "machine": machine() if where is None else dict(where),
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
    wanted = [(units, near(network, units)) for units in level_units(network)]
    distinct = _distinct(wanted)
    costs = dict(zip(distinct, measured_costs(fitted, list(distinct.values()), batch), strict=True))
    return Table(
        tuple(
            Level(
                units,
                costs[_key(units)],
                {
                    name: {width: costs[_key({**units, name: width})] for width in widths}
                    for name, widths in around.items()
                },
            )
            for units, around in wanted
        )
    )


def probe_grid(
    fitted: Fitted, batch: int, where: Mapping[str, str], most: int = MOST_GRAPHS
) -> tuple[Grid, dict[str, bytes]]:
    """The networks of a table as graphs to be measured elsewhere, the dense one first.

    Args:
        fitted: The dense detector.
        batch: Points a step.
        where: What they will be measured on.
        most: Graphs, about: where the grid has more of them it is made coarser.

    Returns:
        The grid, and the graphs by sha256, without their weights (`detectors.training.light`).
    """
    wanted = _coarser(fitted.network, most)
    names, sizes, graphs = {}, {}, {}
    for key, units in _distinct(wanted).items():
        with seeded(0):  # what is left of untrained weights is the same each time
            whole = graph_of(fitted, units)
        light = light_graph(whole)
        sha256 = hashlib.sha256(light).hexdigest()
        names[key], sizes[sha256], graphs[sha256] = sha256, len(whole), light
    levels = tuple(
        GridLevel(
            units,
            names[_key(units)],
            {name: {width: names[_key({**units, name: width})] for width in widths} for name, widths in around.items()},
        )
        for units, around in wanted
    )
    return Grid(table_key(fitted, batch, where), batch, levels, sizes), graphs


def _distinct(wanted: list[tuple[Units, dict[str, list[int]]]]) -> dict[tuple[tuple[str, int], ...], Units]:
    """Every network that levels speak of, once; the dense one first."""
    found: dict[tuple[tuple[str, int], ...], Units] = {}
    for units, around in wanted:
        for each in [units, *({**units, name: width} for name, widths in around.items() for width in widths)]:
            found.setdefault(_key(each), each)
    return found


def _coarser(network: Network, most: int) -> list[tuple[Units, dict[str, list[int]]]]:
    """Levels and the widths near them, as fine as so many graphs allow: fewer widths first, then fewer levels."""
    for level in (LEVEL, LEVEL**2, LEVEL**3):
        for widths in (60, 6, 4, 3, 2, 1):
            wanted = [
                (units, {name: _thinned(around, units[name], widths) for name, around in near(network, units).items()})
                for units in level_units(network, level)
            ]
            if len(_distinct(wanted)) <= most:
                return wanted
    return wanted


def _thinned(widths: list[int], own: int, most: int) -> list[int]:
    """So many widths at most beside a level's own, evenly among those there are, the narrowest among them."""
    others = [width for width in widths if width != own]
    if len(others) > most:
        others = [others[round(i * (len(others) - 1) / max(most - 1, 1))] for i in range(most)]
    return sorted({own, *others})


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


def level_units(network: Network, level: float = LEVEL) -> Iterator[Units]:
    """Widths of each level: the dense ones, then a share of every group that may lose units, down to the grid."""
    widths = {group.name: group.width for group in prunable(network)}
    floor = {name: on_grid(1, width) for name, width in widths.items()}
    share, units = 1.0, widths
    yield units
    while units != floor:
        share *= level
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
