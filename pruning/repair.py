"""Least-squares compensation: what a removed unit said is rebuilt from the units that stay.

Each dropped unit is regressed (ridge) on the kept ones over activations of the network before surgery; the map is
folded into every consumer, its constant into the consumer's bias. No gradient step. In the spirit of ThiNet (Luo et al.
2017) and of reconstruction-based channel pruning (He et al. 2017), with recurrent weights as one more consumer.

The bias of a convolution takes the constant summed over the kernel: exact but near a window's ends, where taps hang
over. That of a transposed one takes it on average over the positions that share the kernel's taps.

A whole layer can leave the same way: regressed on the units that it read, it is bypassed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detectors.training.fit import Runner
from detectors.training.networks import Group, Network, Slice
from detectors.training.stretches import Lanes, Windows
from pruning.groups import Keep, by_unit, checked, dropped
from pruning.surgery import remove

RIDGE = 1e-3  # of the mean variance of the kept units
CHUNKS = 8
ROWS = 4096  # of a chunk: what filters say at every position of a window is more than a regression needs


Seen = Mapping[str, Tensor]
"""What units said on normal points: {group or voice: [N, H]}, in the same order of points."""


def remove_and_repair(network: Network, keep: Keep, chunks: Lanes | Windows) -> Network:
    """Removes units as `surgery.remove` does and lets the kept ones take over what they can."""
    kept = checked(network.groups(), keep)
    prepared = copy.deepcopy(network)
    repair(prepared.state_dict(), network.groups(), kept, activations(network, chunks))
    return remove(prepared, kept)


def bypass(network: Network, group: str, chunks: Lanes | Windows) -> Network:
    """The network without a layer: its units' best linear guess from what the layer read takes their place.

    Args:
        network: Stays as it is.
        group: One that `reads` another.
        chunks: Normal points.
    """
    source = next(it.reads for it in network.groups() if it.name == group)
    assert source is not None, f"{group} can not be bypassed"
    seen = activations(network, chunks)
    mapping, constant = regress(seen[source], seen[group])
    dtype = next(network.parameters()).dtype
    return network.without(group, mapping.to(dtype), constant.to(dtype))


@torch.no_grad()
def activations(network: Network, chunks: Lanes | Windows) -> dict[str, Tensor]:
    """Units' outputs on normal points: {group or voice: [N, H]}."""
    run = Runner(network)
    seen: dict[str, list[Tensor]] = {}
    for chunk in chunks.chunks(CHUNKS):
        out = run(chunk)
        for name, values in out.activations.items():
            seen.setdefault(name, []).append(_rows(values[chunk.counted]))
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def repair(tensors: Mapping[str, Tensor], groups: Sequence[Group], keep: Keep, seen: Seen) -> None:
    """Adds the dropped units' part to what consumers read from the kept ones, in place; `keep` names all groups."""
    for group in groups:
        kept, gone = keep[group.name], dropped(keep[group.name], group.width)
        if not len(gone):
            continue
        maps = {
            voice: regress(seen[voice][:, kept], seen[voice][:, gone])
            for voice in {voice for where in group.consumers for voice in voices(group, where)}
        }
        for where in group.consumers:
            _fold(tensors, group, where, [maps[voice] for voice in voices(group, where)], kept, gone)


def voices(group: Group, where: Slice) -> tuple[str, ...]:
    """Which activations each block of a consumer reads."""
    return where.voices or (group.name,) * where.blocks


def _fold(
    tensors: Mapping[str, Tensor],
    group: Group,
    where: Slice,
    maps: Sequence[tuple[Tensor, Tensor]],
    kept: Tensor,
    gone: Tensor,
) -> None:
    """One consumer, block by block."""
    weight = tensors[where.tensor]
    for block, (mapping, constant) in zip(by_unit(weight, group.width, where), maps, strict=True):
        lost = block[gone]  # [D, inner, out, ...]
        block[kept] += torch.einsum("kd,d...->k...", mapping.to(weight.dtype), lost)
        if where.bias is not None:
            said = torch.einsum("d,di...->...", constant.to(weight.dtype), lost)  # [out, ...]
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
