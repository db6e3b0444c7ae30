"""Drawn networks, keep-sets and points for Hypothesis. Torch runs on one thread in every test that imports this."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from detectors.runtime import VALUES, Runtime
from detectors.training.graph import Graph
from detectors.training.networks import (
    GRU,
    LSTM,
    Autoencoder,
    ConvAutoencoder,
    Ensemble,
    Group,
    IsolationForest,
    LSTMAutoencoder,
    Network,
    VariationalAutoencoder,
    WindowedLSTM,
)
from detectors.training.networks.base import Normal

torch.set_num_threads(1)

SEEDS = st.integers(0, 2**31 - 1)
WIDTHS = st.integers(1, 24)
FEATURES = st.integers(1, 6)
WINDOWS = st.integers(2, 6)


def randomised(network: Network, seed: int) -> Network:
    """The network in float64 with weights and biases far from zero, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return network


def forest(n_features: int, window: int, trees: int, samples: int, seed: int) -> IsolationForest:
    """Random trees in float64, each of another shape and with a weight of its own, and an offset."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = IsolationForest(n_features, window, trees, samples=samples).double()
        leaf, turned = torch.rand(2, *network.column.shape, 1) < torch.tensor([0.2, 0.5])[:, None, None, None]
        itself = torch.arange(network.column.shape[1], dtype=torch.int32)[:, None]
        network.below = torch.where(leaf, itself, torch.where(turned, network.below.flip(-1), network.below))
        network.weight.mul_(torch.rand(trees, 1) + 0.5)
        network.offset.add_(torch.rand(1))
    return network.pulled("depth", network.height)  # without the nodes that nothing leads to any more


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def stacked(draw: st.DrawFn, kind: type[LSTM] | type[GRU], features: st.SearchStrategy[int] = FEATURES) -> Network:
    """LSTMs or GRUs of one to three layers, each with its own width, over one to six features."""
    widths = tuple(draw(st.lists(WIDTHS, min_size=1, max_size=3)))
    return randomised(kind(draw(features), widths), draw(SEEDS))


@st.composite
def windowed_lstms(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """LSTMs of one or two layers that look one to five points back."""
    widths = tuple(draw(st.lists(WIDTHS, min_size=1, max_size=2)))
    return randomised(WindowedLSTM(draw(features), widths, draw(st.integers(1, 5))), draw(SEEDS))


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
def autoencoders(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """Autoencoders over windows of two to six points."""
    return randomised(Autoencoder(draw(features), draw(WINDOWS), draw(mirrored())), draw(SEEDS))


@st.composite
def conv_autoencoders(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """Convolutional autoencoders over windows of four to eleven points: odd and even lengths at every depth."""
    return randomised(ConvAutoencoder(draw(features), draw(st.integers(4, 11)), draw(mirrored())), draw(SEEDS))


@st.composite
def coupled(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """LSTM autoencoders over windows of two to six points whose encoder and decoder share their units."""
    return randomised(LSTMAutoencoder(draw(features), draw(WINDOWS), draw(WIDTHS)), draw(SEEDS))


@st.composite
def bidirectional(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """LSTM autoencoders over windows of two to six points whose encoder reads both ways."""
    network = LSTMAutoencoder(draw(features), draw(WINDOWS), draw(WIDTHS), decoder_width=draw(WIDTHS))
    return randomised(network, draw(SEEDS))


@st.composite
def variational_autoencoders(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """Variational autoencoders over windows of two to six points."""
    widths = {"encoder": draw(WIDTHS), "latent": draw(st.integers(1, 6)), "decoder": draw(WIDTHS)}
    return randomised(VariationalAutoencoder(draw(features), draw(WINDOWS), widths), draw(SEEDS))


@st.composite
def forests(draw: st.DrawFn, features: st.SearchStrategy[int] = FEATURES) -> Network:
    """Isolation forests of one to sixteen trees, over windows of one to four points."""
    window, trees, samples = draw(st.integers(1, 4)), draw(st.integers(1, 16)), draw(st.integers(2, 20))
    return forest(draw(features), window, trees, samples, draw(SEEDS))


SINGLE: dict[str, Callable[..., st.SearchStrategy[Network]]] = {
    "lstm": lambda features=FEATURES: stacked(LSTM, features),
    "gru": lambda features=FEATURES: stacked(GRU, features),
    "autoencoder": autoencoders,
    "conv_autoencoder": conv_autoencoders,
    "coupled lstm_autoencoder": coupled,
    "bidirectional lstm_autoencoder": bidirectional,
    "variational_autoencoder": variational_autoencoders,
    "isolation_forest": forests,
    "windowed_lstm": windowed_lstms,
}


@st.composite
def ensembles(draw: st.DrawFn) -> Network:
    """Two or three members of different kinds over the same features."""
    features = st.just(draw(FEATURES))
    names = [name for name in SINGLE if not name.startswith(("bidirectional", "windowed"))]
    members = [draw(SINGLE[name](features)) for name in draw(st.permutations(names))[: draw(st.integers(2, 3))]]
    return Ensemble({member.kind: member for member in members})


NETWORKS: dict[str, st.SearchStrategy[Network]] = {
    **{name: of() for name, of in SINGLE.items()},
    "ensemble": ensembles(),
}
"""Networks of every kind."""


def may_leave(group: Group) -> bool:
    """Whether units of a group can be taken out."""
    return not group.protected or group.criterion is not None


@st.composite
def keeps(draw: st.DrawFn, network: Network) -> dict[str, Tensor]:
    """A keep-set for some of the network's groups whose units may leave."""
    chosen = {}
    for group in network.groups():
        if may_leave(group) and draw(st.booleans()):
            bits = draw(st.integers(1, 2**group.width - 1))
            chosen[group.name] = torch.tensor([unit for unit in range(group.width) if bits >> unit & 1])
    return chosen


