"""The latency table of a device class: medians over devices, and what no single device can do to them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.costs import Grid, GridLevel, Table
from pruning.limits import within
from pruning.outcome import Budget, Latency
from server.fleet.reports import ProbeReport
from server.fleet.tables import Answer, ClassTable, ClassTables, believable, of_class

A, B, C = "a" * 64, "b" * 64, "c" * 64
GRID = Grid(
    "f" * 32,
    64,
    (
        GridLevel({"layer0": 16}, A, {"layer0": {16: A, 8: B, 1: C}}),
        GridLevel({"layer0": 1}, C, {"layer0": {1: C}}),
    ),
    {A: 3000, B: 2000, C: 1000},
)
HONEST = {A: (300e-6, 400e-6), B: (200e-6, 250e-6), C: (100e-6, 120e-6)}
EMPTY = ClassTable("pump", "pi4", "0" * 64, GRID, 0.0).asking("p1", 10.0)


def report(
    device: str, costs: dict[str, tuple[float, float]], probe: str = "p1", runtime: str = "1.32.0"
) -> ProbeReport:
    """What a device answers."""
    return ProbeReport(device, probe, 64, costs, {"runtime": runtime}, "", 0)


def scaled(factor: float) -> dict[str, tuple[float, float]]:
    """Figures of a device that is as honest, and so many times slower."""
    return {sha256: (p50 * factor, p99 * factor) for sha256, (p50, p99) in HONEST.items()}


def table_of(answers: dict[str, dict[str, tuple[float, float]]]) -> ClassTable:
    """What is known after these answers."""
    found = EMPTY
    for device, costs in answers.items():
        found = found.answered(report(device, costs)) or found
    return found


# Medians


def test_a_slow_device_of_the_class_tears_no_hole() -> None:
    """Ratios within a device's own run count: what only the slow one has measured stands as the class would have it."""
    others = [scaled(1.0), {A: HONEST[A], C: HONEST[C]}, scaled(9.0)]

    found = of_class(others, A)

    assert found == {sha256: pytest.approx(cost) for sha256, cost in HONEST.items()}


def test_what_few_devices_have_measured_is_left_out() -> None:
    """A graph needs more than half of them."""
    few = {A: HONEST[A], C: HONEST[C]}

    assert of_class([HONEST, few, few], A).keys() == {A, C}
    assert of_class([], A) == {}


FIGURES = st.one_of(
    st.sampled_from([0.0, -1.0, 3600.0, math.nan, math.inf, 1e-12]),
    st.floats(1e-7, 60.0),
    st.floats(allow_nan=True, allow_subnormal=False),
)
LIES = st.dictionaries(st.sampled_from([A, B, C, "d" * 64]), st.tuples(FIGURES, FIGURES), max_size=4)


@pytest.mark.promise("E3")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0.8, 1.25), min_size=n, max_size=n),
            st.lists(LIES, max_size=(n - 1) // 2),
            st.randoms(use_true_random=False),
        )
    )
)
def test_fewer_than_a_third_of_liars_change_no_table_beyond_the_honest(drawn) -> None:
    """Whatever they say, every figure lies between what honest devices measured; where those agree, it is theirs."""
    speeds, lies, order = drawn
    answers = [(f"honest{i}", scaled(speed)) for i, speed in enumerate(speeds)]
    answers += [(f"liar{i}", lie) for i, lie in enumerate(lies)]
    order.shuffle(answers)
    assert 3 * len(lies) < len(answers)

    found = table_of(dict(answers)).costs()

    assert found.keys() == HONEST.keys()
    for sha256, (p50, p99) in HONEST.items():
        assert min(speeds) * p50 * 0.999999 <= found[sha256][0] <= max(speeds) * p50 * 1.000001
        assert min(speeds) * p99 * 0.999999 <= found[sha256][1] <= max(speeds) * p99 * 1.000001
    if len(set(speeds)) == 1:
        plan = [level.whole for level in GRID.table(found).levels]
        assert [it.p50_seconds for it in plan] == pytest.approx([speeds[0] * HONEST[it][0] for it in (A, C)])


