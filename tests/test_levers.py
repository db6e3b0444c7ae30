"""Levers: shorter windows, shallower trees, and layers that are bypassed; each says what it would have to say."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fits import fitted, machine, untrained
from strategies import assert_graph_is_network, forest, noise, randomised
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.export import step_graph
from detectors.training.fit import chunks_over
from detectors.training.fitted import mean_square, save
from detectors.training.networks import (
    GRU,
    LSTM,
    Autoencoder,
    ConvAutoencoder,
    Ensemble,
    IsolationForest,
    Lever,
    LSTMAutoencoder,
    Network,
    VariationalAutoencoder,
    WindowedLSTM,
)
from detectors.training.networks.autoencoder import ACTIVATIONS
from detectors.training.stretches import Stretches
from pruning.repair import bypass

EXACT = 1e-9
DEEP = {"encoder0": 7, "encoder1": 5, "bottleneck": 3, "decoder0": 5, "decoder1": 6}
NARROW = {"encoder": 7, "latent": 3, "decoder": 5}
DENSE: dict[str, Callable[[], Network]] = {
    "autoencoder": lambda: Autoencoder(2, 20, DEEP, stride=3),
    "variational_autoencoder": lambda: VariationalAutoencoder(2, 20, NARROW, stride=3),
}
ANY_LENGTH: dict[str, Callable[[], Network]] = {
    "conv_autoencoder": lambda: ConvAutoencoder(2, 20, DEEP, stride=3),
    "coupled lstm_autoencoder": lambda: LSTMAutoencoder(2, 20, 5, stride=3),
    "bidirectional lstm_autoencoder": lambda: LSTMAutoencoder(2, 20, 5, decoder_width=4, stride=3),
}
WINDOWED = {**DENSE, **ANY_LENGTH}
STACKED = {"lstm": LSTM, "gru": GRU}


def residual(network: Network, points: Tensor) -> Tensor:
    """Of points [B, T, F] from a fresh state, carried across a cut in the middle."""
    half = points.shape[1] // 2
    with torch.no_grad():
        first = network(points[:, :half], network.fresh(len(points)))
        return torch.cat([first.residual, network(points[:, half:], first.state).residual], dim=1)


def assert_near(got: Tensor, wanted: Tensor) -> None:
    """To a billionth."""
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= EXACT


# Windows


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("window", [20, 13, 8])
def test_a_shorter_window_is_the_same_network_otherwise(kind: str, window: int) -> None:
    """Widths, stride and type of number stay; it costs less, builds again, and what it came from stays as it was."""
    network = randomised(WINDOWED[kind](), 1)
    before = copy.deepcopy(network.state_dict())

    pulled = network.pulled("window", window)

    assert pulled is not network
    assert (pulled.units, pulled.options) == (network.units, network.options | {"window": window})
    assert (pulled.window, pulled.positions, pulled.warm_up_points) == (window, window, window - 1)
    assert (pulled.macs < network.macs) == (window < 20)
    assert (
        pulled.state_dict()["output.bias" if "output.bias" in before else "layers.output.bias"].dtype == torch.float64
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    again = type(network).build(2, pulled.units, pulled.options).double()
    again.load_state_dict(pulled.state_dict())
    assert torch.equal(residual(again, noise(2, 30, 2)), residual(pulled, noise(2, 30, 2)))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("window", [19, 8])
def test_the_oldest_points_leave_a_dense_window(kind: str, window: int) -> None:
    """Nothing reads them, nothing gives them again: what is said of the others is what it was."""
    network = randomised(DENSE[kind](), 2)
    blind = copy.deepcopy(network)
    first = next(tensor for name, tensor in blind.state_dict().items() if name.endswith("weight"))
    first[:, : (20 - window) * 2] = 0
    points = noise(3, 40, 2)

    pulled = network.pulled("window", window)

    assert_near(residual(pulled, points), residual(blind, points)[:, :, -window:])


@pytest.mark.parametrize("kind", ANY_LENGTH)
@pytest.mark.parametrize("window", [19, 8])
def test_weights_that_know_no_window_are_kept_as_they_are(kind: str, window: int) -> None:
    """A new network of the shorter window with the same tensors says the same."""
    network = randomised(ANY_LENGTH[kind](), 2)
    fresh = type(network).build(2, network.units, network.options | {"window": window}).double()
    fresh.load_state_dict(network.state_dict())
    points = noise(3, 40, 2)

    pulled = network.pulled("window", window)

    assert torch.equal(residual(pulled, points), residual(fresh, points))
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in pulled.state_dict().items())


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("window", [13, 8])
def test_the_graph_has_the_shorter_window(kind: str, window: int) -> None:
    """With the stride that it had: step by step what torch gives."""
    torch.manual_seed(4)
    pulled = WINDOWED[kind]().pulled("window", window)

    assert_graph_is_network(pulled, noise(3, 36, 2, dtype=torch.float32))


def test_a_window_can_be_pulled_down_to_its_stride_or_eight_points() -> None:
    """Or not at all, where it is that short; beyond the range the lever says what it can do."""
    assert Autoencoder(2, 50, DEEP).levers() == (Lever("window", 50, 8),)
    assert Autoencoder(2, 50, DEEP, stride=12).levers() == (Lever("window", 50, 12),)
    assert Autoencoder(2, 5, DEEP).levers() == (Lever("window", 5, 5),)
    for value in (51, 7, 0):
        with pytest.raises(InvalidInputError, match="from 8 to 50") as error:
            Autoencoder(2, 50, DEEP).pulled("window", value)
        assert error.value.field == "window"


@pytest.mark.parametrize("network", [LSTM(2, (3,)), WindowedLSTM(2, (3,), 9)], ids=["lstm", "windowed_lstm"])
def test_what_has_no_levers_says_so(network: Network) -> None:
    """A carried network has no window; that of one from elsewhere is not ours to change."""
    assert network.levers() == ()
    with pytest.raises(NotImplementedError, match="no lever 'window'"):
        network.pulled("window", 8)


# Trees


def walked(network: IsolationForest, flat: Tensor, depth: int) -> Tensor:
    """Paths [N, trees] of flat windows, told node by node: at the new depth what is expected there counts."""
    paths = torch.zeros(len(flat), len(network.column), dtype=flat.dtype)
    for i, row in enumerate(flat):
        for tree in range(len(network.column)):
            node = 0
            for _ in range(depth):
                side = int(row[network.column[tree, node]] > network.threshold[tree, node])
                node = int(network.below[tree, node, side])
            paths[i, tree] = network.expected[tree, node]
    return paths


@pytest.mark.parametrize("depth", [4, 3, 2])
def test_trees_end_at_the_depth(depth: int) -> None:
    """A node there is a leaf with the path that was to be expected; all else stays, the weights of the trees too."""
    network = forest(2, 3, 7, 16, 5)
    points = noise(1, 25, 2)
    windows, _ = network.windows(points, network.fresh(1))

    pulled = network.pulled("depth", depth)

    assert network.levers() == (Lever("depth", 4, 2),)
    assert_near(pulled(points, pulled.fresh(1)).activations["trees"][0], walked(network, windows[0].flatten(1), depth))
    assert torch.equal(pulled.weight, network.weight)
    assert (pulled.units, pulled.height) == (network.units, depth)
    splits = pulled.below[..., 0] != torch.arange(pulled.column.shape[1])
    assert int(splits.sum(1).max()) <= 2**depth - 1
    again = IsolationForest.build(2, pulled.units, pulled.options).double()
    again.load_state_dict(pulled.state_dict())
    assert torch.equal(residual(again, points), residual(pulled, points))


def test_a_cut_at_the_height_changes_nothing() -> None:
    """Fitted trees have no nodes that nothing leads to."""
    network = untrained("isolation_forest", 3).network

    pulled = network.pulled("depth", network.height)

    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in pulled.state_dict().items())


def test_a_shallow_forest_is_smaller_and_says_nearly_the_same() -> None:
    """Comparisons, numbers and bytes fall; strange points stay strange; the graph agrees with torch."""
    detector = untrained("isolation_forest", 3, samples=256, trees=50)
    network = detector.network
    points = torch.from_numpy(detector.scaler(np.random.default_rng(1).normal(3, 6, (1, 400, 3)).astype(np.float32)))

    pulled = network.pulled("depth", 4)

    assert (network.height, pulled.height) == (8, 4)
    assert pulled.macs < 0.7 * network.macs
    assert pulled.parameters_count < 0.4 * network.parameters_count
    assert len(save(detector.with_network(pulled))) < 0.4 * len(save(detector))
    assert len(step_graph(detector.with_network(pulled))) < 0.4 * len(step_graph(detector))
    old, new = (residual(it, points)[0, 4:, 0].square().sum(1).numpy() for it in (network, pulled))
    assert np.corrcoef(old.argsort().argsort(), new.argsort().argsort())[0, 1] > 0.9
    assert_graph_is_network(pulled, points[:, :60])


def test_depths_beyond_the_range_are_refused() -> None:
    """A forest has no other lever: its trees ask for columns of the whole window."""
    network = forest(2, 3, 7, 16, 5)

    for value in (5, 1):
        with pytest.raises(InvalidInputError, match="from 2 to 4"):
            network.pulled("depth", value)
    with pytest.raises(NotImplementedError):
        network.pulled("window", 1)


# Layers


def linear_map(network: Network, group: str) -> tuple[Tensor, Tensor]:
    """A mapping [I, H] and a constant [H] from what a group reads to what it says."""
    read = next(it.reads for it in network.groups() if it.name == group)
    return noise(network.units[read], network.units[group], seed=8), noise(network.units[group], seed=9)


def stacked_without(network: LSTM | GRU, gone: int, mapping: Tensor, constant: Tensor, points: Tensor) -> Tensor:
    """Residuals [B, T, F] of the whole network in which a layer says the map of what it reads."""
    said, before = points, torch.zeros(1)
    for i, (layer, width) in enumerate(zip(network.layers, network.widths, strict=True)):
        said = said @ mapping + constant if i == gone else layer(said)[0]
        before = (constant if i == gone else torch.zeros(width)).expand(len(points), 1, -1)
    return points - network.head(torch.cat([before, said[:, :-1]], dim=1))


@pytest.mark.parametrize("kind", STACKED)
@pytest.mark.parametrize("gone", [1, 2])
def test_a_recurrent_layer_is_bypassed(kind: str, gone: int) -> None:
    """The layer above, or the head, reads the map; the layers above move down and keep what they know."""
    network = randomised(STACKED[kind](3, (5, 7, 4)), 1)
    mapping, constant = linear_map(network, f"layer{gone}")
    points = noise(2, 20, 3)

    shorter = network.without(f"layer{gone}", mapping, constant)

    with torch.no_grad():
        wanted = stacked_without(network, gone, mapping, constant, points)
    assert_near(residual(shorter, points)[:, :, 0], wanted)
    left = [width for i, width in enumerate((5, 7, 4)) if i != gone]
    assert shorter.units == {"layer0": left[0], "layer1": left[1]}
    assert [group.reads for group in shorter.groups()] == [None, "layer0"]
    again = type(shorter).build(3, shorter.units, shorter.options).double()
    again.load_state_dict(shorter.state_dict())
    assert torch.equal(residual(again, points), residual(shorter, points))


@pytest.mark.parametrize("group", ["encoder1", "decoder0", "decoder1"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_dense_layer_is_bypassed(group: str, activation: str) -> None:
    """The next one reads the map; names, window, stride and activation stay."""
    network = randomised(Autoencoder(2, 6, DEEP, stride=2, activation=activation), 1)
    mapping, constant = linear_map(network, group)
    points = noise(2, 20, 2)

    shorter = network.without(group, mapping, constant)

    with torch.no_grad():
        windows, _ = network.windows(points, network.fresh(2))
        said = windows.flatten(2)
        for name in network.names:
            if name == group:
                said = said @ mapping + constant
                continue
            said = network.layers[name](said)
            said = said if name == "bottleneck" else ACTIVATIONS[activation](said)
        wanted = windows - network.layers["output"](said).view(windows.shape)
    assert_near(residual(shorter, points), wanted)
    assert shorter.units == {name: width for name, width in DEEP.items() if name != group}
    assert shorter.options == network.options
    again = Autoencoder.build(2, shorter.units, shorter.options).double()
    again.load_state_dict(shorter.state_dict())
    assert torch.equal(residual(again, points), residual(shorter, points))


@pytest.mark.parametrize(
    ("network", "group"),
    [
        (LSTM(2, (3, 4, 5)), "layer1"),
        (GRU(2, (3, 4, 5)), "layer2"),
        (WindowedLSTM(2, (3, 4), 6), "layer1"),
        (Autoencoder(2, 6, DEEP, stride=2), "encoder1"),
        (Autoencoder(2, 6, DEEP), "decoder0"),
    ],
    ids=["lstm", "gru", "windowed_lstm", "encoder", "decoder"],
)
def test_the_graph_does_without_the_layer(network: Network, group: str) -> None:
    """Step by step what torch gives; the parent is as it was, so that both can be compared."""
    before = copy.deepcopy(network.state_dict())
    mapping, constant = (each.float() for each in linear_map(network, group))

    shorter = network.without(group, mapping, constant)

    assert_graph_is_network(shorter, noise(3, 30, 2, dtype=torch.float32))
    assert shorter.macs < network.macs
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "group"),
    [
        (LSTM(2, (3, 4)), "layer0"),
        (LSTM(2, (3, 4)), "layer7"),
        (Autoencoder(2, 6, DEEP), "encoder0"),
        (Autoencoder(2, 6, DEEP), "bottleneck"),
        (ConvAutoencoder(2, 9, DEEP), "encoder1"),
    ],
)
def test_some_layers_never_leave(network: Network, group: str) -> None:
    """The first, which reads the points; the bottleneck, which decides what can not be reconstructed."""
    assert not any(it.reads for it in network.groups() if it.name == group)
    with pytest.raises(NotImplementedError, match=group):
        network.without(group, torch.zeros(1, 1), torch.zeros(1))


@pytest.mark.parametrize("kind", STACKED)
def test_least_squares_finds_the_map(kind: str) -> None:
    """Bypassed as what it read predicts it, a fitted network loses less than with a layer that says nothing."""
    detector = fitted(kind, updates=60)
    network, fresh = detector.network, torch.from_numpy(detector.scaler(machine(300, seed=5)))[None]
    chunks = chunks_over(Stretches.of([machine(700)]), detector.scaler, network, 0)

    def loss(of: Network) -> float:
        with torch.no_grad():
            return float(mean_square(of(fresh, of.fresh(1)).residual)[:, of.warm_up_points :].mean())

    silent = network.without("layer1", torch.zeros(16, 16), torch.zeros(16))

    assert loss(bypass(network, "layer1", chunks)) < 0.7 * loss(silent)


# Ensembles


def test_levers_and_layers_of_members_have_their_name_before_a_dot() -> None:
    """What is pulled is the member; the others are copies."""
    network = Ensemble(
        {
            "lstm": randomised(LSTM(2, (5, 4)), 1),
            "autoencoder": randomised(Autoencoder(2, 20, DEEP), 2),
            "isolation_forest": forest(2, 1, 6, 16, 3),
        }
    )
    members, points = network.members, noise(1, 30, 2)
    mapping, constant = linear_map(members["lstm"], "layer1")

    window, depth = network.pulled("autoencoder.window", 9), network.pulled("isolation_forest.depth", 2)
    layer = network.without("lstm.layer1", mapping, constant)

    assert network.levers() == (Lever("autoencoder.window", 20, 8), Lever("isolation_forest.depth", 4, 2))
    wanted = {
        window: members | {"autoencoder": members["autoencoder"].pulled("window", 9)},
        depth: members | {"isolation_forest": members["isolation_forest"].pulled("depth", 2)},
        layer: members | {"lstm": members["lstm"].without("layer1", mapping, constant)},
    }
    for got, parts in wanted.items():
        assert torch.equal(residual(got, points), residual(Ensemble(parts), points))
        assert got.options == Ensemble(parts).options
        again = Ensemble.build(2, got.units, got.options).double()
        again.load_state_dict(got.state_dict())
        assert torch.equal(residual(again, points), residual(got, points))
        assert not {it.data_ptr() for it in got.state_dict().values()} & {
            it.data_ptr() for it in network.state_dict().values()
        }
    reads = {group.name: group.reads for group in network.groups()}
    assert (reads["lstm.layer1"], reads["autoencoder.decoder0"]) == ("lstm.layer0", "autoencoder.bottleneck")
