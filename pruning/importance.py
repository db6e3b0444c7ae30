"""How much each hidden unit matters: a criterion gives one non-negative number a unit; higher stays longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.fit import Runner, training_loss
from detectors.training.networks import Group, Network, Slice
from detectors.training.stretches import Lanes, Windows
from pruning.groups import prunable

BATCHES = 16  # chunks that gradients are averaged over


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at."""

    network: Network
    chunks: Lanes | Windows
    seed: int


Scores = dict[str, Tensor]


def importance(criterion: str, evidence: Evidence) -> Scores:
    """Importance of every prunable unit: {group: [width]}.

    Args:
        criterion: `random`, `l2` or `taylor`.
        evidence: The network and normal points.

    Raises:
        InvalidInputError: an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise InvalidInputError(
            f"{criterion!r} is not an importance criterion.", field="criterion", hint=f"Choose {', '.join(CRITERIA)}."
        )
    return CRITERIA[criterion](evidence)


def by_random(evidence: Evidence) -> Scores:
    """Uniform noise: the baseline."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {group.name: torch.rand(group.width, generator=generator) for group in prunable(evidence.network)}


def by_l2(evidence: Evidence) -> Scores:
    """Euclidean norm over all slices of a unit, incoming, recurrent and outgoing (Wen et al. 2018, ISS)."""
    tensors = evidence.network.state_dict()

    def norm(group: Group) -> Tensor:
        return sum(
            (_per_unit(tensors[s.tensor].square(), group, s) for s in (*group.own, *group.consumers)), torch.zeros(())
        ).sqrt()

    return {group.name: norm(group) for group in prunable(evidence.network)}


def by_taylor(evidence: Evidence) -> Scores:
    """Squared first-order change of the loss when everything that reads the unit is zeroed (Molchanov et al. 2019).

    The sum of gradient x weight runs over all outgoing weights, the recurrent ones included, so the unit's effect
    through time counts; it is squared batch by batch, because at a trained parent the gradients average to nothing.
    """
    network, run = evidence.network, Runner(evidence.network)
    groups = prunable(network)
    scores = {group.name: torch.zeros(group.width) for group in groups}
    parameters = dict(network.named_parameters())
    for chunk in islice(evidence.chunks.chunks(BATCHES), BATCHES):
        network.zero_grad(set_to_none=True)
        training_loss(run(chunk), chunk.counted).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            change = torch.zeros(group.width)
            for where in group.consumers:
                parameter = parameters[where.tensor]
                assert parameter.grad is not None
                change += _per_unit(parameter.detach() * parameter.grad, group, where)
            scores[group.name] += change.square()
    network.zero_grad(set_to_none=True)
    return scores


def _per_unit(tensor: Tensor, group: Group, where: Slice) -> Tensor:
    """Sums everything of a tensor that belongs to each unit: [width]."""
    others = [axis for axis in range(tensor.dim()) if axis != where.axis]
    flat = tensor.sum(dim=others) if others else tensor
    return flat.view(where.blocks, group.width).sum(dim=0)


CRITERIA: Mapping[str, Callable[[Evidence], Scores]] = {"random": by_random, "l2": by_l2, "taylor": by_taylor}
