"""Taking units out: a new, really smaller network. What serves is never touched."""

from __future__ import annotations

import copy

import torch

from detectors.training.networks import Network
from pruning.groups import Keep, checked, dropped, expand, kept_tensors, require_shapes


def remove(network: Network, keep: Keep) -> Network:
    """A network of the kept units with their weights.

    Removing units gives the same output as zeroing everything that reads them (`masked`).

    Args:
        network: Stays as it is.
        keep: Surviving units by group.

    Returns:
        A new network; its shapes have been checked against what its widths ask for.
    """
    kept = checked(network.groups(), keep)
    tensors = kept_tensors(network.state_dict(), network.groups(), kept)
    smaller = network.resized({name: len(indices) for name, indices in kept.items()})
    smaller.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    require_shapes(tensors, smaller.state_dict(), smaller.groups())
    smaller.load_state_dict(tensors)
    return smaller


def masked(network: Network, keep: Keep) -> Network:
    """A network of the same size in which nothing reads the units that are not kept."""
    kept = checked(network.groups(), keep)
    copied = copy.deepcopy(network)
    tensors = copied.state_dict()
    with torch.no_grad():
        for group in network.groups():
            gone = dropped(kept[group.name], group.width)
            for where in group.consumers:
                tensors[where.tensor].index_fill_(where.axis, expand(gone, group.width, where), 0.0)
    return copied
