"""Search: the widths that meet a budget at the least damage, layers and levers where those do not get there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from fits import FOUR, SMALL, fitted, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import InvalidInputError
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning import search, table
from pruning.damage import damage, losses
from pruning.groups import prunable
from pruning.knapsack import Choice
from pruning.latency import measure
from pruning.limits import limits, said, within
from pruning.outcome import MARGIN, Budget, Latency
from pruning.search import AS_MEASURED, DEEP, Floor, Plan, Search, nearest, stages, total, worthwhile
from pruning.structures import Structure, restructured
from pruning.table import Cost, FolderTables, Level, NoTables, Table, Tables, Units, graph_of, grid

TRAINED = 150
DATA = Stretches.of([machine(900)])
BATCH = 16
NOISE = 1.3  # what a second measurement may add on a shared machine


def parent_of(kind: str) -> Fitted:
    """Wide enough for a grid of four widths."""
    return fitted(kind, updates=TRAINED, width=32)


@cache
def long_window() -> Fitted:
    """An autoencoder whose window is most of it."""
    options = SMALL["autoencoder"] | {"window": 48}
    return fit("autoencoder", DATA, FOUR, seed=0, options=options, how=FitOptions(updates=60))


def searched(parent: Fitted, budget: Budget, tables: Tables) -> tuple[Search, Plan | Floor]:
    """A search and what it found."""
    found = Search(parent, DATA, budget, "taylor", 0, tables)
    return found, found.plan()


Time = Callable[[bytes], float]


def timed(monkeypatch: pytest.MonkeyPatch, time: Time, whole: Time | None = None) -> None:
    """A device on which a step takes what its graph says; p99 is twice that. `whole` for all but tables."""

    def device(of: Time) -> Callable[..., list[Latency]]:
        def measured(graphs: Sequence[bytes], batch: int, *, rounds: int = 9) -> list[Latency]:
            return [Latency(of(graph), 2 * of(graph), batch) for graph in graphs]

        return measured

    monkeypatch.setattr(table, "measure", device(time))
    monkeypatch.setattr(search, "measure", device(whole or time))


def by_bytes(graph: bytes) -> float:
    """A nanosecond a byte: an LSTM 2x32 takes 56 us."""
    return len(graph) * 1e-9


@cache
def widths_and_damage(kind: str) -> dict[tuple[int, ...], tuple[int, float]]:
    """Bytes and damage of all widths of the grid."""
    parent = parent_of(kind)
    curves = damage(parent, DATA, "taylor", 0, losses(parent, DATA, 0))
    found = {}
    for widths in itertools.product(*(grid(parent.network.units[name]) for name in curves)):
        units = dict(zip(curves, widths, strict=True))
        found[widths] = len(graph_of(parent, units)), sum(curves[name].at(width) for name, width in units.items())
    return found


# What is chosen


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_nothing_less_damaging_fits_the_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the roomiest budget down: the same damage as trying all widths, and never less for a tighter budget.

    Bytes decide; that nothing is timed saves a minute.
    """
    timed(monkeypatch, by_bytes)
    parent, sizes = parent_of(kind), widths_and_damage(kind)
    dense, before = len(step_graph(parent)), 0.0
    floor = min(size for size, _ in sizes.values()) / dense

    for share in (1.0, 0.9, 0.75, 0.6, max(0.5, floor), max(0.45, floor)):
        budget = Budget(size_bytes=round(dense * share), batch=BATCH)
        finder, plan = searched(parent, budget, NoTables())
        best = min(lost for size, lost in sizes.values() if size <= budget.size_bytes)

        assert isinstance(plan, Plan)
        if best <= DEEP:
            assert plan.structure == Structure()
            assert total(plan) == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert plan.bytes == len(graph_of(finder.base(plan.structure), plan.units))
        assert plan.bytes <= budget.size_bytes
        assert total(plan) >= before
        before = total(plan)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(p50_seconds=80e-6, batch=BATCH),
        Budget(p50_seconds=60e-6, batch=BATCH),  # the dense network would be on the edge of it
        Budget(p50_seconds=30e-6, batch=BATCH),
        Budget(p99_seconds=60e-6, batch=BATCH),
        Budget(speedup=1.0, batch=BATCH),
        Budget(speedup=2.2, batch=BATCH),
        Budget(size_bytes=30_000, batch=BATCH),  # bytes are exact: no margin
        Budget(p50_seconds=80e-6, size_bytes=30_000, batch=BATCH),
        Budget(p50_seconds=30e-6, size_bytes=50_000, batch=BATCH),
        Budget(p50_seconds=50e-6, p99_seconds=60e-6, speedup=1.5, size_bytes=40_000, batch=BATCH),
    ],
    ids=str,
)
def test_the_least_damaging_inside_nine_tenths_of_the_budget(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all limits that are set. Times are those of a made-up device: real ones are never twice the same."""
    timed(monkeypatch, by_bytes)
    parent, sizes = parent_of("lstm"), widths_and_damage("lstm")
    dense = Latency(by_bytes(step_graph(parent)), 2 * by_bytes(step_graph(parent)), BATCH)

    _, plan = searched(parent, budget, NoTables())

    fitting = [
        lost
        for size, lost in sizes.values()
        if within(Latency(size * 1e-9, 2 * size * 1e-9, BATCH), size, dense, budget, MARGIN)
    ]
    assert isinstance(plan, Plan)
    assert within(plan.latency, plan.bytes, plan.dense, budget, MARGIN)
    assert total(plan) == pytest.approx(min(fitting), rel=1e-6, abs=1e-9)
    assert plan.dense == dense


def test_the_margin_is_nine_tenths() -> None:
    """Of times; the device must not live on the edge of its budget."""
    assert MARGIN == 0.9


def test_a_network_inside_the_budget_keeps_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that cost and do nothing. Times are those of a made-up device."""
    timed(monkeypatch, by_bytes)
    parent = parent_of("lstm")

    _, plan = searched(parent, Budget(p50_seconds=1.0, batch=BATCH), NoTables())

    assert isinstance(plan, Plan)
    assert total(plan) == 0
    assert all(width > 16 for width in plan.units.values())


def test_the_table_is_corrected_by_what_the_whole_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up device that is slower with wide networks than the table says: chosen, measured, chosen anew."""
    timed(monkeypatch, by_bytes, lambda graph: len(graph) * 1e-9 * (1 + len(graph) / 56_000))
    budget = Budget(p50_seconds=60e-6, batch=BATCH)

    _, plan = searched(parent_of("lstm"), budget, NoTables())

    assert isinstance(plan, Plan)
    assert plan.rounds > 1
    assert within(plan.latency, plan.bytes, plan.dense, budget, MARGIN)
    assert plan.bytes > 17_819  # of 2x16: the correction is no flight to the floor


def test_bytes_that_are_no_sum_are_corrected_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are products: where two neighbours shrink, differences promise too much; the floor is no answer to that."""
    timed(monkeypatch, by_bytes)
    budget = Budget(size_bytes=33_889, batch=BATCH)  # 2x24 takes 34,077

    _, plan = searched(parent_of("lstm"), budget, NoTables())

    assert isinstance(plan, Plan)
    assert plan.structure == Structure()
    assert 25_000 < plan.bytes <= 33_889


def test_the_floor_may_use_the_budget_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the budget, though not inside nine tenths of it; below it there is no plan. Times are made up."""
    timed(monkeypatch, by_bytes)
    parent = untrained("lstm", 4, layers=1, width=32)
    floor = by_bytes(graph_of(parent, {"layer0": 8}))

    _, plan = searched(parent, Budget(p50_seconds=1.02 * floor, batch=BATCH), NoTables())
    _, missed = searched(parent, Budget(p50_seconds=0.98 * floor, batch=BATCH), NoTables())

    assert isinstance(plan, Plan)
    assert plan.units == {"layer0": 8}
    assert isinstance(missed, Floor)


@pytest.mark.parametrize("kind", ["ensemble", "isolation_forest"])
def test_other_networks_meet_a_budget_of_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of all members; trees. Bytes decide, so times are made up."""
    timed(monkeypatch, by_bytes)
    parent = fitted(kind, updates=TRAINED, width=16)
    budget = Budget(size_bytes=len(step_graph(parent)) * 3 // 4, batch=BATCH)

    _, plan = searched(parent, budget, NoTables())

    assert isinstance(plan, Plan)
    assert plan.bytes <= budget.size_bytes
    assert plan.units.keys() == {group.name for group in prunable(parent.network)}


@pytest.mark.alone
@pytest.mark.slow
def test_a_plan_holds_where_it_is_measured_again() -> None:
    """On this machine, for several limits at once, held against the parent in the same run: machines have moods."""
    parent, batch = untrained("lstm", 8, width=64), 256
    data = Stretches.of([machine(900).repeat(2, axis=1)])
    (dense,) = measure([step_graph(parent)], batch)
    budget = Budget(
        p50_seconds=dense.p50_seconds, speedup=2.0, size_bytes=len(step_graph(parent)) * 2 // 3, batch=batch
    )

    finder = Search(parent, data, budget, "l2", 0, NoTables())
    plan = finder.plan()

    assert isinstance(plan, Plan)
    graph = graph_of(finder.base(plan.structure), plan.units)
    again, now = measure([step_graph(parent), graph], batch)
    assert len(graph) == plan.bytes <= budget.size_bytes
    assert now.p50_seconds <= NOISE * again.p50_seconds / budget.speedup


# Where widths do not get there


def test_a_layer_is_bypassed_where_narrow_layers_would_lose_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only 16 and 8 units fit, and the loss would double, one layer is wider. Bytes decide, times are made up.

    What the bypass does to the loss is told as the structure's damage.
    """
    timed(monkeypatch, by_bytes)
    parent = parent_of("lstm")
    size = len(step_graph(parent)) // 4
    widths_alone = min(lost for it, lost in widths_and_damage("lstm").values() if it <= size)

    finder, plan = searched(parent, Budget(size_bytes=size, batch=BATCH), NoTables())

    assert isinstance(plan, Plan)
    assert plan.structure == Structure(("layer1",))
    assert plan.units.keys() == {"layer0"}
    assert plan.damage.keys() == {"layer0", "structure"}
    assert finder.base(plan.structure).network.units == {"layer0": 32}
    assert finder.base(Structure()).network is parent.network
    assert total(plan) < widths_alone
    assert widths_alone > DEEP


def test_a_window_is_shortened_where_widths_do_not_get_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lever that is left below the narrowest layers. Bytes decide, so times are made up."""
    timed(monkeypatch, by_bytes)
    parent = long_window()
    narrow = len(graph_of(parent, {"encoder0": 1, "decoder0": 1}))

    finder, plan = searched(parent, Budget(size_bytes=narrow - 200, batch=BATCH), NoTables())

    assert isinstance(plan, Plan)
    assert plan.bytes <= narrow - 200
    assert dict(plan.structure.levers)["window"] in {24, 12, 8}
    assert finder.base(plan.structure).network.window == dict(plan.structure.levers)["window"]
    assert len(graph_of(finder.base(plan.structure), plan.units)) == plan.bytes


# Below the floor


@pytest.mark.parametrize(
    ("budget", "name", "limit"),
    [
        (Budget(p50_seconds=1e-9, batch=BATCH), "p50", 1e-9),
        (Budget(p99_seconds=2e-9, batch=BATCH), "p99", 2e-9),
        (Budget(speedup=10_000, batch=BATCH), "p50 (asked: 10000 times as fast as the parent)", None),
        (Budget(size_bytes=100, batch=BATCH), "size", 100),
        (Budget(p50_seconds=1.0, size_bytes=100, batch=BATCH), "size", 100),
    ],
    ids=str,
)
def test_below_the_floor_the_floor_is_the_answer(budget: Budget, name: str, limit: float | None) -> None:
    """The smallest there is, with all layers bypassed that may be, and which limit it misses and by how much."""
    parent = parent_of("lstm")

    _, floor = searched(parent, budget, NoTables())

    assert isinstance(floor, Floor)
    assert floor.structure == Structure(("layer1",)) or budget.size_bytes is None  # times of both are near each other
    assert set(floor.units.values()) == {8}
    missed = [it for it in limits(floor.latency, floor.bytes, floor.dense, budget) if it.value > it.limit]
    assert [it.name for it in missed] == [name]
    assert limit is None or missed[0].limit == limit


def test_the_best_reachable_says_what_else_could_help() -> None:
    """Units, times, bytes, the speedup over dense, what was pulled already, and the levers left."""
    floor = Floor(
        Structure(("layer1",)), {"layer0": 8}, Latency(40e-6, 80e-6, BATCH), 1000, Latency(100e-6, 150e-6, BATCH)
    )

    best = floor.reachable(Budget(speedup=10, batch=BATCH))

    assert (best.units, best.bytes) == ({"layer0": 8}, 1000)
    assert (best.p50_seconds, best.p99_seconds) == (40e-6, 80e-6)
    assert best.speedup == pytest.approx(2.5)
    assert "layer0=8 (without layer1)" in best.hint
    assert "batch 16" in best.hint
    assert "a larger budget" in best.hint


@pytest.mark.parametrize(
    ("budget", "narrower", "said_", "unsaid"),
    [
        (Budget(speedup=10, batch=BATCH), False, ["a faster device"], ["fewer features"]),
        (Budget(size_bytes=500, batch=BATCH), False, ["fewer features", "shorter window"], ["runtime", "device"]),
        (Budget(speedup=10, size_bytes=500, batch=BATCH), False, ["a faster device", "fewer features"], []),
        (Budget(speedup=10, batch=BATCH), True, ["narrower widths are left", "quieter machine"], ["the floor"]),
    ],
    ids=str,
)
def test_what_could_help_depends_on_what_is_missed(
    budget: Budget, narrower: bool, said_: list[str], unsaid: list[str]
) -> None:
    """A faster device does not make a graph smaller; a built graph that is no floor is called none."""
    floor = Floor(Structure(), {"layer0": 8}, Latency(40e-6, 80e-6, BATCH), 1000, Latency(100e-6, 150e-6, BATCH))

    hint = floor.reachable(budget, narrower=narrower).hint

    assert all(it in hint for it in said_)
    assert not any(it in hint for it in unsaid)


def test_a_floor_that_misses_when_it_is_measured_again_is_the_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a made-up device where the narrowest network without a layer takes longer the second time."""
    parent, seen = parent_of("lstm"), []
    structure = Structure(("layer1",))
    narrow = parent.with_network(restructured(parent.network, structure).resized({"layer0": 8}))
    dense, narrowest = step_graph(parent), step_graph(narrow)

    def measured(graphs: Sequence[bytes], batch: int, *, rounds: int = 9) -> list[Latency]:
        def time(graph: bytes) -> float:
            seen.append(len(graph))
            if len(graph) == len(dense):
                return 100e-6
            if len(graph) == len(narrowest):
                return 30e-6 if seen.count(len(graph)) == 1 else 45e-6
            return 60e-6

        return [Latency(time(graph), 2 * time(graph), batch) for graph in graphs]

    timed(monkeypatch, by_bytes)
    monkeypatch.setattr(search, "measure", measured)

    _, floor = searched(parent, Budget(p50_seconds=40e-6, batch=BATCH), NoTables())

    assert isinstance(floor, Floor)
    assert floor.structure == structure
    assert floor.latency.p50_seconds == 45e-6


def test_a_narrow_network_reaches_budgets_below_eight_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group of twelve units four may stay. Bytes decide, times are made up."""
    timed(monkeypatch, by_bytes)
    parent = untrained("lstm", 4, layers=1, width=12)
    budget = Budget(size_bytes=len(graph_of(parent, {"layer0": 4})), batch=BATCH)

    _, plan = searched(parent, budget, NoTables())

    assert isinstance(plan, Plan)
    assert plan.units == {"layer0": 4}


# Where the built graph missed the budget


def test_a_plan_that_was_missed_is_made_tighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group wider and some narrower, step by step down to the floor, below which there is none. Made-up times."""
    timed(monkeypatch, by_bytes)
    budget = Budget(p50_seconds=40e-6, batch=BATCH)
    finder, plan = searched(parent_of("lstm"), budget, NoTables())
    steps = [plan]

    while (narrower := finder.tighter(steps[-1], Latency(42e-6, 84e-6, BATCH), plan.dense)) is not None:
        steps.append(narrower)

    assert len(steps) > 2
    for before, after in itertools.pairwise(steps):
        assert after.structure == before.structure
        assert after.units != before.units
        assert all(width <= before.units[name] for name, width in after.units.items())
        assert after.bytes < before.bytes
    assert steps[-1].units == {"layer0": 8, "layer1": 8}
    assert steps[1].bytes > 12_000  # the next step, not the last


def test_a_plan_whose_built_graph_is_too_large_is_made_tighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration may take a byte more than the parent's; times that are met do not count. The device is made up."""
    timed(monkeypatch, by_bytes)
    finder, plan = searched(parent_of("lstm"), Budget(size_bytes=34_077 + 8, p50_seconds=1.0, batch=BATCH), NoTables())

    narrower = finder.tighter(plan, plan.latency, plan.dense)

    assert narrower is not None
    assert 0.5 * plan.bytes < narrower.bytes < plan.bytes


def test_what_missed_is_judged_by_the_parent_of_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has slowed down since the search a speed-up is met as before. Made-up times."""
    timed(monkeypatch, by_bytes)
    finder, plan = searched(parent_of("lstm"), Budget(size_bytes=34_077 + 8, speedup=1.0, batch=BATCH), NoTables())
    slow, slow_dense = (Latency(3 * it.p50_seconds, 3 * it.p99_seconds, BATCH) for it in (plan.latency, plan.dense))

    wanted, found = finder.tighter(plan, plan.latency, plan.dense), finder.tighter(plan, slow, slow_dense)

    assert wanted is not None
    assert found is not None
    assert found.units == wanted.units


# Parts


def test_dominated_widths_are_dropped() -> None:
    """A wider one that is no slower and loses no more; of two limits both have to be no dearer."""
    choices = [
        Choice(8, (3.0, 1.0), 0.5),  # slower than 16, but smaller
        Choice(16, (2.0, 2.0), 0.3),
        Choice(24, (2.0, 3.0), 0.3),  # as slow, larger, no better
        Choice(32, (4.0, 4.0), 0.0),
    ]

    assert [choice.value for choice in worthwhile(choices)] == [8, 16, 32]


def level(width: int, p50: float) -> Level:
    """Of one group."""
    return Level({"layer0": width}, Cost(p50, 2 * p50, width * 100), {"layer0": {}})


def test_the_nearest_level_by_ratio_at_the_tightest_limit() -> None:
    """Twice as dear is as far as half as dear; times count as they are now."""
    levels = Table((level(32, 100e-6), level(16, 50e-6), level(8, 30e-6)))

    def width(*wanted: tuple[str, float, bool], scales=AS_MEASURED) -> int:
        return nearest(levels, list(wanted), scales).units["layer0"]

    assert width(("p50_seconds", 75e-6, True)) == 32
    assert width(("p50_seconds", 70e-6, True)) == 16
    assert width(("p50_seconds", 75e-6, True), scales=AS_MEASURED._replace(p50_seconds=1.5)) == 16
    assert width(("p50_seconds", 75e-6, True), ("bytes", 800.0, False)) == 8


@pytest.mark.parametrize(
    ("dense", "target", "wanted"),
    [
        (128, 128, [128]),
        (128, 100, [100]),
        (128, 64, [64]),
        (128, 63, [90, 63]),
        (128, 32, [64, 32]),
        (128, 16, [64, 32, 16]),
        (128, 8, [64, 32, 16, 8]),
        (512, 8, [181, 64, 23, 8]),  # four stages at most
    ],
)
def test_deep_cuts_are_taken_in_geometric_stages(dense: int, target: int, wanted: list[int]) -> None:
    """One shot while half the units stay, else equal ratios."""
    assert [step["layer0"] for step in stages({"layer0": dense}, {"layer0": target})] == wanted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 1.0)), min_size=1, max_size=3))
def test_stages_end_at_the_target_and_never_grow(groups) -> None:
    """For any mixture of groups, also those that keep all their units."""
    dense: Units = {f"g{i}": width for i, (width, _) in enumerate(groups)}
    target: Units = {f"g{i}": max(1, int(width * share)) for i, (width, share) in enumerate(groups)}

    steps = stages(dense, target)

    assert steps[-1] == target
    for upper, lower in itertools.pairwise([dense, *steps]):
        assert all(target[name] <= lower[name] <= upper[name] for name in dense)


# Budgets


@pytest.mark.parametrize(
    "given_limits",
    [
        {},
        {"p50_seconds": 0},
        {"p99_seconds": -1},
        {"speedup": 0.5},
        {"speedup": float("nan")},
        {"size_bytes": 0},
        {"speedup": 2, "batch": 0},
        {"speedup": 2, "batch": 70000},
        {"speedup": float("inf")},
        {"p99_seconds": float("inf")},
        {"p50_seconds": float("nan")},
    ],
    ids=str,
)
def test_impossible_budgets_are_refused(given_limits) -> None:
    """None at all, not positive, slower than before, no batch: an error that names the field."""
    with pytest.raises(InvalidInputError) as error:
        Budget(**given_limits)

    assert error.value.field.startswith("budget")


def test_limits_of_a_budget_by_hand() -> None:
    """Each that is set, in order; a speedup is of the dense p50; margins are for times alone."""
    dense, now = Latency(100e-6, 300e-6, BATCH), Latency(46e-6, 90e-6, BATCH)
    budget = Budget(p50_seconds=50e-6, p99_seconds=100e-6, speedup=2.0, size_bytes=1000, batch=BATCH)

    assert [tuple(it) for it in limits(now, 1000, dense, budget)] == [
        ("p50", 46e-6, 50e-6, True),
        ("p99", 90e-6, 100e-6, True),
        ("p50 (asked: 2 times as fast as the parent)", 46e-6, 50e-6, True),
        ("size", 1000.0, 1000.0, False),
    ]
    assert within(now, 1000, dense, budget)
    assert not within(now, 1000, dense, budget, 0.9)
    assert within(Latency(45e-6, 90e-6, BATCH), 1000, dense, budget, 0.9)
    assert not within(now, 1001, dense, budget)
    assert (said(46e-6, True), said(1000.0, False)) == ("46 us", "1000 bytes")


def test_tables_are_kept_where_they_are_told_to(tmp_path: Path) -> None:
    """One for each structure that was looked at more closely; the next search reads them."""
    parent = fitted("lstm", updates=TRAINED)
    budget = Budget(size_bytes=len(step_graph(parent)) * 3 // 4, batch=BATCH)

    _, first = searched(parent, budget, FolderTables(tmp_path))
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    _, second = searched(parent, budget, FolderTables(tmp_path))

    assert len(written) == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written
    assert first.units == second.units
