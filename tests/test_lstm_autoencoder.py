"""The LSTM autoencoder: its folded decoder is the one of the paper, and the graph is the network."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from fits import FOUR, machine, untrained
from strategies import noise, randomised
from torch import Tensor, nn

from detectors.runtime import VALUES, Runtime
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, chunks_over, fit
from detectors.training.fitted import mean_square
from detectors.training.graph import Graph
from detectors.training.networks import LSTMAutoencoder
from detectors.training.networks.base import Normal
from detectors.training.stretches import Stretches, Windows
from pruning.importance import Evidence, importance
from pruning.repair import activations, remove_and_repair, repair
from pruning.surgery import remove

BOTH = pytest.mark.parametrize("decoder_width", [None, 7], ids=["coupled", "both ways"])


def plain(network: LSTMAutoencoder, windows: Tensor) -> Tensor:
    """Reconstruction [N, W, F] as the paper tells it: cell by cell, each step fed with the reconstruction before."""
    cell = nn.LSTMCell(network.n_features, network.decoder_width).to(windows.dtype)
    for name, parameter in network.decoder.named_parameters():
        getattr(cell, name.removesuffix("_l0")).data.copy_(parameter)
    _, (h, c) = network.encoder(windows)
    if network.bidirectional:
        h, c = network.bridge(torch.cat([h[0], h[1]], dim=1)).chunk(2, dim=1)
    else:
        h, c = h[0], c[0]
    told = [network.output(h)]
    for _ in range(network.window - 1):
        h, c = cell(told[-1], (h, c))
        told.append(network.output(h))
    return torch.stack(told[::-1], dim=1)


@BOTH
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_folded_decoder_is_the_one_that_is_fed_with_its_own_output(decoder_width, dtype, near: float) -> None:
    """Over every window of a stretch; the reconstruction comes out in the order of time."""
    network = LSTMAutoencoder(3, 12, 11, decoder_width=decoder_width)
    network = (randomised(network, 2) if dtype is torch.float64 else network).to(dtype)
    points = noise(2, 20, 3, dtype=dtype)
    with torch.no_grad():
        windows, _ = network.windows(points, network.fresh(2))
        wanted = (windows.flatten(0, 1) - plain(network, windows.flatten(0, 1))).view(windows.shape)

        residual = network(points, network.fresh(2)).residual

    assert residual.shape == (2, 20, 12, 3)
    assert float((residual - wanted).abs().max()) <= near


def test_the_window_is_told_from_its_end() -> None:
    """The last point comes from the encoder's last h alone, the one before it after one step of the decoder."""
    network = randomised(LSTMAutoencoder(2, 6, 5), 1)
    points = noise(1, 6, 2)
    with torch.no_grad():
        before = network(points, network.fresh(1)).residual[0, -1]
        network.decoder.bias_ih_l0.add_(0.5)
        after = network(points, network.fresh(1)).residual[0, -1]
        last = points[0, -1] - network.output(network.encoder(points)[1][0][0, 0])

    assert torch.allclose(before[-1], last, rtol=0, atol=1e-12)
    assert torch.equal(before[-1], after[-1])
    assert (before[:-1] != after[:-1]).all()


def test_training_reaches_every_parameter() -> None:
    """Gradients go through the fed-back reconstruction, into the decoder's input weights too."""
    for decoder_width in (None, 4):
        network = LSTMAutoencoder(2, 5, 3, decoder_width=decoder_width)

        network(noise(3, 1, 2, dtype=torch.float32), network.fresh(3)).residual.square().mean().backward()

        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@BOTH
def test_a_new_network_remembers(decoder_width) -> None:
    """Forget gates start open: their bias is around one, the others' around zero."""
    network = LSTMAutoencoder(2, 5, 100, decoder_width=decoder_width)
    biases = [value.unflatten(0, (4, -1)) for name, value in network.named_parameters() if "bias_hh" in name]

    assert len(biases) == (2 if decoder_width is None else 3)
    for bias in biases:
        assert (bias[1] > 0.5).all()
        assert (bias[[0, 2, 3]] < 0.5).all()


