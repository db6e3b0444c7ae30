"""Training a pruned network against its dense parent on recent normal points."""

from __future__ import annotations

import torch

from detectors.training.calibrate import Scaler
from detectors.training.fit import (
    TRIM,
    Progress,
    Runner,
    descend,
    lanes_over,
    optimizer_for,
    silent,
    trimmed_mean,
)
from detectors.training.fitted import mean_square
from detectors.training.networks import Network
from detectors.training.stretches import Stretches

DISTILL = 0.5  # weight of agreeing with the parent beside predicting the points themselves
LEARNING_RATE = 3e-3


def finetune(
    student: Network,
    teacher: Network,
    data: Stretches,
    scaler: Scaler,
    *,
    updates: int,
    seed: int,
    progress: Progress = silent,
) -> None:
    """Trains `student` in place on the trimmed error and on agreement with `teacher` (Hinton et al. 2015).

    Both see the same scaled points, so the difference of their residuals is the difference of their outputs.
    """
    lanes = lanes_over(data, scaler, student, seed)
    run, ask = Runner(student), Runner(teacher)
    optimizer, schedule = optimizer_for(student, updates, LEARNING_RATE)
    for i, chunk in enumerate(lanes.chunks(updates)):
        residual = run(chunk).residual
        with torch.no_grad():
            wanted = ask(chunk).residual
        own = trimmed_mean(mean_square(residual), chunk.counted, TRIM)
        agree = trimmed_mean(mean_square(residual - wanted), chunk.counted, TRIM)
        descend(student, optimizer, schedule, (1 - DISTILL) * own + DISTILL * agree)
        progress("fine-tune", (i + 1) / updates, f"error {own.item():.4f}, distance to parent {agree.item():.4f}")
