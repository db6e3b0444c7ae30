"""What every network promises: one table, network kind x check. A new kind gets its tests by being in `KINDS`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fits import SMALL, untrained
from strategies import noise, randomised

from detectors.errors import InvalidInputError
from detectors.runtime import Runtime
from detectors.training.export import step_graph
from detectors.training.fitted import normalised
from detectors.training.networks import KINDS, Network, network_class

CHECKS = []
ODD = {  # widths that differ from each other and from every other size, so that no axis is taken for another
    "lstm": ({"layer0": 11, "layer1": 7, "layer2": 13}, {}),
    "autoencoder": ({"encoder": 11, "bottleneck": 7, "decoder": 13}, {"window": 5}),
}


def check(function):
    """Puts a check into the table."""
    CHECKS.append(function)
    return function


def odd(kind: str, n_features: int = 3) -> Network:
    """A network in float64 whose sizes are all different."""
    units, options = ODD[kind]
    return randomised(KINDS[kind].build(n_features, units, options), 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", CHECKS, ids=lambda rule: rule.__name__)
def test_contract(kind: str, rule) -> None:
    """Every kind keeps every rule of the table."""
    rule(kind)


@check
def scoring_is_pure(kind: str) -> None:
    """Same input, same output; neither the state that is passed in nor the network changes."""
    network = odd(kind)
    points = noise(2, 12, 3)
    state = tuple(noise(*tensor.shape, seed=1) for tensor in network.fresh(2))
    state_before = [tensor.clone() for tensor in state]
    weights_before = copy.deepcopy(network.state_dict())

    first, second = network(points, state), network(points, state)

    assert torch.equal(first.residual, second.residual)
    assert all(torch.equal(a, b) for a, b in zip(first.state, second.state, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state, state_before, strict=True))
    assert all(torch.equal(tensor, weights_before[name]) for name, tensor in network.state_dict().items())


@check
def carried_chunks_equal_one_long_run(kind: str) -> None:
    """However a series is cut, with its state carried the residuals, activations and last state are the same."""
    network = odd(kind)
    points = noise(3, 40, 3)
    whole = network(points, network.fresh(3))

    state, parts = network.fresh(3), []
    for chunk in points.split([1, 3, 16, 2, 18], dim=1):
        parts.append(network(chunk, state))
        state = parts[-1].state

    assert torch.allclose(torch.cat([p.residual for p in parts], dim=1), whole.residual, rtol=0, atol=1e-12)
    for name, values in whole.activations.items():
        assert torch.allclose(torch.cat([p.activations[name] for p in parts], dim=1), values, rtol=0, atol=1e-12)
    for carried, wanted in zip(state, whole.state, strict=True):
        assert torch.allclose(carried, wanted, rtol=0, atol=1e-12)


@check
def series_of_a_batch_do_not_meet(kind: str) -> None:
    """A series scored beside others gets what it gets alone."""
    network = odd(kind)
    points = noise(4, 15, 3)

    together = network(points, network.fresh(4)).residual
    alone = torch.cat([network(points[i : i + 1], network.fresh(1)).residual for i in range(4)])

    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


@check
def the_future_is_not_seen(kind: str) -> None:
    """A point's residual does not depend on later points."""
    network = odd(kind)
    points = noise(1, 20, 3)
    changed = points.clone()
    changed[:, 12:] += 5

    before, after = (network(x, network.fresh(1)).residual for x in (points, changed))

    assert torch.allclose(before[:, :12], after[:, :12], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 12], after[:, 12])


@check
def a_fresh_state_is_zeros(kind: str) -> None:
    """One row a series in every tensor, all zero, and shared with nothing."""
    network = odd(kind)

    state = network.fresh(4)

    assert state
    assert all(len(tensor) == 4 and not tensor.any() for tensor in state)
    assert len({tensor.data_ptr() for tensor in state}) == len(state)
    assert [t.shape for t in network(noise(4, 6, 3), state).state] == [t.shape for t in state]


@check
def shapes_are_as_declared(kind: str) -> None:
    """Residual [B, T, R, F]; activations [B, T, H] for every group, H its width."""
    network = odd(kind)

    out = network(noise(2, 9, 3), network.fresh(2))

    assert out.residual.dim() == 4
    assert (*out.residual.shape[:2], out.residual.shape[3]) == (2, 9, 3)
    assert {name: tuple(values.shape) for name, values in out.activations.items()} == {
        name: (2, 9, width) for name, width in network.units.items()
    }