@pytest.mark.promise("E3")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.booleans(), st.data())
def test_fewer_than_a_third_of_liars_change_no_decision(honest: int, fits: bool, data: st.DataObject) -> None:
    """A child that honest devices measure inside the budget is inside, one that they measure outside is outside."""
    lies = data.draw(st.lists(LIES, max_size=(honest - 1) // 2))
    budget = Budget(p50_seconds=(210e-6 if fits else 190e-6), batch=64)
    answers = {f"honest{i}": scaled(1 + 0.002 * i) for i in range(honest)}
    answers |= {f"liar{i}": lie for i, lie in enumerate(lies)}

    costs = table_of(answers).costs()

    child, parent = Latency(*costs[B], 64), Latency(*costs[A], 64)
    assert within(child, 2000, parent, budget) is fits


# Answers that are not taken


@pytest.mark.parametrize(
    "absurd",
    [(0.0, 1e-4), (math.nan, 1e-4), (1e-4, math.inf), (3600.0, 3600.0), (-1e-4, 1e-4), (2e-4, 1e-4), (1e-9, 1e-4)],
)
def test_one_absurd_figure_is_enough_to_disbelieve(absurd: tuple[float, float]) -> None:
    """The other figures of that device do not count either."""
    assert believable(HONEST, GRID.bytes, A)
    assert not believable({**HONEST, B: absurd}, GRID.bytes, A)
    assert table_of({"liar": {**HONEST, B: absurd}}).answers == {}


def test_answers_to_nothing_are_not_taken() -> None:
    """Another probe, another batch, a graph that nobody asked about, no reference: as if they had not come."""
    others = [
        report("d", HONEST, probe="p2"),
        replace(report("d", HONEST), batch=1),
        report("d", {**HONEST, "d" * 64: (1e-4, 1e-4)}),
        report("d", {B: HONEST[B]}),
        report("d", {}),
    ]

    assert [EMPTY.answered(it) for it in others] == [None] * len(others)


def test_what_is_sent_again_counts_once_and_nothing_old_replaces_what_is_newer() -> None:
    """Of each device the answer to the newest probe counts."""
    first = EMPTY.answered(report("d", scaled(1.0)))
    assert first is not None
    later = first.asking("p2", 20.0).answered(report("d", scaled(2.0), probe="p2"))
    assert later is not None

    assert first.answered(report("d", scaled(5.0))) is None
    assert later.answered(report("d", scaled(1.0))) is None
    assert later.costs()[A][0] == pytest.approx(600e-6)


def test_answers_of_an_older_runtime_give_way() -> None:
    """The table rests on the runtime of most devices, and says on how many."""
    found = EMPTY
    for i, runtime in enumerate(["1.31.0", "1.32.0", "1.32.0"]):
        found = found.answered(report(f"d{i}", scaled(1 + i), runtime=runtime)) or found

    assert found.runtime == "1.32.0"
    assert sorted(found.counted) == ["d1", "d2"]


# Keeping


def test_a_table_lies_where_cycles_look_for_it(tmp_path: Path) -> None:
    """Under the key of the grid, as soon as one device has answered; what is known of it comes back as it was."""
    tables = ClassTables(tmp_path)
    tables.put(EMPTY)
    before = (tmp_path / "tables" / f"{GRID.key}.json").exists()
    tables.put(known := table_of({"d1": scaled(1.0), "d2": scaled(1.1)}))

    kept = Table.from_json((tmp_path / "tables" / f"{GRID.key}.json").read_text())

    assert not before
    assert tables.get("pi4", "pump") == known
    assert tables.all() == [known]
    assert kept == GRID.table(known.costs())
    tables.remove("pi4", "pump")
    assert tables.get("pi4", "pump") is None


@pytest.mark.parametrize("damage", ["", "{", '{"answers": 3}', "[]", '{"answers": {}}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, damage: str) -> None:
    """Devices are asked again."""
    tables = ClassTables(tmp_path)
    tables.put(EMPTY)
    (tmp_path / "tables" / "pi4.pump.grid").write_text(damage)

    assert tables.get("pi4", "pump") is None


def test_a_table_whose_ends_are_missing_is_none(tmp_path: Path) -> None:
    """Where devices could not measure the floor, cycles are planned on the hub's times."""
    tables = ClassTables(tmp_path)

    tables.put(table_of({"d1": {A: HONEST[A], B: HONEST[B]}}))

    assert not (tmp_path / "tables" / f"{GRID.key}.json").exists()
    assert tables.get("pi4", "pump") is not None


def test_answers_are_bounded() -> None:
    """Of a class of a thousand devices those that answered last count."""
    found = EMPTY
    for i in range(100):
        found = found.asking(f"q{i}", 20.0 + i)
        found = found.answered(report(f"d{i}", HONEST, probe=f"q{i}")) or found

    assert len(found.answers) == 64
    assert "d99" in found.answers
    assert isinstance(found.answers["d99"], Answer)
