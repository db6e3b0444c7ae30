"""Times of steps, and tables of them: measured side by side in the serving runtime, kept, and measured anew."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from fits import fitted, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.training.export import step_graph
from detectors.training.fitted import ErrorOptions, Fitted
from detectors.training.networks import LSTM, Autoencoder, Network
from detectors.training.stretches import Stretches
from pruning import machine as this_machine
from pruning.cycle import CycleOptions, run_cycle
from pruning.latency import measure
from pruning.outcome import Budget
from pruning.table import (
    GRID,
    NEAR,
    Cost,
    FolderTables,
    Level,
    NoTables,
    Table,
    grid,
    level_units,
    measured_table,
    near,
    on_grid,
    table_key,
    table_of,
)

HUGE = Cost(3600.0, 7200.0, 1)  # of no network: whoever says so has read it in a table


def wide(width: int) -> Fitted:
    """An untrained LSTM 2 x width."""
    parent = untrained("lstm", 8)
    return parent.with_network(parent.network.resized({"layer0": width, "layer1": width}))


def told_of(network: Network) -> Table:
    """A table that says of every width that a step takes an hour."""
    return Table(
        tuple(
            Level(units, HUGE, {name: dict.fromkeys(widths, HUGE) for name, widths in near(network, units).items()})
            for units in level_units(network)
        )
    )


# Measuring


def test_a_wide_graph_is_slower_than_a_narrow_one() -> None:
    """2x128 against 2x8 in one run, whatever their order; quantiles are ordered and say their batch."""
    slow, fast = step_graph(wide(128)), step_graph(wide(8))

    times = measure([slow, fast, slow], 64, rounds=3)

    assert len(times) == 3
    assert min(times[0].p50_seconds, times[2].p50_seconds) > 1.5 * times[1].p50_seconds
    assert all(0 < each.p50_seconds <= each.p99_seconds < 1 for each in times)
    assert {each.batch for each in times} == {64}


def test_a_graph_that_takes_several_points_can_be_measured() -> None:
    """A detector with a stride is timed by the step, whatever a step takes."""
    (time,) = measure([step_graph(untrained("autoencoder", 3, stride=4))], 8, rounds=1)

    assert 0 < time.p50_seconds < 1


def test_measuring_leaves_garbage_collection_as_it_was() -> None:
    """Switched off only meanwhile, also where the caller had switched it off before."""
    graph = step_graph(wide(8))
    gc.disable()
    try:
        measure([graph], 1, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()
    measure([graph], 1, rounds=1)
    assert gc.isenabled()


# Widths on offer


@pytest.mark.parametrize(
    ("dense", "wanted"),
    [
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (1, [1]),
        (12, [1, 2, 4, 8, 12]),
        (16, [1, 2, 4, 8, 12, 16]),
        (17, [8, 16, 17]),
        (32, [8, 16, 24, 32]),
        (64, [8, 16, 24, 32, 40, 48, 56, 64]),
        (128, [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]),
        (200, [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 200]),
    ],
)
def test_the_grid_is_finer_where_narrow(dense: int, wanted: list[int]) -> None:
    """Multiples of a vector register, in steps that double with the width; the dense width ends it.

    Up to two registers there are narrower ones, down to one unit and never to none.
    """
    assert grid(dense) == wanted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 4096), st.floats(0.5, 5000))
def test_the_next_width_of_the_grid(dense: int, width: float) -> None:
    """The narrowest that is wide enough, at most the dense one; where wide all but that are multiples of the grid."""
    widths = grid(dense)

    assert widths == sorted(set(widths))
    assert widths[0] >= 1
    assert dense <= 2 * GRID or all(each % GRID == 0 for each in widths[:-1])
    assert widths[-1] == dense
    assert on_grid(width, dense) == min((each for each in widths if each >= width), default=dense)
    assert len(widths) < 60


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=3))
def test_levels_go_down_from_dense_to_the_floor(widths: list[int]) -> None:
    """First the network itself, then never wider and somewhere narrower; widths on the grid, none below it."""
    network = LSTM(1, tuple(widths))

    levels = list(level_units(network))

    assert levels[0] == network.units
    for upper, lower in itertools.pairwise(levels):
        assert lower != upper
        assert all(lower[name] <= upper[name] for name in upper)
    for units in levels[1:]:
        assert all(width in grid(network.units[name]) for name, width in units.items())
    assert levels[-1] == {name: GRID if width > 2 * GRID else 1 for name, width in network.units.items()}


def test_levels_leave_protected_groups_out() -> None:
    """An autoencoder's bottleneck is not in them."""
    levels = list(level_units(Autoencoder(2, 8, {"encoder0": 32, "bottleneck": 8, "decoder0": 32})))

    assert levels == [{"encoder0": width, "decoder0": width} for width in (32, 16, 8)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_near_a_level_lie_widths_of_the_grid(widths: list[int]) -> None:
    """Its own width, the floor, and those of the grid within a factor; every width of the grid is near some level."""
    network = LSTM(1, tuple(widths))
    offered: dict[str, set[int]] = {name: set() for name in network.units}

    for units in level_units(network):
        for name, around in near(network, units).items():
            assert around == sorted(set(around))
            assert {units[name], on_grid(1, network.units[name])} <= set(around) <= set(grid(network.units[name]))
            others = set(around) - {units[name], on_grid(1, network.units[name])}
            assert all(NEAR[0] <= width / units[name] <= NEAR[1] for width in others)
            offered[name] |= set(around)

    assert all(offered[name] == set(grid(width)) for name, width in network.units.items())


# Tables


def test_a_table_holds_what_networks_of_its_widths_take() -> None:
    """Levels from dense to floor; at a level's own width a group costs the whole; bytes are those of the graph."""
    parent = wide(24)

    table = measured_table(parent, 16)

    assert [level.units for level in table.levels] == list(level_units(parent.network))
    for level in table.levels:
        assert {name: sorted(costs) for name, costs in level.alone.items()} == near(parent.network, level.units)
        for name, costs in level.alone.items():
            assert costs[level.units[name]] == level.whole
            assert [costs[width].bytes for width in sorted(costs)] == sorted(cost.bytes for cost in costs.values())
            assert all(0 < cost.p50_seconds <= cost.p99_seconds < 1 for cost in costs.values())
    assert table.levels[0].whole.bytes == len(step_graph(parent))
    narrow = parent.with_network(parent.network.resized({"layer0": 8}))
    assert table.levels[0].alone["layer0"][8].bytes == len(step_graph(narrow))


COSTS = st.builds(Cost, st.floats(1e-7, 1), st.floats(1e-7, 1), st.integers(1, 1 << 40))
NAMES = st.sampled_from(["layer0", "lstm.layer1", "décodeur"])
ALONE = st.dictionaries(NAMES, st.dictionaries(st.integers(1, 4096), COSTS, max_size=3))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.builds(Level, st.dictionaries(NAMES, st.integers(1, 4096)), COSTS, ALONE), min_size=1, max_size=3))
def test_a_table_comes_back_from_json(levels: list[Level]) -> None:
    """Every number to the last bit; widths are whole numbers again, not text."""
    table = Table(tuple(levels))

    assert Table.from_json(table.to_json()) == table