@check
def slices_cover_every_axis_that_has_units(kind: str) -> None:
    """Each slice names a real axis of blocks x width; together they name every axis but those of features, once."""
    network = odd(kind)
    tensors = network.state_dict()
    claimed = []
    for group in network.groups():
        for where in (*group.own, *group.consumers):
            assert tensors[where.tensor].shape[where.axis] == where.blocks * group.width
            claimed.append((where.tensor, where.axis))
        for where in group.consumers:
            assert (where.axis, where.blocks) == (1, 1)
            assert where.bias is not None
            assert tensors[where.bias].shape[0] == tensors[where.tensor].shape[0]

    assert len(claimed) == len(set(claimed))
    free = {
        tensor.shape[axis]
        for name, tensor in tensors.items()
        for axis in range(tensor.dim())
        if (name, axis) not in claimed
    }
    assert free <= {3, 3 * int(network.options.get("window", 1))}


@check
def activations_are_what_consumers_read(kind: str) -> None:
    """With every consumer of a group zeroed, its units have no effect: shifting their own biases changes nothing."""
    network = odd(kind)
    points = noise(1, 8, 3)
    for group in network.groups():
        silent = copy.deepcopy(network)
        tensors = silent.state_dict()
        for where in group.consumers:
            tensors[where.tensor].zero_()
        before = silent(points, silent.fresh(1)).residual
        for where in group.own:
            tensors[where.tensor].add_(0.5)

        assert torch.equal(silent(points, silent.fresh(1)).residual, before)


@check
def sizes_are_right(kind: str) -> None:
    """Units as built; parameters are all numbers; each weight matrix is used once a point."""
    network = odd(kind)

    assert network.units == ODD[kind][0]
    assert [group.name for group in network.groups()] == list(ODD[kind][0])
    assert network.parameters_count == sum(tensor.numel() for tensor in network.state_dict().values())
    assert network.macs == sum(tensor.numel() for tensor in network.state_dict().values() if tensor.dim() == 2)


@check
def building_again_gives_the_same_network(kind: str) -> None:
    """Features, units and options say all but the weights; `resized` changes only what it is told to."""
    network = odd(kind)
    group = network.groups()[0].name

    again = KINDS[kind].build(3, network.units, network.options).double()
    again.load_state_dict(network.state_dict())
    wider = network.resized({group: 17})

    points = noise(2, 9, 3)
    assert torch.equal(again(points, again.fresh(2)).residual, network(points, network.fresh(2)).residual)
    assert wider.units == network.units | {group: 17}
    assert wider.options == network.options
    assert (type(wider), wider.warm_up_points) == (type(network), network.warm_up_points)


@check
def the_dense_parent_follows_its_options(kind: str) -> None:
    """`width` is the width of every prunable group; without options the parent is generous."""
    assert all(KINDS[kind].dense(2, {name: 7}) for name in KINDS[kind].dense_options)
    small = KINDS[kind].dense(2, {"width": 9})
    default = KINDS[kind].dense(2, {})

    assert all(group.width == 9 for group in small.groups() if not group.protected)
    assert all(group.width >= 128 for group in default.groups() if not group.protected)


@check
def warm_up_covers_the_blind_points(kind: str) -> None:
    """What may not be trained on has no score either."""
    network = odd(kind)

    assert 0 <= network.blind_points <= network.warm_up_points


@check
def options_are_plain(kind: str) -> None:
    """They travel as JSON."""
    assert all(isinstance(value, int | float | str | bool) for value in odd(kind).options.values())


@check
def the_graph_follows_the_runtime_contract(kind: str) -> None:
    """It loads; a series carries as many numbers as the network's fresh state has."""
    detector = untrained(kind, 3)

    runtime = Runtime(step_graph(detector))

    assert runtime.n_features == 3
    assert [int(np.prod(shape)) for shape in runtime.state_shapes] == [
        tensor[0].numel() for tensor in detector.network.fresh(1)
    ]
    assert all(not tensor.any() for tensor in runtime.fresh(2))
    step = runtime.step(np.ones((5, 3), np.float32), runtime.fresh(5))
    assert (step.score.shape, step.contribution.shape) == ((5,), (5, 3))
    assert [tensor.shape for tensor in step.state] == [(5, *shape) for shape in runtime.state_shapes]


