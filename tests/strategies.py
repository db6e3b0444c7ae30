"""Drawn networks, keep-sets and points for Hypothesis. Torch runs on one thread in every test that imports this."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from detectors.training.networks import (
    GRU,
    LSTM,
    Autoencoder,
    ConvAutoencoder,
    LSTMAutoencoder,
    Network,
    VariationalAutoencoder,
)

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
def grus(draw: st.DrawFn) -> Network:
    """GRUs of one to three layers, each with its own width, over one to six features."""
    widths = tuple(draw(st.lists(WIDTHS, min_size=1, max_size=3)))
    return randomised(GRU(draw(FEATURES), widths), draw(SEEDS))


@st.composite
def mirrored(draw: st.DrawFn) -> dict[str, int]:
    """Widths of an autoencoder by group: one or two layers before a narrow bottleneck, and as many after it."""
    layers = range(draw(st.integers(1, 2)))
    return {
        **{f"encoder{i}": draw(WIDTHS) for i in layers},
        "bottleneck": draw(st.integers(1, 6)),
        **{f"decoder{i}": draw(WIDTHS) for i in layers},
    }


@st.composite
def autoencoders(draw: st.DrawFn) -> Network:
    """Autoencoders over windows of two to six points."""
    network = Autoencoder(draw(FEATURES), draw(st.integers(2, 6)), draw(mirrored()))
    return randomised(network, draw(SEEDS))


@st.composite
def conv_autoencoders(draw: st.DrawFn) -> Network:
    """Convolutional autoencoders over windows of four to eleven points: odd and even lengths at every depth."""
    network = ConvAutoencoder(draw(FEATURES), draw(st.integers(4, 11)), draw(mirrored()))
    return randomised(network, draw(SEEDS))


@st.composite
def lstm_autoencoders(draw: st.DrawFn) -> Network:
    """LSTM autoencoders over windows of two to six points, coupled or with an encoder that reads both ways."""
    decoder_width = draw(st.none() | WIDTHS)
    network = LSTMAutoencoder(draw(FEATURES), draw(st.integers(2, 6)), draw(WIDTHS), decoder_width=decoder_width)
    return randomised(network, draw(SEEDS))


@st.composite
def variational_autoencoders(draw: st.DrawFn) -> Network:
    """Variational autoencoders over windows of two to six points."""
    widths = {"encoder": draw(WIDTHS), "latent": draw(st.integers(1, 6)), "decoder": draw(WIDTHS)}
    network = VariationalAutoencoder(draw(FEATURES), draw(st.integers(2, 6)), widths)
    return randomised(network, draw(SEEDS))


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
