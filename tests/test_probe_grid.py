"""Tables made of what graphs cost elsewhere: the graphs, the table they make, and a search that measures nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fits import SMALL, fitted, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.graph_check import check_graph
from detectors.training.export import step_graph
from detectors.training.light import light_graph
from detectors.training.stretches import Stretches
from pruning import search as searching
from pruning.costs import Grid
from pruning.cycle import CycleOptions, run_cycle
from pruning.outcome import Budget, Latency
from pruning.search import Floor, Plan, Search
from pruning.table import (
    FolderTables,
    NoTables,
    graph_of,
    grid,
    level_units,
    measured_table,
    near,
    probe_grid,
    table_key,
)

PI = {"device_class": "pi4"}
BATCH = 16
DATA = Stretches.of([machine(900)])


def by_bytes(sizes: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """A device on which a step takes a nanosecond for each byte of the network."""
    return {sha256: (size * 1e-9, size * 2e-9) for sha256, size in sizes.items()}


# Graphs


@pytest.mark.parametrize("kind", [it for it in SMALL if it != "isolation_forest"])
def test_a_light_graph_is_the_same_graph_without_weights(kind: str, tmp_path: Path) -> None:
    """When it is loaded the runtime has the operations of the whole graph: no weight is made in a step."""

    def operations(graph: bytes) -> list[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return sorted(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

    whole = step_graph(untrained(kind, 4))
    light = light_graph(whole)

    check_graph(light)  # devices load nothing else
    assert operations(light) == operations(whole)
    assert len(light) < len(whole)


@pytest.mark.parametrize("kind", ["lstm", "gru", "autoencoder", "conv_autoencoder", "ensemble"])
def test_detectors_of_the_same_shape_have_the_same_graphs(kind: str) -> None:
    """To the byte, whatever they learned: devices that have measured one need not measure the other."""
    assert light_graph(step_graph(untrained(kind, 4, seed=1))) == light_graph(step_graph(untrained(kind, 4, seed=2)))


def test_a_forest_keeps_its_trees() -> None:
    """Time depends on them: nothing is left out."""
    forest = untrained("isolation_forest", 3, trees=3, samples=16)

    def trees(graph: bytes) -> list[onnx.NodeProto]:
        return [it for it in onnx.load_from_string(graph).graph.node if it.op_type == "TreeEnsembleRegressor"]

    assert trees(light_graph(step_graph(forest))) == trees(step_graph(forest)) != []


def test_the_graphs_of_a_wide_network_are_few_and_small() -> None:
    """An LSTM 2x128 over 38 sensors: at most 64 graphs and half a megabyte, where whole they would be ten."""
    wide = untrained("lstm", 38, width=128)

    found, graphs = probe_grid(wide, 64, PI)

    assert len(graphs) <= 64
    assert sum(map(len, graphs.values())) < 512 << 10
    assert sum(found.bytes.values()) > 10 << 20


@pytest.mark.parametrize("most", [64, 30, 12])
def test_a_grid_that_is_too_fine_is_made_coarser(most: int) -> None:
    """Fewer widths, then fewer levels; dense network and floor stay, and each level knows the floor of each group."""
    wide = untrained("ensemble", 4, **{"lstm.width": 96, "autoencoder.width": 64})

    found, graphs = probe_grid(wide, 64, PI, most)

    levels = list(level_units(wide.network))
    ends = [found.levels[0].units, found.levels[-1].units]
    assert ends == [levels[0], levels[-1]]
    assert len(graphs) <= most
    for level in found.levels:
        for name, widths in level.alone.items():
            assert level.units[name] in widths
            assert set(widths) <= set(grid(wide.network.units[name]))


@pytest.mark.parametrize("kind", ["lstm", "lstm_autoencoder", "variational_autoencoder"])
def test_a_grid_that_is_drawn_again_is_the_same(kind: str) -> None:
    """Graph by graph, so that what devices have measured of it still counts."""
    parent = untrained(kind, 4)

    assert probe_grid(parent, BATCH, PI, 8) == probe_grid(parent, BATCH, PI, 8)


def test_a_grid_comes_back_from_json() -> None:
    """As the trainer gives it and as files keep it; what is none is told."""
    found, _ = probe_grid(fitted("lstm"), BATCH, PI)

    assert Grid.from_json(found.to_json()) == found
    for damaged in ({}, {**found.to_json(), "levels": []}, {**found.to_json(), "levels": 3}):
        with pytest.raises(ValueError, match="no grid"):
            Grid.from_json(damaged)


# The table


def test_the_table_of_a_grid_is_shaped_like_one_that_is_measured() -> None:
    """The same levels, groups, widths and bytes; its times are those of the devices."""
    parent = fitted("lstm", width=32)

    found, _ = probe_grid(parent, BATCH, PI, most=1000)
    table = found.table(by_bytes(found.bytes))
    measured = measured_table(parent, BATCH)

    for ours, theirs in zip(table.levels, measured.levels, strict=True):
        assert ours.units == theirs.units
        assert {name: list(costs) for name, costs in ours.alone.items()} == near(parent.network, ours.units)
        assert ours.whole.bytes == theirs.whole.bytes
        assert ours.whole.p50_seconds == ours.whole.bytes * 1e-9
        for name, costs in ours.alone.items():
            assert {width: cost.bytes for width, cost in costs.items()} == {
                width: cost.bytes for width, cost in theirs.alone[name].items()
            }
    assert found.key != table_key(parent, BATCH)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_costs_that_are_missing_leave_their_widths_out(data: st.DataObject) -> None:
    """A table is made of what there is; without the dense network or the floor there is none."""
    found, _ = GRID
    gone = data.draw(st.sets(st.sampled_from(found.graphs)))
    costs = {sha256: cost for sha256, cost in by_bytes(found.bytes).items() if sha256 not in gone}

    if {found.reference, found.levels[-1].whole} & gone:
        with pytest.raises(ValueError, match="end of the grid"):
            found.table(costs)
        return
    table = found.table(costs)

    known = {size for sha256, size in found.bytes.items() if sha256 not in gone}
    assert {cost.bytes for level in table.levels for each in level.alone.values() for cost in each.values()} <= known
    assert all(level.units[name] in costs for level in table.levels for name, costs in level.alone.items())


GRID = probe_grid(fitted("lstm", width=32), BATCH, PI)


# The search


def told(folder: Path, costs: Mapping[str, tuple[float, float]] | None = None) -> FolderTables:
    """Tables with that of the devices."""
    found, _ = GRID
    tables = FolderTables(folder)
    tables.put(found.key, found.table(costs or by_bytes(found.bytes)))
    return tables


def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring here fails."""

    def measure(*_args: object, **_options: object) -> list[Latency]:
        pytest.fail("the hub's own time was looked at")

    monkeypatch.setattr(searching, "measure", measure)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
