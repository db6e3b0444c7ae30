"""Damage: what narrower groups lose, measured by a few ablations, interpolated along the importance that goes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from fits import fitted, machine

from detectors.training.fit import chunks_over, held_out_loss
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.damage import JUDGED, PROBED, Curve, _ascending, _lost, damage, losses, most_important
from pruning.groups import prunable
from pruning.importance import Evidence, importance
from pruning.repair import remove_and_repair

TRAINED = 150
DATA = Stretches.of([machine(700)])
KINDS = ["lstm", "autoencoder", "variational_autoencoder", "ensemble", "isolation_forest"]


def curves_of(parent: Fitted, criterion: str = "taylor") -> dict[str, Curve]:
    """Relative to its own losses."""
    return damage(parent, DATA, criterion, 0, losses(parent, DATA, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_never_falls_as_a_group_shrinks(kind: str) -> None:
    """None at the dense width, finite down to nothing; a curve for each group that may lose units, protected ones none.

    Of an ensemble the groups of all members, under the names that the whole has for them.
    """
    parent = fitted(kind, updates=TRAINED)

    curves = curves_of(parent)

    assert set(curves) == {group.name for group in prunable(parent.network)}
    for name, curve in curves.items():
        width = parent.network.units[name]
        lost = [curve.at(units) for units in range(width, -1, -1)]
        assert lost[0] == 0
        assert lost == sorted(lost)
        assert lost[-1] > 0
        assert np.isfinite(lost).all()


@pytest.mark.parametrize(("kind", "group"), [("lstm", "layer0"), ("lstm", "layer1"), ("autoencoder", "encoder0")])
def test_probes_are_ablations(kind: str, group: str) -> None:
    """At a width that is probed: the rise of the loss when this group alone is cut and repaired, by the dense loss."""
    parent = fitted(kind, updates=TRAINED)
    network, dense = parent.network, losses(parent, DATA, 0)[""]
    scores = importance("l2", Evidence(network, chunks_over(DATA, parent.scaler, network, 0), 0))[group]
    judged = list(chunks_over(DATA, parent.scaler, network, 1).chunks(JUDGED))

    curve = curves_of(parent, "l2")[group]

    rises = []
    for share in PROBED:
        keep = {group: most_important(scores, round(16 * share))}
        cut = remove_and_repair(network, keep, chunks_over(DATA, parent.scaler, network, 0))
        rises.append((held_out_loss(cut, judged) - held_out_loss(network, judged)) / dense)
    wanted = np.maximum.accumulate(np.maximum(rises, 0))
    assert rises[-1] > 0.01
    assert [curve.at(round(16 * share)) for share in PROBED] == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-6)


def test_damage_is_relative_to_the_losses_that_are_given() -> None:
    """Those of the dense parent, where a network is judged that was already changed."""
    parent = fitted("lstm", updates=TRAINED)
    dense = losses(parent, DATA, 0)

    once, half = (damage(parent, DATA, "l2", 0, {"": dense[""] * factor}) for factor in (1, 2))

    assert once["layer1"].at(4) == pytest.approx(2 * half["layer1"].at(4))


def test_losses_are_told_by_member() -> None:
    """Each member's own training loss; a lone network is its own member."""
    ensemble, lone = fitted("ensemble", updates=TRAINED), fitted("lstm", updates=TRAINED)

    assert set(losses(ensemble, DATA, 0)) == {"lstm", "autoencoder"}
    assert set(losses(lone, DATA, 0)) == {""}
    assert all(0 < loss < 1 for loss in losses(ensemble, DATA, 0).values())
    assert losses(lone, DATA, 0) == losses(lone, DATA, 0)


def test_a_member_is_judged_as_it_would_be_alone() -> None:
    """What the other member does is nothing to it."""
    parent = fitted("ensemble", updates=TRAINED)
    alone = replace(parent, network=parent.network.members["lstm"], views=parent.views[:1], combined=None)

    ours = curves_of(parent)["lstm.layer0"]
    theirs = curves_of(alone)["layer0"]

    assert np.array_equal(ours.lost, theirs.lost)
    assert np.array_equal(ours.probes, theirs.probes)


def test_trees_are_taken_at_the_agreement_they_bring() -> None:
    """A forest has no training loss: the share of the importance that leaves is the damage."""
    parent = fitted("isolation_forest")
    scores = importance("agreement", Evidence(parent.network, chunks_over(DATA, parent.scaler, parent.network, 0), 0))[
        "trees"
    ]

    curve = curves_of(parent)["trees"]

    left = scores.sort(descending=True).values[5:].sum() / scores.sum()
    assert curve.at(5) == pytest.approx(float(left), rel=1e-6)
    assert curve.at(0) == pytest.approx(1)


def test_the_network_stays_as_it_is() -> None:
    """Ablations are made on copies, and no gradients are left behind."""
    parent = fitted("autoencoder", updates=TRAINED)
    before = copy.deepcopy(parent.network.state_dict())

    curves_of(parent)

    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.network.state_dict().items())
    assert all(parameter.grad is None for parameter in parent.network.parameters())


def test_most_important_units_by_hand() -> None:
    """Ascending indices of the highest scores."""
    assert most_important(torch.tensor([0.1, 5.0, 3.0, 4.0]), 2).tolist() == [1, 3]


def test_the_share_of_importance_that_is_lost_by_hand() -> None:
    """All of it when nothing is kept, none when everything is; the smallest leave first."""
    assert _lost(torch.tensor([1.0, 6.0, 3.0])).tolist() == pytest.approx([1.0, 0.4, 0.1, 0.0])
    assert _lost(torch.zeros(2)).tolist() == [1.0, 1.0, 1.0]


def test_a_curve_by_hand() -> None:
    """Straight between probes; one that came out better than a milder one counts as that one; the end is drawn on."""
    lost = np.array([1.0, 0.5, 0.25, 0.0])
    curve = Curve(lost, _ascending([(0.0, 0.0), (0.2, 0.4), (0.3, 0.3), (0.5, 0.8)]))

    assert curve.at(3) == 0
    assert curve.at(2) == pytest.approx(0.4)
    assert curve.at(1) == pytest.approx(0.8)
    assert curve.at(0) == pytest.approx(0.8 + 0.5 * (0.8 - 0.4) / 0.2)
