"""What can be made smaller beside widths: whole layers, the window, the depth of trees.

Widths come first. Only where the narrowest network is still too slow or too large, or would lose too much, are layers
bypassed and levers pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch

from detectors.training.networks import Lever, Network
from detectors.training.stretches import Lanes, Windows
from pruning.repair import bypass

Chunks = Callable[[Network], Lanes | Windows]
"""What a member of a network is shown."""


@dataclass(frozen=True)
class Structure:
    """What is done to a network before its widths are chosen.

    Attributes:
        without: Groups whose layer is bypassed, deepest first.
        levers: Those that are pulled, with their values.
    """

    without: tuple[str, ...] = ()
    levers: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        parts = [f"without {name}" for name in self.without] + [f"{name} {value}" for name, value in self.levers]
        return ", ".join(parts)

    def __bool__(self) -> bool:
        return bool(self.without or self.levers)

    def to_dict(self) -> dict[str, object]:
        """As outcomes carry it."""
        return {"without": list(self.without), "levers": dict(self.levers)}


def structures(network: Network) -> list[Structure]:
    """Every structure that a network can take, mildest first; the first is the network as it is.

    Layers are bypassed from the deepest up, levers pulled by halves; as many steps count alike.
    """
    layers = [group.name for group in reversed(network.groups()) if group.reads is not None]
    levers = network.levers()
    found = []
    for count in range(len(layers) + 1):
        for values in product(*(enumerate(_values(lever)) for lever in levers)):
            pulled = tuple((lever.name, value) for lever, (step, value) in zip(levers, values, strict=True) if step)
            steps = count + sum(step for step, _ in values)
            found.append((steps, Structure(tuple(layers[:count]), pulled)))
    return [structure for _, structure in sorted(found, key=lambda it: it[0])]


def restructured(network: Network, structure: Structure, chunks: Chunks | None = None) -> Network:
    """The network with layers bypassed and levers pulled; a new one.

    Args:
        network: Stays as it is.
        structure: What to do.
        chunks: Normal points, from which bypassed layers are repaired; None where only sizes matter.
    """
    members = dict(network.members)
    for full in structure.without:
        name, group = _split(full, members)
        member = members[name]
        members[name] = bypass(member, group, chunks(member)) if chunks else _unrepaired(member, group)
    for full, value in structure.levers:
        name, lever = _split(full, members)
        members[name] = members[name].pulled(lever, value)
    return network.with_members(members)


def origins(network: Network, structure: Structure) -> dict[str, str]:
    """For each group of the restructured network the group of the network that it was.

    Layers that stand after a bypassed one may be renumbered.
    """
    now = [group.name for group in restructured(network, structure).groups()]
    before = [group.name for group in network.groups() if group.name not in structure.without]
    return dict(zip(now, before, strict=True))


def _values(lever: Lever) -> list[int]:
    """What it is, and halves down to its smallest."""
    values = [lever.value]
    while values[-1] > lever.smallest:
        values.append(max(lever.smallest, values[-1] // 2))
    return values


def _unrepaired(member: Network, group: str) -> Network:
    units = member.units
    source = next(it.reads for it in member.groups() if it.name == group)
    assert source is not None, f"{group} can not be bypassed"
    return member.without(group, torch.zeros(units[source], units[group]), torch.zeros(units[group]))


def _split(full: str, members: Mapping[str, Network]) -> tuple[str, str]:
    """The member and its own name of a group or lever."""
    name, _, own = full.partition(".")
    return (name, own) if name in members else ("", full)
