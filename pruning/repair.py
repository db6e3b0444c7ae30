"""Least-squares compensation: what a removed unit said is rebuilt from the units that stay.

Each dropped unit is regressed (ridge) on the kept ones over activations of the network before surgery; the map is
folded into every consumer, its constant into the consumer's bias. No gradient step. In the spirit of ThiNet (Luo et al.
2017) and of reconstruction-based channel pruning (He et al. 2017), with recurrent weights as one more consumer.

The bias of a convolution takes the constant summed over the kernel: exact but near a window's ends, where taps hang
over. That of a transposed one takes it on average over the positions that share the kernel's taps.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from detectors.training.fit import Runner
from detectors.training.networks import Group, Network
from detectors.training.stretches import Lanes, Windows
from pruning.groups import Keep, checked, dropped
from pruning.surgery import remove

RIDGE = 1e-3  # of the mean variance of the kept units
CHUNKS = 8
ROWS = 4096  # of a chunk: what filters say at every position of a window is more than a regression needs


def remove_and_repair(network: Network, keep: Keep, chunks: Lanes | Windows) -> Network:
    """Removes units as `surgery.remove` does and lets the kept ones take over what they can."""
    kept = checked(network, keep)
    seen = activations(network, chunks)
    prepared = copy.deepcopy(network)
    with torch.no_grad():
        for group in network.groups():
            fold(prepared, group, kept[group.name], seen[group.name])
    return remove(prepared, kept)


@torch.no_grad()
def activations(network: Network, chunks: Lanes | Windows) -> dict[str, Tensor]:
    """Units' outputs on normal points: {group: [N, H]}."""
    run = Runner(network)
    seen: dict[str, list[Tensor]] = {group.name: [] for group in network.groups()}
    for chunk in chunks.chunks(CHUNKS):
        out = run(chunk)
        for name, values in out.activations.items():
            seen[name].append(_rows(values[chunk.counted]))
    return {name: torch.cat(parts) for name, parts in seen.items()}


def fold(network: Network, group: Group, keep: Tensor, seen: Tensor) -> None:
    """Adds the dropped units' part to what consumers read from the kept ones, in place."""
    gone = dropped(keep, group.width)
    if not len(gone):
        return
    mapping, constant = regress(seen[:, keep], seen[:, gone])  # [K, D], [D]
    tensors = network.state_dict()
    for where in group.consumers:
        weight = tensors[where.tensor]
        mapping, constant = mapping.to(weight.dtype), constant.to(weight.dtype)
        by_unit = weight.movedim(where.axis, 0).unflatten(0, (where.blocks, group.width))  # a view
        lost = by_unit[:, gone]  # [blocks, D, out, ...]
        by_unit[:, keep] += torch.einsum("kd,bd...->bk...", mapping, lost)
        if where.bias is not None:
            said = torch.einsum("d,bd...->...", constant, lost)  # [out, ...]
            tensors[where.bias] += said.reshape(len(said), -1).sum(dim=1) / where.phases


def _rows(values: Tensor) -> Tensor:
    """[N, ..., H] -> [n, H]: units that speak several times for a point are heard each time, up to `ROWS` in all."""
    flat = values.flatten(0, -2)
    if len(flat) <= ROWS:
        return flat
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:ROWS]]


def regress(kept: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression with intercept in float64: gone [N, D] ~ kept [N, K] @ mapping [K, D] + constant [D]."""
    x, y = kept.double(), gone.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    mapping = torch.linalg.solve(gram, x.T @ y)
    return mapping, y_mean - x_mean @ mapping
