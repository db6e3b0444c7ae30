"""Training a pruned network against its dense parent on recent normal points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detectors.training.calibrate import CLIP, Scaler
from detectors.training.fit import (
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
from pruning.injection import TAUGHT, disturb

DISTILL = 0.5  # weight of agreeing with the parent beside predicting the points themselves
DISTURBED_LANES = 8  # of 32, in which the points carry synthetic anomalies: there the parent alone says what is right
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

    Both see the same scaled points, so the difference of their residuals is the difference of their outputs. A detector
    is judged by what it does off the beaten track, so some lanes are disturbed; they count for the agreement only.
    The gate judges on more kinds than are shown here.
    """
    lanes = lanes_over(data, scaler, student, seed)
    run, ask = Runner(student), Runner(teacher)
    optimizer, schedule = optimizer_for(student, updates, LEARNING_RATE)
    rng = np.random.default_rng(seed)
    for i, clean in enumerate(lanes.chunks(updates)):
        chunk = replace(clean, points=disturbed(clean.points, rng))
        residual = run(chunk).residual
        with torch.no_grad():
            wanted = ask(chunk).residual
        normal = chunk.counted.clone()
        normal[:DISTURBED_LANES] = False
        own = trimmed_mean(mean_square(residual), normal)
        agree = trimmed_mean(mean_square(residual - wanted), chunk.counted, trim=0.0)
        descend(student, optimizer, schedule, (1 - DISTILL) * own + DISTILL * agree)
        progress("fine-tune", (i + 1) / updates, f"error {own.item():.4f}, distance to parent {agree.item():.4f}")


def disturbed(points: Tensor, rng: np.random.Generator) -> Tensor:
    """A copy of scaled points [B, T, F] with one synthetic anomaly in each of the first `DISTURBED_LANES` lanes."""
    changed = points.clone()
    scale = np.ones(points.shape[2], np.float32)
    for lane in changed[:DISTURBED_LANES].numpy():
        disturb(lane, str(rng.choice(TAUGHT)), scale, rng)
    return changed.clamp_(-CLIP, CLIP)
