"""Steps whose memory was bound once give the bits of those that were not, whatever order and sizes they come in."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import ewma_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bound import SIZES, STEPS_BEFORE, Bindings, Bound
from detectors.carried import Carried
from detectors.runtime import Runtime
from detectors.scorer import Scorer
from detectors.series import SeriesTable
from detectors.served import Served
from server.learning import learning

SERIES, FEATURES = 6, 2
SERVED = Served.load(ewma_bundle("pump"))
orders = st.lists(
    st.one_of(
        st.tuples(st.integers(0, SERIES), st.integers(0, SERIES)).map(lambda ends: slice(min(ends), max(ends))),
        st.lists(st.integers(0, SERIES - 1), unique=True, min_size=1).map(np.array),
    ),
    max_size=12,
)
"""Seats of some steps."""


class _Unbound(Bindings):
    """Never binds a size."""

    def of(self, runtime: Runtime, batch: int) -> Bound | None:
        del runtime, batch
        return None


class _AtOnce(Bindings):
    """Binds a size with its first step."""

    def of(self, runtime: Runtime, batch: int) -> Bound | None:
        return super().of(runtime, batch) or [super(_AtOnce, self).of(runtime, batch) for _ in range(STEPS_BEFORE)][-1]


def carried(bindings: Bindings) -> Carried:
    """The state of some series, whose arrays have no row to spare."""
    series = SeriesTable(FEATURES, ring_points=4, max_series=SERIES)
    series.slots([f"series-{i}" for i in range(SERIES)])
    made = Carried(series, SERVED, memory=None, shelf=None)
    made._bindings = bindings
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(orders)
def test_bound_steps_are_the_same(steps) -> None:
    """Scores, contributions and the state of all series are bit-equal, after all of them, some, and in other orders."""
    bound, plain = carried(_AtOnce()), carried(_Unbound())
    values = np.random.default_rng(0).normal(size=(len(steps), SERIES, FEATURES)).astype(np.float32)
    kept = []

    for turn, seats in enumerate(steps):
        n = len(np.arange(SERIES)[seats])
        for found, expected in zip(
            bound.step(seats, values[turn, :n]), plain.step(seats, values[turn, :n]), strict=True
        ):
            kept.append((found, expected))

    for found, expected in kept:  # also what was given back before later steps
        np.testing.assert_array_equal(found, expected)
    everybody = np.arange(SERIES)
    for found, expected in zip(bound.gather(everybody), plain.gather(everybody), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_sizes_are_bound_when_they_repeat() -> None:
    """Not before some steps of a size in a row; the oldest of too many is let go, and empty steps are never bound."""
    runtime, bindings = SERVED.runtime, Bindings()

    first = [bindings.of(runtime, 3) for _ in range(STEPS_BEFORE)]
    mixed = [bindings.of(runtime, 1 + turn % 2) for turn in range(4 * STEPS_BEFORE)]
    empty = [bindings.of(runtime, 0) for _ in range(2 * STEPS_BEFORE)]
    for size in range(10, 10 + SIZES):
        assert [bindings.of(runtime, size) for _ in range(STEPS_BEFORE)][-1] is not None

    assert first[:-1] == [None] * (STEPS_BEFORE - 1)
    assert first[-1] is not None
    assert not any(mixed)
    assert not any(empty)
    assert bindings.of(runtime, 3) is None
    assert bindings.of(runtime, 10) is not None


def test_what_learns_is_not_bound() -> None:
    """A detector without a version has no session to bind."""
    runtime, bindings = learning(FEATURES).runtime, Bindings()

    assert [bindings.of(runtime, 1) for _ in range(2 * STEPS_BEFORE)] == [None] * (2 * STEPS_BEFORE)


@pytest.mark.parametrize("points", [1, 5])
def test_another_version_is_bound_anew(points) -> None:
    """After a swap steps of the same size are those of the new version."""
    old, new = (Served.load(ewma_bundle("pump", version=version, gain=gain)) for version, gain in ((1, 1.0), (2, 7.0)))
    scorer = Scorer(old, ring_points=64)
    slots = scorer.series.slots([f"series-{i}" for i in range(points)])
    values = np.random.default_rng(1).normal(size=(40, points, FEATURES)).astype(np.float32)

    for turn in range(20):
        scorer.step(slots, np.full(points, turn), values[turn])
    scorer.flip(scorer.successor(new))
    found = [scorer.step(slots, np.full(points, turn), values[turn]).score for turn in range(20, 40)]

    alone = Runtime(ewma_bundle("pump", version=2, gain=7.0).graph)
    state = alone.fresh(points)
    for turn in range(40):
        step = alone.step(values[turn], state)
        state = step.state
        if turn >= 20:
            np.testing.assert_array_equal(found[turn - 20], step.score)
