"""How much each hidden unit matters: a criterion gives one non-negative number a unit; higher stays longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.fit import Runner, training_loss
from detectors.training.networks import Group, Network, Slice
from detectors.training.stretches import Lanes, Windows
from pruning.groups import by_unit
from pruning.repair import RIDGE, Seen, activations

BATCHES = 16  # chunks that gradients are averaged over
RANKED = 1000  # points on which trees are compared
IDLE = 0.01  # nats: a latent that diverges less from its prior says nothing


class Observed(Protocol):
    """What a criterion may ask, of a network or of a module of the user's own."""

    @property
    def seed(self) -> int:
        """Of random scores."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Weights and buffers by name."""

    def seen(self) -> Seen:
        """What units say on normal points."""

    def gradients(self) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """Weights and their gradients of the loss, batch by batch."""


@dataclass(frozen=True)
class Evidence:
    """A network on normal points."""

    network: Network
    chunks: Lanes | Windows
    seed: int

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's state."""
        return self.network.state_dict()

    def seen(self) -> Seen:
        """What its units say."""
        return activations(self.network, self.chunks)

    def gradients(self) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """Of the training loss."""
        network, run = self.network, Runner(self.network)
        parameters = dict(network.named_parameters())
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        for chunk in islice(self.chunks.chunks(BATCHES), BATCHES):
            network.zero_grad(set_to_none=True)
            training_loss(run(chunk), chunk.counted).backward()  # type: ignore[no-untyped-call]
            yield weights, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        network.zero_grad(set_to_none=True)


Scores = dict[str, Tensor]
Criterion = Callable[[Observed, tuple[Group, ...]], Scores]


def importance(criterion: str, evidence: Evidence) -> Scores:
    """Importance of every unit that may go: {group: [width]}.

    Groups that are judged in a way of their own (`Group.criterion`) are, whatever is asked for; but for `random`. `kl`
    is for latents: the other groups of a network that has them are judged by `DEFAULT`.

    Args:
        criterion: One of `CRITERIA`.
        evidence: The network and normal points.

    Raises:
        InvalidInputError: an unknown criterion, or one that does not apply to the network's units.
    """
    if criterion not in CRITERIA:
        raise InvalidInputError(
            f"{criterion!r} is not an importance criterion.", field="criterion", hint=f"Choose {', '.join(CRITERIA)}."
        )
    groups = evidence.network.groups()
    has_latents = any(group.criterion == "kl" for group in groups)
    asked = DEFAULT if criterion == "kl" and has_latents else criterion
    by: dict[str, list[Group]] = {}
    for group in groups:
        if not group.protected or group.criterion is not None:
            own = group.criterion if criterion != "random" else None
            by.setdefault(own or asked, []).append(group)
    return {name: score for how, alike in by.items() for name, score in CRITERIA[how](evidence, tuple(alike)).items()}


def idle(network: Network, chunks: Lanes | Windows) -> dict[str, Tensor]:
    """Units that say nothing, by group, ascending: they may leave even a protected group."""
    groups = tuple(group for group in network.groups() if group.criterion == "kl")
    if not groups:
        return {}
    scores = by_divergence(Evidence(network, chunks, 0), groups)
    return {name: (score < IDLE).nonzero().flatten() for name, score in scores.items()}


