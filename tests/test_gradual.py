"""Pruning while fitting: a narrow detector for about the price of one fit, and no dense parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fits import FOUR, SMALL, machine

from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.stretches import Stretches
from pruning import gradual, search, table
from pruning.gate import trimmed_error
from pruning.gradual import REMOVALS, fit_while_pruning
from pruning.outcome import Budget, Latency
from pruning.search import Floor, Plan, geometric

DATA = Stretches.of([machine(900)])
FRESH = Stretches.of([machine(400, seed=5)])
HOW = FitOptions(updates=120)
WIDE = {"layers": 2, "width": 32}


def size_of(kind: str, options: dict[str, int]) -> int:
    """Bytes of the dense detector's graph."""
    return len(step_graph(fit(kind, DATA, FOUR, seed=0, options=options, how=FitOptions(updates=1))))


def device(factor: float) -> Callable[..., list[Latency]]:
    """A made-up one: a nanosecond a byte; all graphs but the first take `factor` of that."""

    def measured(graphs: Sequence[bytes], batch: int, *, rounds: int = 9) -> list[Latency]:
        times = [(factor if i else 1.0) * len(graph) * 1e-9 for i, graph in enumerate(graphs)]
        return [Latency(time, 2 * time, batch) for time in times]

    return measured


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("lstm", WIDE), ("autoencoder", {"window": 8, "width": 48})])
def test_it_meets_the_budget_and_still_learns(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, int]
) -> None:
    """Half the bytes, and an error on fresh points far below that of a detector that has hardly been trained.

    Bytes decide, so times are made up.
    """
    for module in (table, search, gradual):
        monkeypatch.setattr(module, "measure", device(1.0))
    budget = Budget(size_bytes=size_of(kind, options) // 2)

    made = fit_while_pruning(kind, DATA, FOUR, budget, seed=0, options=options, how=HOW)
    again = fit_while_pruning(kind, DATA, FOUR, budget, seed=0, options=options, how=HOW)

    assert made.fitted is not None
    assert again.fitted is not None
    assert isinstance(made.plan, Plan)
    assert len(step_graph(made.fitted)) <= budget.size_bytes
    narrow = made.fitted.network.units
    assert all(narrow[name] <= width for name, width in made.dense_units.items())
    assert narrow != made.dense_units
    untrained = fit(kind, DATA, FOUR, seed=0, options=options, how=FitOptions(updates=1))
    assert trimmed_error(made.fitted, FRESH) < 0.5 * trimmed_error(untrained, FRESH)
    assert np.array_equal(made.fitted.scores(FRESH), again.fitted.scores(FRESH), equal_nan=True)


def test_a_budget_below_the_floor_is_answered_with_the_floor() -> None:
    """Before most of the training is spent."""
    made = fit_while_pruning("lstm", DATA, FOUR, Budget(size_bytes=100), seed=0, options=WIDE, how=HOW)

    assert made.fitted is None
    assert isinstance(made.plan, Floor)
    assert made.plan.bytes > 100


@pytest.mark.slow
def test_a_forest_is_grown_once_and_loses_trees() -> None:
    """What learns without gradients is not trained on between removals. Times are those of this machine."""
    budget = Budget(size_bytes=int(size_of("isolation_forest", SMALL["isolation_forest"]) * 0.8))

    made = fit_while_pruning("isolation_forest", DATA, FOUR, budget, seed=0, options=SMALL["isolation_forest"])

    assert made.fitted is not None
    assert 8 <= made.fitted.network.units["trees"] < 20


@pytest.mark.parametrize(
    ("factor", "corrections", "met", "narrower"),
    [(1.3, 2, True, False), (20.0, 2, False, False), (1.3, 0, False, True)],
)
def test_what_was_built_is_measured_and_made_narrower_where_it_misses(
    monkeypatch: pytest.MonkeyPatch, factor: float, corrections: int, met: bool, narrower: bool
) -> None:
    """Once or twice, with both times from one run; what still misses then is no detector. Times are made up.

    It is called the floor only where it is.
    """
    monkeypatch.setattr(gradual, "CORRECTIONS", corrections)
    monkeypatch.setattr(table, "measure", device(1.0))
    monkeypatch.setattr(search, "measure", device(1.0))
    monkeypatch.setattr(gradual, "measure", device(factor))
    budget = Budget(speedup=2.0, batch=16)

    made = fit_while_pruning("lstm", DATA, FOUR, budget, seed=0, options=WIDE, how=HOW)

    assert ((made.fitted is not None), made.narrower) == (met, narrower)
    assert made.dense.p50_seconds == size_of("lstm", WIDE) * 1e-9
    if made.fitted is not None:
        assert made.latency.p50_seconds == pytest.approx(factor * len(step_graph(made.fitted)) * 1e-9)
        assert made.dense.p50_seconds / made.latency.p50_seconds >= 2.0
        assert made.fitted.network.units == made.plan.units
    else:
        assert isinstance(made.plan, Floor)
        assert made.plan.latency == made.latency


def test_units_leave_in_geometric_steps() -> None:
    """Each step removes the same share; the last has the target's widths."""
    steps = geometric({"layer0": 128, "layer1": 64}, {"layer0": 8, "layer1": 64}, REMOVALS)

    assert [step["layer0"] for step in steps] == [64, 32, 16, 8]
    assert {step["layer1"] for step in steps} == {64}
