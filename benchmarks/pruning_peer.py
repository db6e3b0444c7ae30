"""Torch-Pruning at the widths that pruning chose, for the networks it can prune; what it says of the others."""

from __future__ import annotations

import copy
from importlib.metadata import PackageNotFoundError, version

import torch
from pruning_methods import Ground, NotPossible, Wanted
from torch import Tensor, nn

from detectors.training.networks import Network
from pruning.groups import prunable

PACKAGE = "torch-pruning"
POINTS = 4
"""Of the example that dependencies are traced with."""


class Traced(nn.Module):
    """A network as a function of points alone, as Torch-Pruning traces it: [B, T, F] -> residual."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        """From a fresh state."""
        residual: Tensor = self.network(points, self.network.fresh(len(points))).residual
        return residual


def installed() -> str | None:
    """Its version; None where it is not there."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def by_torch_pruning(ground: Ground, wanted: Wanted) -> Network:
    """Its magnitude pruner, which scores groups of layers, to the same widths; then taught as a child is.

    Raises:
        NotPossible: it fails, or leaves a layer as wide as it was.
    """
    if installed() is None:
        raise NotPossible(f"{PACKAGE} is not installed")
    base = copy.deepcopy(ground.base(wanted.structure))
    members = dict(base.members)
    for name, member in members.items():
        own = {key.removeprefix(f"{name}.") if name else key: width for key, width in wanted.units.items()}
        widths = {group.name: own[group.name] for group in prunable(member) if group.name in own}
        members[name] = _pruned(member, widths)
    network = base.with_members(members)
    ground.taught(network, wanted.updates)
    return network


def _pruned(member: Network, widths: dict[str, int]) -> Network:
    import torch_pruning

    if not member.learned_by_gradient:
        raise NotPossible("it prunes layers, and trees are none")
    wanted = {**member.units, **widths}
    traced = Traced(copy.deepcopy(member))
    makers = {
        group.name: traced.network.get_submodule(group.own[0].tensor.rpartition(".")[0]) for group in prunable(member)
    }
    ratios = {makers[name]: 1 - (width + 0.01) / member.units[name] for name, width in widths.items()}
    leaves = [module for module in traced.modules() if not list(module.children()) and list(module.parameters())]
    example = torch.zeros(2, max(POINTS, member.window), member.n_features)
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            traced,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=[module for module in leaves if module not in ratios],
        )
        pruner.step()
    except Exception as error:  # whatever it raises is what is reported
        text = " ".join(str(error).split())
        raise NotPossible(f"{type(error).__name__}: {text[:120]}") from error
    left = {name: tuple(tensor.shape) for name, tensor in traced.network.state_dict().items()}
    smaller = member.resized(wanted)
    wrong = [name for name, tensor in smaller.state_dict().items() if left.get(name) != tuple(tensor.shape)]
    if wrong:
        shapes = f"{wrong[0]} is {list(left[wrong[0]])}, wanted {list(smaller.state_dict()[wrong[0]].shape)}"
        raise NotPossible(f"without a word it leaves other widths than asked for: {shapes}")
    smaller.load_state_dict(traced.network.state_dict())
    return smaller
