"""What narrower groups cost in quality, before anything is trained: importance, calibrated by a few ablations.

A criterion says which units of a group to keep, not how much a unit of one group is worth in units of another. So each
group is cut alone to a few widths, repaired, and the loss on normal points is measured; in between it is interpolated
along the importance that is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.training.fit import chunks_over, held_out_loss
from detectors.training.fitted import Fitted
from detectors.training.networks import Group, Network
from detectors.training.stretches import Chunk, Stretches
from pruning.groups import prunable
from pruning.importance import Evidence, importance
from pruning.repair import activations, repair
from pruning.surgery import remove

PROBED = (0.75, 0.5, 0.25, 0.125)  # shares of a group's units that are kept in the ablations
JUDGED = 4  # chunks
TINY = 1e-9


@dataclass(frozen=True)
class Curve:
    """One group: what keeping its most important units loses.

    Attributes:
        lost: [width + 1], the share of the group's importance that is lost when so many units are kept.
        probes: [P, 2], measured: share lost, relative increase of the loss. Both ascend.
    """

    lost: NDArray[np.float64]
    probes: NDArray[np.float64]

    def at(self, width: int) -> float:
        """Relative increase of the loss when so many units are kept."""
        return float(np.interp(self.lost[width], self.probes[:, 0], self.probes[:, 1]))


def damage(
    fitted: Fitted, points: Stretches, criterion: str, seed: int, dense: Mapping[str, float]
) -> dict[str, Curve]:
    """A curve for each group that may lose units, members of an ensemble each for itself.

    Args:
        fitted: The dense detector.
        points: Normal ones.
        criterion: Importance by which units are kept.
        seed: Of the points that are looked at.
        dense: Losses by member that an increase is relative to.
    """
    curves = {}
    for name, member in fitted.network.members.items():
        for group, curve in _member(member, fitted, points, criterion, seed, dense[name]).items():
            curves[f"{name}.{group}" if name else group] = curve
    return curves


def losses(fitted: Fitted, points: Stretches, seed: int) -> dict[str, float]:
    """The training loss of each member on normal points."""
    return {
        name: max(held_out_loss(member, _judged(member, fitted, points, seed)), TINY)
        for name, member in fitted.network.members.items()
    }


def _judged(member: Network, fitted: Fitted, points: Stretches, seed: int) -> list[Chunk]:
    return list(chunks_over(points, fitted.scaler, member, seed + 1).chunks(JUDGED))


def _member(
    member: Network, fitted: Fitted, points: Stretches, criterion: str, seed: int, dense: float
) -> dict[str, Curve]:
    groups = prunable(member)
    if not groups:
        return {}
    chunks = chunks_over(points, fitted.scaler, member, seed)
    scores = importance(criterion, Evidence(member, chunks, seed))
    if not member.learned_by_gradient:
        return {group.name: Curve(_lost(scores[group.name]), np.array([[0.0, 0.0], [1.0, 1.0]])) for group in groups}
    seen = activations(member, chunks)
    judged = _judged(member, fitted, points, seed)
    own = held_out_loss(member, judged)

    def loss_with(group: Group, keep: Tensor) -> float:
        prepared = copy.deepcopy(member)
        full = {it.name: keep if it.name == group.name else torch.arange(it.width) for it in member.groups()}
        repair(prepared.state_dict(), member.groups(), full, seen)
        return held_out_loss(remove(prepared, full), judged)

    curves = {}
    for group in groups:
        lost = _lost(scores[group.name])
        probes = [(0.0, 0.0)]
        for width in sorted({max(1, round(group.width * share)) for share in PROBED}, reverse=True):
            loss = loss_with(group, most_important(scores[group.name], width))
            probes.append((float(lost[width]), max(0.0, (loss - own) / dense)))
        curves[group.name] = Curve(lost, _ascending(probes))
    return curves


def most_important(scores: Tensor, width: int) -> Tensor:
    """Indices of so many units, ascending."""
    return scores.topk(width).indices.sort().values


def _lost(scores: Tensor) -> NDArray[np.float64]:
    """Share of the importance that is lost when 0, 1, ... units are kept, the most important ones."""
    falling = np.sort(scores.double().numpy())[::-1]
    kept = np.concatenate([[0.0], np.cumsum(falling)])
    return np.asarray(1 - kept / max(kept[-1], 1e-300), np.float64).clip(0, 1)


def _ascending(probes: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Points of a curve that never falls; strictly ascending in x, and on to everything lost at the last slope."""
    x, y = np.array(probes).T
    x, y = np.maximum.accumulate(x), np.maximum.accumulate(y)
    x = x + np.arange(len(x)) * 1e-9
    slope = (y[-1] - y[-2]) / max(x[-1] - x[-2], 1e-6)
    x, y = np.append(x, max(1.0, x[-1] + 1e-9)), np.append(y, y[-1] + slope * max(1.0 - x[-1], 0.0))
    return np.stack([x, y], axis=1)
