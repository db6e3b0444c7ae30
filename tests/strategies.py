"""Drawn networks, keep-sets and points for Hypothesis. Torch runs on one thread in every test that imports this."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from detectors.training.networks import LSTM, Autoencoder, Network

torch.set_num_threads(1)

SEEDS = st.integers(0, 2**31 - 1)
WIDTHS = st.integers(1, 24)
FEATURES = st.integers(1, 6)


def randomised(network: Network, seed: int) -> Network:
    """The network in float64 with weights and biases far from zero, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return network


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def lstms(draw: st.DrawFn) -> Network:
    """LSTMs of one to three layers, each with its own width, over one to six features."""
    widths = tuple(draw(st.lists(WIDTHS, min_size=1, max_size=3)))
    return randomised(LSTM(draw(FEATURES), widths), draw(SEEDS))


@st.composite
def autoencoders(draw: st.DrawFn) -> Network:
    """Autoencoders over windows of two to six points."""
    window, bottleneck = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    return randomised(Autoencoder(draw(FEATURES), window, draw(WIDTHS), bottleneck, draw(WIDTHS)), draw(SEEDS))


@st.composite
def keeps(draw: st.DrawFn, network: Network) -> dict[str, Tensor]:
    """A keep-set for some of the network's prunable groups."""
    chosen = {}
    for group in network.groups():
        if not group.protected and draw(st.booleans()):
            bits = draw(st.integers(1, 2**group.width - 1))
            chosen[group.name] = torch.tensor([unit for unit in range(group.width) if bits >> unit & 1])
    return chosen


@st.composite
def cuts(draw: st.DrawFn, networks: st.SearchStrategy[Network]) -> tuple[Network, dict[str, Tensor], int]:
    """A network, units to keep of it, and a seed for points."""
    network = draw(networks)
    return network, draw(keeps(network)), draw(SEEDS)