def test_units_are_coupled_unless_it_reads_both_ways() -> None:
    """One group whose units are in both LSTMs; else encoder pairs and decoder units, each with a width of its own."""
    coupled, both = LSTMAutoencoder(2, 5, 6), LSTMAutoencoder(2, 5, 6, decoder_width=4)

    assert coupled.units == {"coupled": 6}
    assert both.units == {"encoder": 6, "decoder": 4}
    assert LSTMAutoencoder.dense(2, {"bidirectional": 1, "width": 9}).units == {"encoder": 9, "decoder": 9}
    for network in (coupled, both):
        again = LSTMAutoencoder.build(2, network.units, network.options)
        assert (again.units, again.options, again.macs) == (network.units, network.options, network.macs)


def test_both_ways_every_axis_of_units_has_one_owner() -> None:
    """Pairs of encoder units are read at j and H + j of the bridge, whose rows are the decoder's first h and c."""
    network = LSTMAutoencoder(3, 5, 11, decoder_width=7)
    tensors, claimed = network.state_dict(), []
    for group in network.groups():
        for where in (*group.own, *group.consumers):
            assert tensors[where.tensor].shape[where.axis] == where.blocks * group.width
            claimed.append((where.tensor, where.axis))
        for where in group.consumers:
            assert len(tensors[where.bias]) == len(tensors[where.tensor])

    assert [where.blocks for where in network.groups()[0].consumers] == [1, 1, 2]
    axes = [(name, axis, size) for name, tensor in tensors.items() for axis, size in enumerate(tensor.shape)]
    assert sorted(claimed) == sorted((name, axis) for name, axis, size in axes if size != network.n_features)


def test_both_ways_the_kept_units_take_over_what_removed_ones_said() -> None:
    """Units that say the same as others, in either direction, can leave without a change once they are repaired."""
    network = randomised(LSTMAutoencoder(2, 5, 6, decoder_width=6), 4)
    twins = torch.tensor([0, 1, 2, 0, 1, 2])
    tensors = network.state_dict()
    for group in network.groups():
        for where in group.own:
            tensor = tensors[where.tensor]
            index = torch.cat([twins + block * 6 for block in range(where.blocks)])
            tensor.copy_(tensor.index_select(where.axis, index))
    points = noise(8, 40, 2)
    keep = {name: torch.arange(3) for name in network.units}
    chunks = Windows(list(points.numpy()), batch=32, window=5, rng=np.random.default_rng(0))

    with torch.no_grad():
        wanted = network(points, network.fresh(8)).residual
        repaired = remove_and_repair(network, keep, chunks)
        change = (repaired(points, repaired.fresh(8)).residual - wanted).square().mean()
        unrepaired = remove(network, keep)
        loss = (unrepaired(points, unrepaired.fresh(8)).residual - wanted).square().mean()

    assert float(change) < 1e-3 * float(loss)


@pytest.mark.parametrize("bidirectional", [0, 1], ids=["coupled", "both ways"])
def test_repair_listens_to_each_voice(bidirectional: int) -> None:
    """Encoder and decoder, or both directions, say different things: each reader is better off with what it hears."""
    data = Stretches.of([machine(700)])
    options = {"window": 8, "width": 16, "bidirectional": bidirectional}
    detector = fit("lstm_autoencoder", data, FOUR, seed=0, options=options, how=FitOptions(updates=200))
    network, fresh = detector.network, torch.from_numpy(detector.scaler(machine(300, seed=5)))[None]
    seen = activations(network, chunks_over(data, detector.scaler, network, 0))
    deaf = [
        replace(group, consumers=tuple(replace(where, voices=()) for where in group.consumers))
        for group in network.groups()
    ]

    def loss(groups, keep) -> float:
        healed = copy.deepcopy(network)
        repair(healed.state_dict(), groups, keep, seen)
        with torch.no_grad():
            smaller = remove(healed, keep)
            return float(mean_square(smaller(fresh, smaller.fresh(1)).residual)[:, 7:].mean())

    for seed in range(3):
        scores = importance("random", Evidence(network, None, seed))
        keep = {name: each.topk(12).indices.sort().values for name, each in scores.items()}

        assert loss(network.groups(), keep) < 0.97 * loss(deaf, keep)


