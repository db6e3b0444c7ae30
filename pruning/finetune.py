"""Training a pruned network against its dense parent on recent normal points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.training.calibrate import CLIP, Scaler
from detectors.training.fit import (
    TRIM,
    Progress,
    Runner,
    chunks_over,
    descend,
    optimizer_for,
    seeded,
    silent,
    training_loss,
    trimmed_mean,
)
from detectors.training.fitted import mean_square
from detectors.training.networks import Network, Pass
from detectors.training.stretches import Stretches
from pruning.injection import TAUGHT, disturb

DISTILL = 0.9  # weight of agreeing with the parent beside predicting the points themselves
HIDDEN = 0.1  # weight, falling to none, of hidden units saying what they say in the parent, in units of their variance
HIDDEN_FLOOR = 1e-3  # of that variance
DISTURBED_SHARE = 0.25  # of the lanes or windows carry synthetic anomalies: there the parent alone says what is right
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Kept:
    """Where the units of a group of the student stand in the teacher.

    Attributes:
        group: The student's.
        teacher: The teacher's group.
        indices: The teacher's unit of each.
    """

    group: str
    teacher: str
    indices: Tensor


def finetune(
    student: Network,
    teacher: Network,
    data: Stretches,
    scaler: Scaler,
    *,
    kept: Sequence[Kept] = (),
    updates: int,
    seed: int,
    trim: float = TRIM,
    progress: Progress = silent,
) -> None:
    """Trains `student` in place on the trimmed error and on agreement with `teacher` (Hinton et al. 2015).

    Both see the same scaled points, so the difference of their residuals is the difference of their outputs. Units that
    were kept begin by saying what they say in the teacher, and may leave it later. A detector is judged by what it does
    off the beaten track, so some lanes are disturbed; they count for the agreement only. The gate judges on more kinds
    than are shown here. A student that samples while it is trained (a variational one) does so here too; the teacher
    never does.

    Args:
        student: Pruned; its window may be the shorter one.
        teacher: Its dense parent.
        data: Normal points.
        scaler: Of both.
        kept: Units of the student that are units of the teacher.
        updates: Gradient steps.
        seed: Of the points, disturbances and samples.
        trim: Share of the largest losses of a batch that is not learned from.
        progress: Told after every update.
    """
    chunks = chunks_over(data, scaler, longer(student, teacher), seed)
    run, ask = Runner(student), Runner(teacher)
    optimizer, schedule = optimizer_for(student, updates, LEARNING_RATE)
    rng = np.random.default_rng(seed)
    scale = Scaler.fit(np.concatenate([scaler(part) for part in data.filled().parts])).scale
    student.train()
    with seeded(seed):
        for i, clean in enumerate(chunks.chunks(updates)):
            lanes = int(len(clean.points) * DISTURBED_SHARE)
            chunk = replace(clean, points=disturbed(clean.points, lanes, scale, rng, scaler.clip))
            out = run(chunk)
            with torch.no_grad():
                wanted = ask(chunk)
            residual, goal = shared(out.residual, wanted.residual)
            counted = chunk.counted[:, -residual.shape[1] :]
            normal = counted.clone()
            normal[:lanes] = False
            own = training_loss(newest(out, residual), normal, trim)
            agree = trimmed_mean(mean_square(residual - goal), counted, trim=0.0)
            guidance = HIDDEN * (1 - i / updates)
            loss = (1 - DISTILL) * own + DISTILL * agree + guidance * hidden_distance(out, wanted, kept, counted)
            descend(student, optimizer, loss)
            schedule.step()
            progress("fine-tune", (i + 1) / updates, f"error {own.item():.4f}, distance to parent {agree.item():.4f}")
    student.eval()


def longer(student: Network, teacher: Network) -> Network:
    """Whose window the points are cut for: the teacher has to see all of its own."""
    return teacher if teacher.window > student.window else student


def shared(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals [B, T, R, F] at the points and positions that both judge: the last ones."""
    points, positions = (min(ours.shape[axis], theirs.shape[axis]) for axis in (1, 2))
    return ours[:, -points:, -positions:], theirs[:, -points:, -positions:]


def newest(out: Pass, residual: Tensor) -> Pass:
    """A pass cut to the points of `residual` [B, T, R, F], its last ones, with that as its residual."""
    return out._replace(residual=residual, loss=None if out.loss is None else out.loss[:, -residual.shape[1] :])


def hidden_distance(out: Pass, wanted: Pass, kept: Sequence[Kept], counted: Tensor) -> Tensor:
    """Mean squared distance of kept units from what they say in the teacher, each in units of its variance there.

    Units that speak for other points or positions in the two (a shorter window) are left out.
    """
    total, groups = out.residual.new_zeros(()), 0
    for it in kept:
        ours, theirs = out.activations[it.group], wanted.activations[it.teacher].index_select(-1, it.indices)
        if ours.shape != theirs.shape:
            continue
        ours, theirs = ours[counted].flatten(0, -2), theirs[counted].flatten(0, -2)
        variance = theirs.var(dim=0, unbiased=False).clamp(min=HIDDEN_FLOOR)
        total = total + ((ours - theirs).square() / variance).mean()
        groups += 1
    return total / max(groups, 1)


def disturbed(
    points: Tensor, lanes: int, scale: NDArray[np.float32], rng: np.random.Generator, clip: float | None = CLIP
) -> Tensor:
    """A copy of scaled points [B, T, F] with one synthetic anomaly in each of the first `lanes`, cut as inputs are."""
    changed = points.clone()
    for lane in changed[:lanes].numpy():
        disturb(lane, str(rng.choice(TAUGHT)), scale, rng)
    return changed if clip is None else changed.clamp_(-clip, clip)