@st.composite
def cuts(draw: st.DrawFn, networks: st.SearchStrategy[Network]) -> tuple[Network, dict[str, Tensor], int]:
    """A network, units to keep of it, and a seed for points."""
    network = draw(networks)
    return network, draw(keeps(network)), draw(SEEDS)


def residual_graph(member: Network, scale: Normal) -> bytes:
    """A graph that takes scaled points; its first state is the normalised residual of the step before."""
    graph = Graph(member.n_features, member.stride)
    point = VALUES
    if member.stride > 1:
        point = graph.op("Reshape", VALUES, graph.const([-1, member.stride * member.n_features], np.int64))
    seen = graph.state("seen", (member.positions * member.n_features,))
    z = member.draw(graph, point, scale)
    graph.carry(seen, z)
    total = graph.op("ReduceSum", z, graph.const([1], np.int64), keepdims=0)
    return graph.finish(
        total, graph.op("Slice", point, *(graph.const([at], np.int64) for at in (0, graph.n_features, 1)))
    )


def assert_graph_is_network(network: Network, points: Tensor, near: float = 1e-4) -> None:
    """Residuals of every member in the runtime, step by step over points [B, T, F], are those of torch.

    Args:
        network: In float32.
        points: float32, a whole number of strides.
        near: How far off a residual may be, as a share of the largest (and of one, where all are smaller).
    """
    for member in network.members.values():
        scale = Normal(np.full(member.n_features, 0.1, np.float32), np.full(member.n_features, 0.7, np.float32))
        with torch.no_grad():
            residual = member(points, member.fresh(len(points))).residual[:, member.stride - 1 :: member.stride]
        wanted = ((residual.numpy() - scale.center) * scale.inverse).reshape(*residual.shape[:2], -1)
        runtime = Runtime(residual_graph(member, scale))
        state, got = runtime.fresh(len(points)), []
        for step in points.split(member.stride, dim=1):
            values = step if member.stride > 1 else step[:, 0]
            state = runtime.step(np.ascontiguousarray(values), state).state
            got.append(state[0])
        np.testing.assert_allclose(np.stack(got, axis=1), wanted, rtol=0, atol=near * max(1, np.abs(wanted).max()))
