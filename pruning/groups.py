"""Which indices of a tensor belong to which units. The one place that knows how gates are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.networks import Group, Slice

Keep = Mapping[str, Tensor]
"""Indices of surviving units by group, ascending int64; a group that is not named keeps all."""


class Grouped(Protocol):
    """What declares groups: a network, or a module of the user's own."""

    def groups(self) -> tuple[Group, ...]:
        """In the order of the forward pass."""


def expand(units: Tensor, width: int, where: Slice) -> Tensor:
    """Indices along `where.axis` of the given units: unit j of a four-gate tensor is at j, H+j, 2H+j, 3H+j.

    >>> expand(torch.tensor([0, 2]), 3, Slice("w", 0, blocks=2)).tolist()
    [0, 2, 3, 5]
    >>> expand(torch.tensor([0, 2]), 3, Slice("w", 0, inner=2)).tolist()
    [0, 1, 4, 5]
    """
    entries = (units[:, None] * where.inner + torch.arange(where.inner)).flatten()
    return torch.cat([entries + block * width * where.inner for block in range(where.blocks)])


def by_unit(tensor: Tensor, width: int, where: Slice) -> Tensor:
    """A view of a tensor as [blocks, width, inner, ...]: the axes of the units first."""
    moved = tensor.movedim(where.axis, 0)
    return moved.view(where.blocks, width, where.inner, *moved.shape[1:])


def dropped(keep: Tensor, width: int) -> Tensor:
    """The units that are not kept, ascending."""
    gone = torch.ones(width, dtype=torch.bool)
    gone[keep] = False
    return gone.nonzero().flatten()


def prunable(network: Grouped) -> tuple[Group, ...]:
    """The groups that may lose units."""
    return tuple(group for group in network.groups() if not group.protected)


def checked(groups: Sequence[Group], keep: Keep) -> dict[str, Tensor]:
    """The keep-set of every group, validated.

    Raises:
        InvalidInputError: an unknown or protected group, a mask, an empty or unsorted set, or an index out of range.
    """
    known = {group.name: group for group in groups}
    for name in keep:
        if name not in known:
            raise InvalidInputError(
                f"the network has no group {name!r}.", field="keep", hint=f"It has {', '.join(known)}."
            )
    full = {}
    for name, group in known.items():
        indices = keep.get(name, torch.arange(group.width))
        if indices.dtype == torch.bool or indices.is_floating_point():
            raise InvalidInputError("must be whole-number indices, not a mask or weights.", field=f"keep.{name}")
        indices = indices.to(torch.int64)
        if group.protected and group.criterion is None and len(indices) != group.width:
            raise InvalidInputError("this group is protected and keeps all its units.", field=f"keep.{name}")
        if not len(indices) or not bool((indices.diff() > 0).all()) or indices[0] < 0 or indices[-1] >= group.width:
            raise InvalidInputError(
                f"must be ascending indices between 0 and {group.width - 1}, at least one.", field=f"keep.{name}"
            )
        full[name] = indices
    return full


def kept_tensors(tensors: Mapping[str, Tensor], groups: Sequence[Group], keep: Keep) -> dict[str, Tensor]:
    """Every tensor without what belongs to units that are not kept; `keep` names all groups."""
    cut = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for group in groups:
        for where in (*group.own, *group.consumers):
            index = expand(keep[group.name], group.width, where)
            cut[where.tensor] = cut[where.tensor].index_select(where.axis, index)
    return cut


def require_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], groups: Sequence[Group]) -> None:
    """Asserts that cut tensors fit the smaller network, and that its groups lie along them as declared.

    A mis-sliced LSTM may run without an error and answer differently each time, so this is not left to torch.

    Args:
        tensors: After the cut.
        wanted: State of the smaller network.
        groups: Of the smaller network.
    """
    assert tensors.keys() == wanted.keys(), f"{sorted(tensors)}, wanted {sorted(wanted)}"
    for name, tensor in wanted.items():
        have = tuple(tensors[name].shape)
        assert have == tuple(tensor.shape), f"{name}: {have}, wanted {tuple(tensor.shape)}"
    for group in groups:
        for where in (*group.own, *group.consumers):
            size, units = wanted[where.tensor].shape[where.axis], group.width * where.blocks * where.inner
            assert size == units, f"{where.tensor}, axis {where.axis}: {size} entries for {units} of {group.name}"
