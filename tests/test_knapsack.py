"""The knapsack: the same answer as trying everything, at a small part of the cost."""

from __future__ import annotations

import itertools
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.knapsack import Choice, solve, undominated

EIGHTHS = st.integers(-80, 400).map(lambda number: number / 8)  # sums of them are exact


@st.composite
def knapsacks(draw: st.DrawFn) -> tuple[list[list[Choice]], list[float]]:
    """One to four groups of up to eight choices, one to three limits; costs may be negative."""
    limits = draw(st.integers(1, 3))
    groups = [
        [
            Choice(value, tuple(draw(st.lists(EIGHTHS, min_size=limits, max_size=limits))), abs(draw(EIGHTHS)))
            for value in range(1, draw(st.integers(1, 8)) + 1)
        ]
        for _ in range(draw(st.integers(1, 4)))
    ]
    return groups, draw(st.lists(EIGHTHS, min_size=limits, max_size=limits))


def loss_of(groups: list[list[Choice]], values: list[int]) -> float:
    """Of one choice for each group."""
    return sum(
        choice.loss for group, value in zip(groups, values, strict=True) for choice in group if choice.value == value
    )


def by_trying_everything(groups: list[list[Choice]], limits: list[float]) -> float | None:
    """The least loss inside the limits; None where there is none."""
    found = [
        sum(choice.loss for choice in chosen)
        for chosen in itertools.product(*groups)
        if all(sum(choice.costs[at] for choice in chosen) <= limit for at, limit in enumerate(limits))
    ]
    return min(found, default=None)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(knapsacks())
def test_the_optimum_is_that_of_trying_everything(knapsack) -> None:
    """The same least loss, by values that stay inside every limit; None exactly where nothing does."""
    groups, limits = knapsack

    values = solve(groups, limits)

    wanted = by_trying_everything(groups, limits)
    assert (values is None) == (wanted is None)
    if values is not None:
        assert loss_of(groups, values) == wanted
        chosen = [next(c for c in group if c.value == value) for group, value in zip(groups, values, strict=True)]
        for at, limit in enumerate(limits):
            assert sum(choice.costs[at] for choice in chosen) <= limit


def test_nothing_is_rounded() -> None:
    """A limit that is missed by a billionth of it is missed, one that is used up to the last bit is met."""
    cheap, dear = Choice(8, (1.0,), 1.0), Choice(16, (2.0,), 0.0)

    assert solve([[cheap, dear]], [2.0]) == [16]
    assert solve([[cheap, dear]], [2.0 - 2e-9]) == [8]
    assert solve([[cheap, dear], [Choice(1, (0.0,), 0.0)]], [1.0 - 1e-9]) is None


def test_small_losses_decide_between_many_choices() -> None:
    """A difference in the ninth digit is seen, however large the losses of others."""
    groups = [[Choice(1, (1.0,), 1e3)], [Choice(8, (1.0,), 0.5 + 1e-9), Choice(16, (1.0,), 0.5)]]

    assert solve(groups, [2.0]) == [1, 16]


def test_one_that_costs_less_than_nothing_pays_for_another() -> None:
    """Costs are differences from a network: a narrow group makes room for a wide one."""
    narrow, kept = Choice(8, (-3.0, -10.0), 0.25), Choice(16, (0.0, 0.0), 0.0)
    wide = Choice(32, (2.5, 9.0), 0.0)
    rest = Choice(16, (0.0, 0.0), 1.0)

    assert solve([[narrow, kept], [wide, rest]], [0.0, 0.0]) == [8, 32]


def test_every_limit_counts() -> None:
    """What one of them allows another may forbid."""
    choices = [Choice(8, (1.0, 9.0), 0.0), Choice(16, (9.0, 1.0), 0.0), Choice(4, (2.0, 2.0), 1.0)]

    assert solve([choices], [5.0, 5.0]) == [4]
    assert solve([choices], [0.5, 100.0]) is None


@pytest.mark.parametrize("limits", [1, 2, 3])
def test_six_groups_of_many_widths_take_less_than_a_second(limits: int) -> None:
    """Costs as tables have them: they rise with the width, a little unevenly, and the loss falls."""
    rng = np.random.default_rng(limits)
    widths = np.arange(1, 25) * 8
    groups = []
    for scale in rng.uniform(0.5, 2, 6):
        uneven = rng.normal(1, 0.02, (len(widths), limits))
        costs = scale * widths[:, None] * uneven * 1e-6
        groups.append(
            [
                Choice(int(width), tuple(cost), float(scale * np.exp(-width / 40)))
                for width, cost in zip(widths, costs, strict=True)
            ]
        )
    began = process_time()

    values = solve(groups, [600e-6] * limits)

    assert process_time() - began < 1
    assert values is not None
    assert len(values) == 6


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_undominated_rows_are_those_that_no_other_beats(rows: list[tuple[int, int, int]]) -> None:
    """In every column at once; of rows that are equal the first stays."""
    points = np.array(rows, float)
    wanted = [
        i
        for i, row in enumerate(rows)
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in rows)
        and row not in rows[:i]
    ]

    assert undominated(points).tolist() == wanted