DAMAGED = {
    "empty": "",
    "torn": told_of(LSTM(1, (8,))).to_json()[:-20],
    "another version": told_of(LSTM(1, (8,))).to_json().replace('"version": 1', '"version": 0'),
    "a list": "[1, 2]",
    "a number": "3",
    "no levels": '{"version": 1}',
    "none of its levels": '{"version": 1, "levels": []}',
    "levels of another kind": '{"version": 1, "levels": [3]}',
    "a cost too many": told_of(LSTM(1, (8,))).to_json().replace('"bytes"', '"volts": 3, "bytes"'),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_table_is_told(text: str) -> None:
    """As a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r".+"):
        Table.from_json(text)


def test_a_table_that_is_kept_is_used(tmp_path: Path) -> None:
    """Nothing is measured: the answer is what the file says, absurd as it is; of another network it says nothing."""
    parent, tables = wide(16), FolderTables(tmp_path / "tables")
    tables.put(table_key(parent, 16), told_of(parent.network))

    assert table_of(parent, 16, tables) == told_of(parent.network)
    assert table_of(parent, 1, tables) != told_of(parent.network)
    assert len(list((tmp_path / "tables").iterdir())) == 2  # the one measured just now is kept too
    assert table_of(parent, 1, tables) == table_of(parent, 1, FolderTables(tmp_path / "tables"))


def test_nothing_is_kept_where_nothing_is_to_be_kept() -> None:
    """Each look measures."""
    tables = NoTables()
    tables.put("key", told_of(LSTM(1, (8,))))

    assert tables.get("key") is None


@pytest.mark.parametrize("damage", [DAMAGED["torn"].encode(), b"\xff\xfe\x00", b""], ids=["torn", "bytes", "empty"])
def test_a_damaged_table_is_measured_anew(tmp_path: Path, damage: bytes) -> None:
    """And replaced; no half of it is left beside it."""
    parent, tables = wide(8), FolderTables(tmp_path)
    (tmp_path / f"{table_key(parent, 16)}.json").write_bytes(damage)

    table = table_of(parent, 16, tables)

    assert [level.units for level in table.levels] == list(level_units(parent.network))
    assert tables.get(table_key(parent, 16)) == table
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_folder_that_can_not_be_written_fails_no_cycle(tmp_path: Path) -> None:
    """A file stands where it should be: the table is measured each time, and the plan is made."""
    blocked = tmp_path / "tables"
    blocked.write_text("in the way")
    parent, tables = fitted("lstm"), FolderTables(blocked)

    candidate = run_cycle(
        parent,
        Stretches.of([machine(700)]),
        Budget(size_bytes=len(step_graph(parent)) * 2 // 3, batch=16),
        parent_version=1,
        version=2,
        options=CycleOptions(dry_run=True, tables=tables),
    )

    assert candidate.outcome.outcome == "planned", candidate.outcome.reason
    assert blocked.read_text() == "in the way"
    assert list(tmp_path.iterdir()) == [blocked]


def test_a_key_names_what_times_depend_on() -> None:
    """Widths, features, options, batch and how errors are made change it; weights do not."""
    parent = untrained("autoencoder", 3)
    same = [parent.with_network(parent.network.resized({})), untrained("autoencoder", 3, seed=5)]
    others = [
        parent.with_network(parent.network.resized({"encoder0": 8})),
        untrained("autoencoder", 4),
        untrained("autoencoder", 3, window=9),
        untrained("autoencoder", 3, stride=2),
        untrained("autoencoder", 3, error=ErrorOptions(aggregate="mean")),
        untrained("gru", 3),
        untrained("lstm", 3),
    ]

    keys = [table_key(each, 16) for each in others] + [table_key(parent, 16), table_key(parent, 17)]

    assert {table_key(each, 16) for each in same} == {table_key(parent, 16)}
    assert len(set(keys)) == len(keys)
    assert all(key.isalnum() for key in keys)
    assert table_key(replace(parent, features=("a", "b", "c")), 16) == table_key(parent, 16)


def test_forests_of_as_many_trees_have_tables_of_their_own() -> None:
    """Bytes and time of a forest depend on its nodes."""
    first, second = (untrained("isolation_forest", 3, seed=seed) for seed in (0, 1))

    assert first.network.units == second.network.units
    assert table_key(first, 16) != table_key(second, 16)
    assert table_key(first, 16) == table_key(untrained("isolation_forest", 3, seed=0), 16)


def test_the_machine_is_told_by_its_processor() -> None:
    """The model, as Linux says it; two machines of one name may differ in nothing else."""
    told = this_machine.machine()

    assert told.keys() == {"node", "machine", "processor", "runtime"}
    known = this_machine.PROCESSORS.read_text() if this_machine.PROCESSORS.is_file() else ""
    if "model name" in known:
        assert told["processor"]
        assert f": {told['processor']}" in known