@check
def the_graph_is_the_same_every_time(kind: str) -> None:
    """Same detector, same bytes: bundles are named by their content."""
    assert step_graph(untrained(kind, 2)) == step_graph(untrained(kind, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_features", [1, 4])
@pytest.mark.parametrize("batch", [1, 256])
def test_the_exported_graph_gives_the_scores_of_the_network(kind: str, n_features: int, batch: int) -> None:
    """Over 200 carried steps from a fresh state: scores and contributions to a thousandth, or 1e-5 where small."""
    detector = untrained(kind, n_features, seed=batch)
    raw = np.random.default_rng(1).normal(3.0, 3.0, (batch, 200, n_features)).astype(np.float32)
    raw[:, 150] *= 40  # far out: the clip and the tail of the calibration
    with torch.no_grad():
        residual = detector.network(torch.from_numpy(detector.scaler(raw)), detector.network.fresh(batch)).residual
    wanted_error = np.stack([normalised(rows, detector.residual) for rows in residual.numpy()])
    wanted_score = detector.calibration.score(wanted_error)
    squared = np.square((residual.numpy() - detector.residual.center) * detector.residual.inverse)
    wanted_contribution = squared.mean(axis=2) / n_features

    runtime = Runtime(step_graph(detector))
    state, score, contribution = runtime.fresh(batch), [], []
    for t in range(raw.shape[1]):
        step = runtime.step(np.ascontiguousarray(raw[:, t]), state)
        state = step.state
        score.append(step.score)
        contribution.append(step.contribution)

    assert wanted_score.max() > 2  # the tail was reached
    np.testing.assert_allclose(np.stack(score, axis=1), wanted_score, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.stack(contribution, axis=1), wanted_contribution, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.stack(contribution, axis=1).sum(axis=2), wanted_error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "field"),
    [
        ("lstm", {"wdith": 8}, "options.wdith"),
        ("lstm", {"window": 8}, "options.window"),
        ("lstm", {"width": 0}, "options.width"),
        ("lstm", {"width": "8"}, "options.width"),
        ("lstm", {"width": 8.5}, "options.width"),
        ("lstm", {"width": True}, "options.width"),
        ("lstm", {"width": float("nan")}, "options.width"),
        ("lstm", {"width": float("inf")}, "options.width"),
        ("lstm", {"layers": 0}, "options.layers"),
        ("autoencoder", {"window": 1}, "options.window"),
        ("autoencoder", {"bottleneck": 0}, "options.bottleneck"),
        ("autoencoder", {"width": 10**9}, "options.width"),
    ],
)
def test_impossible_options_are_refused_by_name(kind: str, options, field: str) -> None:
    """A misspelt option is not ignored, and no value ends in an error of the framework."""
    with pytest.raises(InvalidInputError) as error:
        KINDS[kind].checked_options(options)

    assert error.value.field == field


def test_an_unknown_option_names_the_known_ones() -> None:
    """Whole numbers may come as floats, as JSON and protobuf have them."""
    with pytest.raises(InvalidInputError, match="It has layers, width"):
        KINDS["lstm"].checked_options({"depth": 3})
    assert KINDS["lstm"].checked_options({"width": 8.0, "layers": 1}) == {"width": 8, "layers": 1}


def test_every_kind_is_in_the_tables_of_these_tests() -> None:
    """A new network can not be forgotten."""
    assert set(KINDS) == set(ODD) == set(SMALL)


def test_an_unknown_kind_names_the_known_ones() -> None:
    """What to do stands in the error."""
    with pytest.raises(InvalidInputError, match="lstm, autoencoder"):
        network_class("transformer")


@pytest.mark.parametrize("n_features", [1, 3])
def test_the_bottleneck_is_protected_and_small(n_features: int) -> None:
    """It decides what an autoencoder can fail to reconstruct: narrower than the window, never offered for pruning."""
    network = KINDS["autoencoder"].dense(n_features, {"window": 8})

    assert [group.name for group in network.groups() if group.protected] == ["bottleneck"]
    assert network.units["bottleneck"] <= 8 * n_features // 4
