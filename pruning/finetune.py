"""Training a pruned network against its dense parent on recent normal points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.training.calibrate import CLIP, Scaler
from detectors.training.fit import Progress, Runner, chunks_over, descend, optimizer_for, silent, trimmed_mean
from detectors.training.fitted import mean_square
from detectors.training.networks import Network
from detectors.training.stretches import Stretches
from pruning.injection import TAUGHT, disturb

DISTILL = 0.5  # weight of agreeing with the parent beside predicting the points themselves
DISTURBED_SHARE = 0.25  # of the lanes or windows carry synthetic anomalies: there the parent alone says what is right
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
    chunks = chunks_over(data, scaler, student, seed)
    run, ask = Runner(student), Runner(teacher)
    optimizer, schedule = optimizer_for(student, updates, LEARNING_RATE)
    rng = np.random.default_rng(seed)
    scale = Scaler.fit(np.concatenate([scaler(part) for part in data.filled().parts])).scale
    for i, clean in enumerate(chunks.chunks(updates)):
        lanes = int(len(clean.points) * DISTURBED_SHARE)
        chunk = replace(clean, points=disturbed(clean.points, lanes, scale, rng, scaler.clip))
        residual = run(chunk).residual
        with torch.no_grad():
            wanted = ask(chunk).residual
        normal = chunk.counted.clone()
        normal[:lanes] = False
        own = trimmed_mean(mean_square(residual), normal)
        agree = trimmed_mean(mean_square(residual - wanted), chunk.counted, trim=0.0)
        descend(student, optimizer, (1 - DISTILL) * own + DISTILL * agree)
        schedule.step()
        progress("fine-tune", (i + 1) / updates, f"error {own.item():.4f}, distance to parent {agree.item():.4f}")


def disturbed(
    points: Tensor, lanes: int, scale: NDArray[np.float32], rng: np.random.Generator, clip: float | None = CLIP
) -> Tensor:
    """A copy of scaled points [B, T, F] with one synthetic anomaly in each of the first `lanes`, cut as inputs are."""
    changed = points.clone()
    for lane in changed[:lanes].numpy():
        disturb(lane, str(rng.choice(TAUGHT)), scale, rng)
    return changed if clip is None else changed.clamp_(-clip, clip)