def test_the_search_picks_the_same_plan_from_the_same_costs(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of devices and one that was measured here, with the same times: the same widths."""
    parent = fitted("lstm", width=32)
    widths = list(itertools.product(grid(32), grid(32)))
    # Where times of groups add up, a table foretells what a whole takes: a device of that kind.
    seconds = {
        len(graph_of(parent, {"layer0": first, "layer1": second})): 1e-6 * (first + 2 * second + 5)
        for first, second in widths
    }
    assert len(seconds) == len(widths)
    budget = Budget(p50_seconds=share * 101e-6, batch=BATCH)
    costs = {sha256: (seconds[size], 2 * seconds[size]) for sha256, size in GRID[0].bytes.items()}

    def device(graphs: list[bytes], batch: int, *, rounds: int = 9) -> list[Latency]:
        return [Latency(seconds.get(len(it), 101e-6), 2 * seconds.get(len(it), 101e-6), batch) for it in graphs]

    monkeypatch.setattr("pruning.table.measure", device)
    monkeypatch.setattr(searching, "measure", device)
    here = Search(parent, DATA, budget, "taylor", 0, NoTables()).plan()
    nothing_is_measured(monkeypatch)
    there = Search(parent, DATA, budget, "taylor", 0, told(tmp_path, costs), PI).plan()

    assert isinstance(here, Plan)
    assert isinstance(there, Plan)
    assert there.units == here.units
    assert there.latency.p50_seconds == pytest.approx(here.latency.p50_seconds)


def test_a_budget_below_the_devices_floor_says_what_can_be_reached_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor's time is the table's, not the hub's."""
    nothing_is_measured(monkeypatch)
    found, _ = GRID
    floor = found.bytes[found.levels[-1].whole] * 1e-9

    plan = Search(
        fitted("lstm", width=32), DATA, Budget(p50_seconds=floor / 2, batch=BATCH), "taylor", 0, told(tmp_path), PI
    ).plan()

    assert isinstance(plan, Floor)
    assert plan.latency.p50_seconds == pytest.approx(floor)


def test_a_cycle_for_devices_uses_none_of_the_hubs_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices a hundred times slower than the hub the child is made for their budget, built once, and foretold."""
    nothing_is_measured(monkeypatch)
    monkeypatch.setattr("pruning.cycle.measure", searching.measure)
    parent, (found, _) = fitted("lstm", width=32), GRID
    slow = {sha256: (100 * p50, 100 * p99) for sha256, (p50, p99) in by_bytes(found.bytes).items()}
    dense = slow[found.reference][0]

    candidate = run_cycle(
        parent,
        DATA,
        Budget(p50_seconds=dense / 2, batch=BATCH),
        parent_version=1,
        version=2,
        options=CycleOptions(tables=told(tmp_path, slow), where=PI, updates=20),
    )

    child = candidate.outcome.child
    assert child is not None
    assert candidate.outcome.plan is not None
    assert candidate.outcome.plan["foretold"] is True
    assert 0.2 * dense < child.p50_seconds <= dense / 2
    assert candidate.outcome.parent.p50_seconds == pytest.approx(dense)


def test_without_a_table_of_devices_the_hub_plans(tmp_path: Path) -> None:
    """Until they have answered: a class is not kept waiting for its first child."""
    finder = Search(
        fitted("lstm", width=32), DATA, Budget(speedup=1.1, batch=BATCH), "taylor", 0, FolderTables(tmp_path), PI
    )

    assert not finder.foretold


def test_time_does_not_depend_on_weights() -> None:
    """A light graph takes what the whole one takes, side by side: medians of interleaved rounds."""
    from detectors.runtime import Runtime
    from detectors.timing import interleaved, stepping

    whole = step_graph(untrained("lstm", 8, width=64))
    calls = [stepping(Runtime(it), 16) for it in (whole, light_graph(whole))]

    times = interleaved(calls, rounds=15, seconds=0.01)

    ratios = [np.median(light) / np.median(full) for full, light in zip(*times, strict=True)]
    assert 0.75 < float(np.median(ratios)) < 1.33
