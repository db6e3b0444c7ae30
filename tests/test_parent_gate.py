"""The gate of parents: what a detector that learns all the time must never lose, on points that are kept for good."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fits import SMALL, fitted, machine, untrained

from detectors.training.fit import divided
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.cycle import split
from pruning.parent_gate import POINTS, Golden, ParentLimits, judge_parent, movement
from pruning.update import updated

TRAINED = 150
LIMITS = ParentLimits()
CYCLES = 6
ATTACK = np.float32([3.0, 0.0, 0.0, 3.0])
"""What the attacker adds to each sensor in the end, in standard deviations."""


def golden_of(first: Fitted, rows: int = 700) -> Golden:
    """The golden set of a detector of `fits.fitted`."""
    data = Stretches.of([machine(rows)])
    return Golden.of(first, divided(data, first.network, first.warm_up_points)[1], seed=3)


def values(golden: Golden, newer: Fitted, limits: ParentLimits = LIMITS) -> dict[str, float]:
    """What the checks measured."""
    return {check.name: check.value for check in judge_parent(golden, newer, limits).checks}


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "ensemble", "isolation_forest"])
def test_the_first_parent_passes_its_own_gate(kind: str) -> None:
    """It finds what it finds, and has not moved; whatever the network."""
    first = untrained(kind, 4)
    rows = np.random.default_rng(1).normal(3.0, [2.0, 3.0, 4.0, 5.0], (400, 4)).astype(np.float32)
    golden = Golden.of(first, Stretches.of([rows]), seed=3)

    gate = judge_parent(golden, first, LIMITS)

    assert gate.passed
    found = {check.name: check.value for check in gate.checks}
    assert found.pop("golden recall", 1.0) == 1.0  # not asked of networks that flag hardly any
    assert found == {"golden quality": 1.0, "movement": 0.0}


def test_the_same_parent_is_judged_the_same_every_time() -> None:
    """Golden anomalies are drawn by the seed that is kept."""
    golden, newer = golden_of(fitted("lstm", updates=TRAINED)), fitted("lstm", updates=60)

    assert values(golden, newer) == values(golden, newer)
    assert values(golden, newer)["movement"] > 0


def test_movement_is_measured_in_units_of_the_first_error() -> None:
    """A network that always answers twice its error away has moved by four."""
    first = fitted("autoencoder", updates=TRAINED)
    golden = golden_of(first)
    away = copy.deepcopy(first)
    last = [it for it in away.network.modules() if isinstance(it, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.bias += 0.5

    once = movement(golden, away)
    with torch.no_grad():
        last.bias += 0.5

    assert once > 0
    assert movement(golden, away) == pytest.approx(4 * once, rel=1e-3)


def test_a_parent_that_learned_an_anomaly_for_normal_is_refused() -> None:
    """Trained on points that are far off, and calibrated on them: the reason says by how much."""
    first = fitted("lstm", updates=TRAINED)
    golden = golden_of(first)
    moved = machine(700, seed=5) + 6 * first.scaler.scale
    training, held_out = split(first, Stretches.of([moved]))

    result = updated(first, training, held_out, updates=300, judge=lambda it: judge_parent(golden, it, LIMITS))

    assert result.changed
    assert result.refused
    assert "first parent" in result.gate.reason


def test_a_scale_that_widened_is_refused_though_nothing_else_changed() -> None:
    """Calibrated on points that stray further: it ranks golden anomalies as before, and flags few of them."""
    first = fitted("autoencoder", updates=TRAINED)
    golden = golden_of(first)
    rng = np.random.default_rng(8)
    stray = machine(700, seed=6) + (rng.standard_normal((700, 4)) * 0.5 * first.scaler.scale).astype(np.float32)

    gate = judge_parent(golden, first.recalibrated(Stretches.of([stray])), LIMITS)

    assert [check.name for check in gate.checks if not check.passed] == ["golden recall"]
    assert "golden anomalies that the first parent flags are flagged" in gate.reason


def test_a_parent_that_is_fitted_anew_may_be_anywhere_but_not_blind() -> None:
    """Another seed gives other outputs, which are no movement; a network that learned nothing is refused."""
    golden = Golden.of(fitted("lstm", updates=TRAINED), Stretches.of([machine(700)[500:]]), seed=3)
    anew = Golden(golden.first, golden.points, golden.seed, follows=False)
    blind = fitted("lstm", updates=1, seed=9)

    gate = judge_parent(anew, blind, ParentLimits(golden_quality=1.0))

    assert {check.name for check in gate.checks} <= {"golden quality", "golden recall"}
    assert not gate.passed
    assert "golden quality" in values(golden, blind)
    assert "movement" in values(golden, blind)


def test_golden_points_are_the_last_ones_that_were_held_out() -> None:
    """As many as are worth keeping; missing values are filled, since anomalies are put into them."""
    first = untrained("lstm", 4, **{key: int(value) for key, value in SMALL["lstm"].items()})
    rows = machine(POINTS + 500)
    rows[-7, 2] = np.nan

    golden = Golden.of(first, Stretches.of([rows], missing="carry"), seed=0)

    assert len(golden.points) == POINTS
    assert np.array_equal(golden.points.rows[-1], rows[-1])
    assert golden.points.rows[-7, 2] == rows[-8, 2]


@pytest.mark.slow
@pytest.mark.promise("I5")
def test_points_that_move_a_little_in_each_cycle_do_not_take_the_detector_along() -> None:
    """Nobody flags them, so each cycle learns from them: the gate refuses before the attack goes unseen.

    Without it the same cycles learn the attack.
    """
    first = fitted("autoencoder", updates=TRAINED)
    golden = golden_of(first)
    attack = ATTACK * first.scaler.scale
    asked = machine(400, seed=77) + attack

    def flagged(detector: Fitted) -> float:
        score = detector.scores(Stretches.of([asked]))
        return float((score[np.isfinite(score)] >= 2).mean())

    guarded = taken = first
    for turn in range(CYCLES):
        rows = machine(700, seed=10 + turn) + attack * np.float32((turn + 1) / CYCLES)
        for obeys in (True, False):
            parent = guarded if obeys else taken
            training, held_out = split(parent, Stretches.of([rows]))
            newer = updated(parent, training, held_out, updates=200)
            if not obeys:
                taken = newer.parent
            elif judge_parent(golden, newer.parent, LIMITS).passed:
                guarded = newer.parent

    assert flagged(first) > 0.5
    assert flagged(taken) < 0.25 * flagged(first)
    assert flagged(guarded) > 0.75 * flagged(first)
