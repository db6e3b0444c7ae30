"""Ways to come to a narrow network: those that pruning is held against, at the widths that pruning chose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch.nn.utils import prune as masks

from detectors.training.fit import FitOptions, chunks_over, seeded, train
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Stretches
from pruning.derive import Derivation, DeriveOptions
from pruning.finetune import finetune
from pruning.groups import prunable
from pruning.structures import Structure, origins, restructured

LONG_UPDATES = 4000
"""At most, of training from scratch to the end (the product's own fit: 1,200); mostly held-out points end it before."""
FRESH_SEED = 1000
"""Of fresh weights, beside the seed: they are not to be those that the parent began with."""


@dataclass(frozen=True)
class Wanted:
    """What pruning chose.

    Attributes:
        structure: Layers bypassed and levers pulled.
        units: Widths after that.
        updates: Gradient steps that each member was fine-tuned for.
    """

    structure: Structure
    units: dict[str, int]
    updates: int


@dataclass(frozen=True)
class Ground:
    """What every method works with.

    Attributes:
        dense: The calibrated parent.
        training: Normal points.
        held_out: Normal points for calibration and the gate.
        seed: Of all that is drawn.
    """

    dense: Fitted
    training: Stretches
    held_out: Stretches
    seed: int

    def base(self, structure: Structure, *, repaired: bool = True) -> Network:
        """The parent's network with a structure applied."""
        if not structure:
            return self.dense.network
        chunks = (lambda member: chunks_over(self.training, self.dense.scaler, member, self.seed)) if repaired else None
        return restructured(self.dense.network, structure, chunks)

    def taught(self, network: Network, updates: int) -> None:
        """Fine-tunes a network against the parent in place, member by member, as a child of a cycle is."""
        for name, member in network.members.items():
            if member.learned_by_gradient:
                teacher = self.dense.network.members[name]
                finetune(member, teacher, self.training, self.dense.scaler, updates=updates, seed=self.seed)


Method = Callable[[Ground, Wanted], Network]
"""Makes a network of the wanted widths."""


class NotPossible(Exception):  # noqa: N818  (it is a finding: what a method can not do)
    """A method can not make this network; says why."""


def by_random_units(ground: Ground, wanted: Wanted) -> Network:
    """Random units stay; all else as in a cycle."""
    return _derived(ground, wanted, DeriveOptions("random", updates=wanted.updates, seed=ground.seed))


def without_repair(ground: Ground, wanted: Wanted) -> Network:
    """The units that a cycle keeps, but they take nothing over from those that go."""
    return _derived(ground, wanted, DeriveOptions(repair=False, updates=wanted.updates, seed=ground.seed))


def from_scratch(ground: Ground, wanted: Wanted) -> Network:
    """Fresh weights, taught by the parent as a child is, for as many updates."""
    network = _fresh(ground, wanted)
    ground.taught(network, wanted.updates)
    return network


def from_scratch_to_the_end(ground: Ground, wanted: Wanted) -> Network:
    """Fresh weights, fitted as the product fits, until held-out points get no better."""
    network = _fresh(ground, wanted)
    options = FitOptions(updates=LONG_UPDATES)
    with seeded(ground.seed):
        for member in network.members.values():
            if member.learned_by_gradient:
                train(member, ground.training, ground.held_out, ground.dense.scaler, options, ground.seed)
    return network


def with_masks(ground: Ground, wanted: Wanted) -> Network:
    """As many rows of each tensor masked with `torch.nn.utils.prune.ln_structured`; the tensors keep their size."""
    network = copy.deepcopy(ground.dense.network)
    if not any(member.learned_by_gradient for member in network.members.values()):
        raise NotPossible("torch.nn.utils.prune masks parameters, and trees have none")
    before = origins(ground.dense.network, wanted.structure)
    units = {before[name]: width for name, width in wanted.units.items()}
    masked = []
    for group in prunable(network):
        for where in group.own:
            path, _, name = where.tensor.rpartition(".")
            module = network.get_submodule(path)
            if getattr(module, name).ndim > 1:
                rows = (group.width - units.get(group.name, group.width)) * where.blocks * where.inner
                masks.ln_structured(module, name, rows, n=2, dim=where.axis)
                masked.append((module, name))
    ground.taught(network, wanted.updates)
    for module, name in masked:
        masks.remove(module, name)
    return network


def _derived(ground: Ground, wanted: Wanted, how: DeriveOptions) -> Network:
    base = ground.dense.with_network(ground.base(wanted.structure, repaired=how.repair))
    derivation = Derivation(ground.dense, ground.training, how, base=base, structure=wanted.structure)
    return derivation.down_to(wanted.units).network


def _fresh(ground: Ground, wanted: Wanted) -> Network:
    """Of the wanted widths, with weights that nothing was learned into; a forest is grown."""
    with seeded(ground.seed + FRESH_SEED):
        network = ground.base(wanted.structure).resized(wanted.units)
        for member in network.members.values():
            if not member.learned_by_gradient:
                member.grow(ground.training, ground.dense.scaler, ground.seed + FRESH_SEED)
    return network


def gradient_members(network: Network) -> int:
    """How many members are fine-tuned."""
    return sum(member.learned_by_gradient for member in network.members.values())