@BOTH
def test_activations_are_what_is_read(decoder_width) -> None:
    """The h of every step: the output layer over the decoder's gives the reconstruction, whatever the grouping."""
    network = randomised(LSTMAutoencoder(2, 5, 7, decoder_width=decoder_width), 3)
    points = noise(2, 9, 2)
    out = network(points, network.fresh(2))
    windows, _ = network.windows(points, network.fresh(2))

    if decoder_width is None:
        assert out.activations["coupled"].shape == (2, 9, 9, 7)
        told = out.activations["coupled"][:, :, 4:]  # from the encoder's last h on
        assert torch.equal(out.activations["coupled/encoder"], out.activations["coupled"][:, :, :5])
        assert torch.equal(out.activations["coupled/decoder"], told[:, :, :-1])  # what a step has read
    else:
        assert out.activations["encoder"].shape == (2, 9, 5, 2, 7)
        told = out.activations["decoder"]
        ways = [out.activations[f"encoder/{way}"] for way in ("forward", "backward")]
        assert torch.equal(torch.stack(ways, dim=3), out.activations["encoder"])
        ends = out.activations["encoder"][:, :, [4, 0], [0, 1]]  # forward at the last point, backward at the first
        assert torch.allclose(network.bridge(ends.flatten(2))[..., :7], told[:, :, 0], rtol=0, atol=1e-12)

    again = network.output(told).flip(2)
    assert torch.allclose(windows - again, out.residual, rtol=0, atol=1e-12)


def drawn(network: LSTMAutoencoder, scale: Normal, windows: np.ndarray) -> np.ndarray:
    """What the drawn network gives for flat windows [B, W * F]; its stride is the window, so nothing is carried."""
    graph = Graph(windows.shape[1])
    z = network.draw(graph, VALUES, scale)
    total = graph.op("ReduceSum", z, graph.const([1], np.int64), keepdims=0)
    session = onnxruntime.InferenceSession(graph.finish(total, z), providers=["CPUExecutionProvider"])
    return session.run(None, {VALUES: windows})[1]


@BOTH
@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("batch", [1, 256])
def test_the_drawn_network_is_the_network(decoder_width, n_features: int, batch: int) -> None:
    """Normalised residuals of the graph are those of torch to 1e-5, for windows of fifty points."""
    torch.manual_seed(0)
    network = LSTMAutoencoder(n_features, 50, 16, decoder_width=decoder_width, stride=50)
    center = np.linspace(-0.2, 0.3, n_features, dtype=np.float32)
    scale = Normal(center, np.linspace(0.5, 2.0, n_features, dtype=np.float32))
    points = noise(batch, 50, n_features, dtype=torch.float32)
    with torch.no_grad():
        residual = network(points[:, 49:], (points[:, :49],)).residual[:, 0].numpy()  # [B, W, F]

    z = drawn(network, scale, points.flatten(1).numpy())

    np.testing.assert_allclose(z, ((residual - center) * scale.inverse).reshape(batch, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("bidirectional", [0, 1])
def test_the_exported_graph_gives_the_scores_of_the_network(bidirectional: int, stride: int) -> None:
    """Step by step from a fresh state, with a window that is carried from step to step."""
    detector = untrained("lstm_autoencoder", 2, bidirectional=bidirectional, stride=stride)
    raw = np.random.default_rng(1).normal(3.0, 3.0, (4, 60, 2)).astype(np.float32)
    wanted = detector.trace(raw)

    runtime = Runtime(step_graph(detector))
    state, steps = runtime.fresh(4), []
    for t in range(0, 60, stride):
        step = runtime.step(raw[:, t] if stride == 1 else raw[:, t : t + stride], state)
        state = step.state
        steps.append(step)

    scored = np.isfinite(wanted.score[:, stride - 1 :: stride])
    assert scored.any()
    score = np.stack([step.score for step in steps], axis=1)
    contribution = np.stack([step.contribution for step in steps], axis=1)
    np.testing.assert_allclose(score[scored], wanted.score[:, stride - 1 :: stride][scored], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        contribution[scored], wanted.contribution[:, stride - 1 :: stride][scored], rtol=1e-3, atol=1e-5
    )
