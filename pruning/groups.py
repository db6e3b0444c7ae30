"""Which indices of a tensor belong to which units. The one place that knows how gates are laid out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.networks import Group, Network, Slice

Keep = Mapping[str, Tensor]
"""Indices of surviving units by group, ascending int64; a group that is not named keeps all."""


def expand(units: Tensor, width: int, where: Slice) -> Tensor:
    """Indices along `where.axis` of the given units: unit j of a four-gate tensor is at j, H+j, 2H+j, 3H+j.

    >>> expand(torch.tensor([0, 2]), 3, Slice("w", 0, blocks=2)).tolist()
    [0, 2, 3, 5]
    """
    return torch.cat([units + block * width for block in range(where.blocks)])


def dropped(keep: Tensor, width: int) -> Tensor:
    """The units that are not kept, ascending."""
    gone = torch.ones(width, dtype=torch.bool)
    gone[keep] = False
    return gone.nonzero().flatten()


def prunable(network: Network) -> tuple[Group, ...]:
    """The groups that may lose units."""
    return tuple(group for group in network.groups() if not group.protected)


def checked(network: Network, keep: Keep) -> dict[str, Tensor]:
    """The keep-set of every group, validated.

    Raises:
        InvalidInputError: an unknown or protected group, a mask, an empty or unsorted set, or an index out of range.
    """
    groups = {group.name: group for group in network.groups()}
    for name in keep:
        if name not in groups:
            raise InvalidInputError(
                f"the network has no group {name!r}.", field="keep", hint=f"It has {', '.join(groups)}."
            )
    full = {}
    for name, group in groups.items():
        indices = keep.get(name, torch.arange(group.width))
        if indices.dtype == torch.bool or indices.is_floating_point():
            raise InvalidInputError("must be whole-number indices, not a mask or weights.", field=f"keep.{name}")
        indices = indices.to(torch.int64)
        if group.protected and len(indices) != group.width:
            raise InvalidInputError("this group is protected and keeps all its units.", field=f"keep.{name}")
        if not len(indices) or not bool((indices.diff() > 0).all()) or indices[0] < 0 or indices[-1] >= group.width:
            raise InvalidInputError(
                f"must be ascending indices between 0 and {group.width - 1}, at least one.", field=f"keep.{name}"
            )
        full[name] = indices
    return full
