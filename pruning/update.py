"""Letting a dense parent follow recent points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from detectors.training.fit import FitOptions, Progress, partly, seeded, silent, train
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.derive import UPDATES
from pruning.gate import GateLimits, Labelled, labelled_checks, trimmed_error
from pruning.outcome import Gate

IMPROVED = 0.99  # of its error: a parent that is updated for less leaves its frontier behind for noise
RATE = 1e-3  # learning rate: a third of the first fit's, so that a parent follows and does not jump

ParentJudge = Callable[[Fitted], Gate]
"""What a parent must keep of what the first one could; asked of a calibrated parent."""


@dataclass(frozen=True)
class Updated:
    """What became of a parent.

    Attributes:
        parent: Calibrated on recent points.
        changed: Whether it was trained on; else recent points gave it hardly anything.
        gate: What its gate says; also where only its calibration is new; None where nobody asked.
    """

    parent: Fitted
    changed: bool
    gate: Gate | None = None

    @property
    def refused(self) -> bool:
        """Whether the gate keeps it out."""
        return self.gate is not None and not self.gate.passed


def updated(
    parent: Fitted,
    training: Stretches,
    held_out: Stretches,
    *,
    updates: int = UPDATES,
    seed: int = 0,
    judge: ParentJudge | None = None,
    labelled: Labelled | None = None,
    limits: GateLimits | None = None,
    progress: Progress = silent,
) -> Updated:
    """Trains a copy of the parent on, calibrates and judges it; the old one stays where the new one is hardly better.

    Args:
        parent: It stays as it is.
        training: Recent normal points.
        held_out: Later ones, for early stopping and calibration.
        updates: Of fine-tuning a child; a parent gets half as many.
        seed: Of the batches.
        judge: Its gate.
        labelled: Anomalies that people have labelled: what the old parent finds the new one has to find.
        limits: How many of them.
        progress: Told about training.
    """
    newer = followed(parent, training, held_out, updates=updates, seed=seed, progress=progress)
    changed = trimmed_error(newer, held_out) < IMPROVED * trimmed_error(parent, held_out)
    dense = (newer if changed else parent).recalibrated(held_out, training)
    checks = judge(dense).checks if judge else ()
    if changed and labelled is not None:
        before = parent.recalibrated(held_out, training)
        checks = (*checks, *labelled_checks(before, dense, labelled, limits or GateLimits()))
    return Updated(dense, changed, Gate(checks) if checks else None)


def followed(
    parent: Fitted, training: Stretches, held_out: Stretches, *, updates: int, seed: int, progress: Progress = silent
) -> Fitted:
    """A copy that was trained on, with the statistics of the old one; arguments as of `updated`."""
    network = copy.deepcopy(parent.network)
    options = FitOptions(updates=max(1, updates // 2), learning_rate=RATE, contamination=parent.trim)
    members = [member for member in network.members.values() if member.learned_by_gradient]
    with seeded(seed):
        for i, member in enumerate(members):
            told = partly(lambda _stage, done, message: progress("update", done, message), i, len(members))
            train(member, training, held_out, parent.scaler, options, seed, told)
    return parent.with_network(network)
