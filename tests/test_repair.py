"""Repair: where a removed unit's part goes when weights have kernels, blocks, or axes the other way round."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fits import fitted, machine
from strategies import noise
from torch import Tensor, nn

from detectors.training.calibrate import Scaler
from detectors.training.fit import chunks_over
from detectors.training.fitted import Fitted, mean_square
from detectors.training.networks import GRU, LSTM, ConvAutoencoder, Group, Network, Slice
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.importance import Evidence, importance
from pruning.repair import CHUNKS, ROWS, activations, regress, remove_and_repair, repair
from pruning.surgery import remove

WIDTHS = {"encoder0": 6, "bottleneck": 3, "decoder0": 6}
CONSTANT = 2  # the unit that always says the same
OTHERS = torch.tensor([0, 1, 3, 4, 5])


def convolved(group: str) -> tuple[ConvAutoencoder, Tensor]:
    """An autoencoder of 21 points in which a filter of the group is constant, and windows to run through it."""
    torch.manual_seed(0)
    network = ConvAutoencoder(2, 21, WIDTHS)
    tensors = network.state_dict()
    own = tensors[f"layers.{group}.weight"]
    own.select(1 if group == "decoder0" else 0, CONSTANT).zero_()
    tensors[f"layers.{group}.bias"][CONSTANT] = 0.7
    return network, noise(3, 60, 2, dtype=torch.float32)


def repaired(network: Network, keep: dict[str, Tensor]) -> Network:
    """Without the units that are not kept, over noise."""
    data = Stretches.of([np.random.default_rng(1).normal(size=(400, network.n_features))])
    return remove_and_repair(network, keep, chunks_over(data, Scaler.identity(network.n_features), network, 0))


def said(network: Network, points: Tensor) -> Tensor:
    """What the bottleneck says at every position of every window: [B, T, L, H]."""
    with torch.no_grad():
        return network(points, network.fresh(len(points))).activations["bottleneck"]


def test_a_convolution_takes_over_a_constant_away_from_the_ends() -> None:
    """A filter that always says the same: exact where all taps lie inside the window, wrong where zeros were seen."""
    network, points = convolved("encoder0")

    wanted, got = said(network, points), said(repaired(network, {"encoder0": OTHERS}), points)

    assert wanted.shape[2] == 6  # positions; those in the middle hear all five taps
    torch.testing.assert_close(got[:, :, 1:-1], wanted[:, :, 1:-1], rtol=0, atol=1e-5)
    assert not torch.allclose(got[:, :, 0], wanted[:, :, 0], atol=1e-3)


def test_a_transposed_convolution_takes_over_a_constant_on_average() -> None:
    """Even and odd positions hear different taps of a filter; one bias is right for the mean of both."""
    network, points = convolved("decoder0")
    narrower = repaired(network, {"decoder0": OTHERS})

    def residual(of: Network) -> Tensor:
        with torch.no_grad():
            return of(points, of.fresh(len(points))).residual[:, 25:, 2:-3]  # [B, T, 16, F]: away from the ends

    wanted, got = residual(network), residual(narrower)

    assert not torch.allclose(got, wanted, atol=1e-3)
    pairs = (got - wanted).unflatten(2, (-1, 2)).mean(dim=3)
    torch.testing.assert_close(pairs, torch.zeros_like(pairs), rtol=0, atol=1e-5)


CLOSED, OPEN = -30.0, 30.0  # of a gate, before its sigmoid


@pytest.mark.parametrize(
    ("kind", "gates"),
    [(LSTM, [OPEN, CLOSED, 0.5, OPEN]), (GRU, [0.0, CLOSED, 0.5])],
    ids=["lstm", "gru"],
)
def test_a_recurrent_bias_takes_over_a_constant(kind, gates: list[float]) -> None:
    """A unit that always says the same: exact, in the layer above as in its own.

    That of a GRU stands inside the product with the reset gate, where the unit was heard.
    """
    torch.manual_seed(0)
    network = kind(2, (6, 6))
    tensors = network.state_dict()
    for where in network.groups()[0].own:
        rows = tensors[where.tensor].view(where.blocks, 6, -1)
        rows[:, CONSTANT] = 0
        if where.tensor.endswith("bias_ih_l0"):
            rows[:, CONSTANT, 0] = torch.tensor(gates)
    points = noise(3, 30, 2, dtype=torch.float32)

    narrower = repaired(network, {"layer0": OTHERS})

    with torch.no_grad():
        always = network(points[:, :1], network.fresh(3)).activations["layer0"][0, 0, CONSTANT]
        begun = network.fresh(3)
        begun[0][:, CONSTANT] = always
        wanted, got = network(points, begun).residual, narrower(points, narrower.fresh(3)).residual
    assert abs(always) > 0.3
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_each_block_of_a_consumer_is_repaired() -> None:
    """A weight that reads the same units twice gets the lost part in both places, the bias the constant of both."""
    layer = nn.Linear(6, 2)
    group = Group("units", 3, (), (Slice("weight", 1, blocks=2, bias="bias"),))
    units = noise(400, 3, dtype=torch.float32)
    units[:, 1] = 2 * units[:, 0] - units[:, 2] + 3
    before = layer(torch.cat([units, units], dim=1)).detach()

    with torch.no_grad():
        repair(layer.state_dict(), (group,), {"units": torch.tensor([0, 2])}, {"units": units})
        after = layer(torch.cat([units, units], dim=1) * torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))

    torch.testing.assert_close(after, before, rtol=0, atol=0.02)  # the ridge


def test_units_that_speak_at_every_position_are_sampled() -> None:
    """Windows are long and filters many: a regression needs no more than a few thousand rows of a chunk."""
    network = ConvAutoencoder(2, 200, WIDTHS)
    data = Stretches.of([np.random.default_rng(1).normal(size=(400, 2))])

    seen = activations(network, chunks_over(data, Scaler.identity(2), network, 0))

    assert {name: tuple(rows.shape) for name, rows in seen.items()} == {
        "encoder0": (CHUNKS * ROWS, 6),
        "bottleneck": (CHUNKS * ROWS, 3),
        "decoder0": (CHUNKS * ROWS, 6),
    }


TRAINED = 150  # updates: enough for units to matter differently
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def chunks(network: Network, detector: Fitted, seed: int = 0) -> Lanes | Windows:
    """Lanes or windows of points that the detector was fitted to."""
    return chunks_over(Stretches.of([machine(700)]), detector.scaler, network, seed)


def loss(network: Network, detector: Fitted) -> float:
    """Mean squared residual on fresh points of the same machine, warm-up left out."""
    points = torch.from_numpy(detector.scaler(machine(400, seed=5)))[None]
    with torch.no_grad():
        residual = network(points, network.fresh(1)).residual
    return float(mean_square(residual)[:, network.warm_up_points :].mean())


def halves(network: Network, seed: int) -> dict[str, torch.Tensor]:
    """A random half of each prunable group."""
    scores = importance("random", Evidence(network, None, seed))
    return {name: values.topk(len(values) // 2).indices.sort().values for name, values in scores.items()}


@pytest.mark.parametrize(
    ("kind", "seed", "left"),
    [
        *((kind, seed, 0.6) for kind in ("lstm", "autoencoder") for seed in range(3)),
        ("gru", 0, 0.5),
        ("conv_autoencoder", 0, 0.5),
    ],
)
def test_repair_beats_plain_removal(kind: str, seed: int, left: float) -> None:
    """At half the units, chosen blindly, least squares takes back most of what removal did."""
    detector = fitted(kind, updates=TRAINED if kind in {"lstm", "autoencoder"} else 60)
    network = detector.network
    keep = halves(network, seed)
    dense, plain = loss(network, detector), loss(remove(network, keep), detector)

    repaired = remove_and_repair(network, keep, chunks(network, detector))

    assert {name: len(indices) for name, indices in keep.items()}.items() <= repaired.units.items()
    assert loss(repaired, detector) - dense < left * (plain - dense)


def test_a_duplicated_unit_is_reproduced() -> None:
    """Where another unit says the same, taking one out costs next to nothing (what is left is the ridge)."""
    detector = fitted("lstm", updates=TRAINED)
    network = copy.deepcopy(detector.network)
    tensors, width = network.state_dict(), 16
    for name in PARTS:
        tensor = tensors[f"layers.0.{name}_l0"]
        for gate in range(4):
            tensor[gate * width + 5] = tensor[gate * width + 2]
    keep = {"layer0": torch.tensor([unit for unit in range(width) if unit != 5])}
    points = torch.from_numpy(detector.scaler(machine(300, seed=8)))[None]

    def residual(candidate: Network) -> torch.Tensor:
        with torch.no_grad():
            return candidate(points, candidate.fresh(1)).residual

    plain = (residual(remove(network, keep)) - residual(network)).square().mean()
    left = (residual(remove_and_repair(network, keep, chunks(network, detector))) - residual(network)).square().mean()

    assert plain > 1e-4
    assert left < 1e-3 * plain


def test_a_constant_unit_moves_into_the_bias() -> None:
    """Exactly: the intercept is not shrunk by the ridge."""
    detector = fitted("autoencoder", updates=TRAINED)
    network = copy.deepcopy(detector.network)
    tensors = network.state_dict()
    tensors["layers.encoder0.weight"][4] = 0
    tensors["layers.encoder0.bias"][4] = 2.0
    keep = {"encoder0": torch.tensor([unit for unit in range(16) if unit != 4])}
    points = torch.from_numpy(detector.scaler(machine(100, seed=8)))[None]

    repaired = remove_and_repair(network, keep, chunks(network, detector))

    with torch.no_grad():
        wanted, got = (each(points, each.fresh(1)).residual for each in (network, repaired))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_repair_leaves_the_network_alone_and_removes_nothing_by_itself() -> None:
    """Surgery returns a new network; keeping all units changes no weight."""
    detector = fitted("lstm", updates=TRAINED)
    before = copy.deepcopy(detector.network.state_dict())

    whole = remove_and_repair(detector.network, {}, chunks(detector.network, detector))
    remove_and_repair(detector.network, halves(detector.network, 0), chunks(detector.network, detector))

    for name, tensor in detector.network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(whole.state_dict()[name], tensor)


def test_regression_finds_a_linear_map() -> None:
    """Two units that are sums of others plus a constant."""
    kept = noise(500, 3)
    mapping = torch.tensor([[1.0, 0.0], [0.5, -2.0], [0.0, 1.0]], dtype=torch.float64)

    found, constant = regress(kept, kept @ mapping + torch.tensor([3.0, -1.0], dtype=torch.float64))

    torch.testing.assert_close(found, mapping, rtol=0, atol=0.01)
    torch.testing.assert_close(constant, torch.tensor([3.0, -1.0], dtype=torch.float64), rtol=0, atol=0.01)