def by_random(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Uniform noise: the baseline."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {group.name: torch.rand(group.width, generator=generator) for group in groups}


def by_l1(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Sum of absolute values over all slices of a unit (Li et al. 2017)."""
    tensors = evidence.tensors()
    return {group.name: _over_slices({k: v.abs() for k, v in tensors.items()}, group) for group in groups}


def by_l2(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Euclidean norm over all slices of a unit, incoming, recurrent and outgoing (Wen et al. 2018, ISS)."""
    tensors = evidence.tensors()
    return {group.name: _over_slices({k: v.square() for k, v in tensors.items()}, group).sqrt() for group in groups}


def by_activation(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Mean absolute output on normal points (Hu et al. 2016, without the threshold)."""
    seen = evidence.seen()
    return {group.name: seen[group.name].abs().mean(dim=0) for group in groups}


def by_taylor(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Squared first-order change of the loss when everything that reads the unit is zeroed (Molchanov et al. 2019).

    The sum of gradient x weight runs over all outgoing weights, the recurrent ones included, so the unit's effect
    through time counts; it is squared batch by batch, because at a trained parent the gradients average to nothing.
    """
    scores = {group.name: torch.zeros(group.width) for group in groups}
    for weights, gradients in evidence.gradients():
        for group in groups:
            change = torch.zeros(group.width)
            for where in group.consumers:
                change += _per_unit(weights[where.tensor] * gradients[where.tensor], group, where)
            scores[group.name] += change.square()
    return scores


def by_fisher(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Second-order change of the loss, with the diagonal of the Fisher information for the Hessian.

    Half of w^2 E[g^2], summed over all outgoing weights (LeCun et al. 1990; Theis et al. 2018).
    """
    scores = {group.name: torch.zeros(group.width) for group in groups}
    for weights, gradients in evidence.gradients():
        for group in groups:
            for where in group.consumers:
                each = 0.5 * (weights[where.tensor] * gradients[where.tensor]).square()
                scores[group.name] += _per_unit(each, group, where)
    return scores


def by_reconstruction(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """What the other units can not say for it, after ThiNet (Luo et al. 2017) and optimal brain surgery.

    The variance that least squares from all other units leaves, times its squared outgoing weights.
    """
    tensors = evidence.tensors()
    seen = evidence.seen()
    scores = {}
    for group in groups:
        said = seen[group.name].double()
        centered = said - said.mean(dim=0)
        gram = centered.T @ centered / len(said)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
        left = 1 / torch.linalg.inv(gram).diagonal()  # residual variance of each unit given the others
        out = sum((_per_unit(tensors[s.tensor].square(), group, s) for s in group.consumers), torch.zeros(group.width))
        scores[group.name] = left.to(out.dtype) * out
    return scores


def by_divergence(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Mean divergence of a latent from its prior, in nats: latents that the fit has switched off have next to none.

    Raises:
        InvalidInputError: units that are no latents.
    """
    seen = evidence.seen()
    for group in groups:
        if f"{group.name}/divergence" not in seen:
            raise InvalidInputError(
                f"units of {group.name!r} are no latents and have no divergence.",
                field="criterion",
                hint=f"Choose another criterion, e.g. {DEFAULT}.",
            )
    return {group.name: seen[f"{group.name}/divergence"].mean(dim=0) for group in groups}


def by_agreement(evidence: Observed, groups: tuple[Group, ...]) -> Scores:
    """Members of a committee in the order of a greedy choice; for trees, which have no gradients.

    The next one is who makes the mean of the chosen rank points most as the mean of all does (Spearman).
    """
    seen = evidence.seen()
    scores = {}
    for group in groups:
        votes = seen[group.name][:RANKED].double()  # [N, H]
        wanted = _ranks(votes.mean(dim=1, keepdim=True))
        left, total = list(range(group.width)), torch.zeros(len(votes), 1, dtype=torch.float64)
        score = torch.zeros(group.width)
        while left:
            agreement = (_ranks(total + votes[:, left]) * wanted).sum(dim=0)
            best = left.pop(int(agreement.argmax()))
            total = total + votes[:, best : best + 1]
            score[best] = float(len(left) + 1)
        scores[group.name] = score
    return scores


CRITERIA: Mapping[str, Criterion] = {
    "random": by_random,
    "l1": by_l1,
    "l2": by_l2,
    "activation": by_activation,
    "taylor": by_taylor,
    "fisher": by_fisher,
    "reconstruction": by_reconstruction,
    "kl": by_divergence,
    "agreement": by_agreement,
}
DEFAULT = "taylor"


def _over_slices(tensors: Mapping[str, Tensor], group: Group) -> Tensor:
    """Sum over everything that belongs to each unit: [width]."""
    each = [_per_unit(tensors[where.tensor], group, where) for where in (*group.own, *group.consumers)]
    return torch.stack(each).sum(dim=0)


def _per_unit(tensor: Tensor, group: Group, where: Slice) -> Tensor:
    """Sums everything of a tensor that belongs to each unit: [width]."""
    return by_unit(tensor, group.width, where).transpose(0, 1).flatten(1).sum(dim=1)


def _ranks(values: Tensor) -> Tensor:
    """Ranks [N, K] down each column, centered and of unit length, so that products are correlations."""
    ranks = values.argsort(dim=0).argsort(dim=0).double()
    ranks = ranks - ranks.mean(dim=0)
    return ranks / ranks.square().sum(dim=0).sqrt().clamp(min=1e-12)
