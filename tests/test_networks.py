"""What every network promises: one table, network kind x check. A new kind gets its tests by being registered."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fits import FOUR, SMALL, machine, untrained, with_width
from strategies import noise, randomised, residual_graph

from detectors.errors import InvalidInputError
from detectors.runtime import Runtime
from detectors.scorer import Scorer, score_alone
from detectors.served import Served
from detectors.stamps import Status
from detectors.training.calibrate import Scaler
from detectors.training.error_forms import Robust
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, chunks_over, fit, training_loss
from detectors.training.fitted import ErrorOptions, Fitted, Trace, load, member_errors, save
from detectors.training.networks import IMPORTED, KINDS, ConvAutoencoder, Network, network_class
from detectors.training.networks.base import Normal
from detectors.training.stretches import Stretches
from pruning.importance import Evidence, importance
from pruning.repair import remove_and_repair
from pruning.surgery import masked, remove

CHECKS = []
EVERY = {**KINDS, **IMPORTED}
ODD = {  # widths that differ from each other and from every other size, so that no axis is taken for another
    "lstm": ({"layer0": 11, "layer1": 7, "layer2": 13}, {}),
    "autoencoder": ({"encoder0": 11, "bottleneck": 7, "decoder0": 13}, {"window": 5}),
    "gru": ({"layer0": 11, "layer1": 7, "layer2": 13}, {}),
    "conv_autoencoder": (
        {"encoder0": 11, "encoder1": 17, "bottleneck": 7, "decoder0": 13, "decoder1": 19},
        {"window": 10},
    ),
    "lstm_autoencoder": ({"coupled": 11}, {"window": 5}),
    "variational_autoencoder": ({"encoder": 11, "latent": 7, "decoder": 13}, {"window": 5}),
    "windowed_lstm": ({"layer0": 11, "layer1": 7}, {"lookback": 5}),
    "isolation_forest": ({"trees": 11}, {"window": 2, "samples": 8, "nodes": 15, "stride": 1}),
    "ensemble": (
        {"lstm.layer0": 11, "autoencoder.encoder0": 13, "autoencoder.bottleneck": 7, "autoencoder.decoder0": 17},
        {"members": "lstm,autoencoder", "autoencoder.window": 5},
    ),
}
MACS = {  # of the networks in `ODD`, over three features
    "lstm": 4 * (11 * (3 + 11) + 7 * (11 + 7) + 13 * (7 + 13)) + 13 * 3,
    "autoencoder": 15 * 11 + 11 * 7 + 7 * 13 + 13 * 15,
    "gru": 3 * (11 * (3 + 11) + 7 * (11 + 7) + 13 * (7 + 13)) + 13 * 3,
    # windows of 10, 5, 3 and 2 positions; a layer's five taps meet those of its shorter side
    "conv_autoencoder": 5 * (5 * 3 * 11 + 3 * 11 * 17 + 2 * 17 * 7 + 2 * 7 * 13 + 3 * 13 * 19 + 5 * 19 * 3),
    # five steps of the encoder, four of the decoder that hears its own output through one matrix, five outputs
    "lstm_autoencoder": 5 * 4 * 11 * (3 + 11) + 4 * 4 * 11 * 11 + 5 * 11 * 3,
    "variational_autoencoder": 15 * 11 + 11 * 7 + 7 * 13 + 13 * 15,  # the variance of the latents is not scored
    "windowed_lstm": 5 * 4 * (11 * (3 + 11) + 7 * (11 + 7)) + 7 * 3,
    "isolation_forest": 11 * 3,  # comparisons: 15 nodes a tree lie on four levels
    "ensemble": 4 * 11 * (3 + 11) + 11 * 3 + 15 * 13 + 13 * 7 + 7 * 17 + 17 * 15,
}
SHORT = FitOptions(updates=3)


def check(function):
    """Puts a check into the table."""
    CHECKS.append(function)
    return function


def odd(kind: str, n_features: int = 3) -> Network:
    """A network in float64 whose sizes are all different."""
    units, options = ODD[kind]
    return randomised(EVERY[kind].build(n_features, units, options), 5)


def needs_gradients(kind: str, why: str) -> None:
    """Leaves out kinds that are grown, not trained."""
    if not EVERY[kind].learned_by_gradient:
        pytest.skip(f"{kind} is not learned by gradient: {why}")


def halves(network: Network, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random half of each prunable group."""
    scores = importance("random", Evidence(network, None, seed))
    return {name: values.topk(len(values) // 2).indices.sort().values for name, values in scores.items()}


def raw_points(batch: int, length: int, n_features: int, seed: int = 1) -> np.ndarray:
    """Raw values [B, T, F] about where those of `untrained` lie, and a few of them far out."""
    raw = np.random.default_rng(seed).normal(3.0, 3.0, (batch, length, n_features)).astype(np.float32)
    raw[:, 3 * length // 4 :][:, :6] *= 40
    return raw


def stepped(detector: Fitted, raw: np.ndarray) -> Trace:
    """What the graph makes of raw points [B, T, F] from a fresh state; NaN where no step ends."""
    runtime = Runtime(step_graph(detector))
    stride, state = runtime.stride, runtime.fresh(len(raw))
    contribution, score = np.full(raw.shape, np.nan, np.float32), np.full(raw.shape[:2], np.nan, np.float32)
    for end in range(stride, raw.shape[1] + 1, stride):
        values = raw[:, end - 1] if stride == 1 else raw[:, end - stride : end]
        step = runtime.step(np.ascontiguousarray(values), state)
        state = step.state
        contribution[:, end - 1], score[:, end - 1] = step.contribution, step.score
    return Trace(contribution, contribution.sum(axis=2), score)


def assert_same_where_scored(got: Trace, wanted: Trace) -> None:
    """Scores and contributions to a thousandth, or 1e-5 where small, at every point that `wanted` has scored."""
    there = np.isfinite(wanted.score)
    assert there.any()
    np.testing.assert_allclose(got.score[there], wanted.score[there], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got.contribution[there], wanted.contribution[there], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("rule", CHECKS, ids=lambda rule: rule.__name__)
def test_contract(kind: str, rule) -> None:
    """Every kind keeps every rule of the table."""
    rule(kind)


# The network by itself


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
def a_window_is_all_that_a_window_network_knows(kind: str) -> None:
    """After W - 1 points it does not matter what it began with; a network that carries state has no window."""
    network = odd(kind)
    if not network.window:
        assert network.stride == network.positions == 1
        return
    points = noise(2, network.window + 6, 3)

    begun = network(points, network.fresh(2)).residual
    resumed = network(points, tuple(tensor + 1 for tensor in network.fresh(2))).residual

    assert torch.equal(begun[:, network.window - 1 :], resumed[:, network.window - 1 :])
    assert network.warm_up_points == network.window - 1


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
    """Residual [B, T, R, F]; activations [B, T, ..., H] for every group, H its width; a loss, if any, [B, T].

    So are the voices that slices name, beside them as `group/voice`.
    """
    network = odd(kind)

    out = network(noise(2, 9, 3), network.fresh(2))

    assert tuple(out.residual.shape) == (2, 9, sum(member.positions for member in network.members.values()), 3)
    assert {name: (*values.shape[:2], values.shape[-1]) for name, values in out.activations.items()} == {
        name: (2, 9, width) for name, width in network.units.items()
    } | {name: (2, 9, network.units[name.partition("/")[0]]) for name in out.activations if "/" in name}
    heard = {voice for group in network.groups() for where in group.consumers for voice in where.voices}
    assert heard <= out.activations.keys()
    assert out.loss is None or tuple(out.loss.shape) == (2, 9)


@check
def every_parameter_learns(kind: str) -> None:
    """The training loss has a gradient for each of them."""
    needs_gradients(kind, "it has no parameters")
    network = odd(kind)

    loss = training_loss(network(noise(4, 20, 3), network.fresh(4)), torch.ones(4, 20, dtype=torch.bool))
    loss.backward()

    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# Sizes


@check
def sizes_are_right(kind: str) -> None:
    """Units as built, in the order of the forward pass; multiply-accumulates as counted by hand."""
    network = odd(kind)

    assert network.units == ODD[kind][0]
    assert [group.name for group in network.groups()] == list(ODD[kind][0])
    assert network.macs == MACS[kind]


@check
def parameters_are_all_numbers(kind: str) -> None:
    """Nothing is stored that is not learned; and what is smaller costs less."""
    needs_gradients(kind, "its nodes are padded to the largest tree")
    network = odd(kind)
    fewer = network.resized({group.name: group.width - 2 for group in network.groups()})

    assert network.parameters_count == sum(tensor.numel() for tensor in network.state_dict().values())
    assert fewer.parameters_count < network.parameters_count
    assert fewer.macs < network.macs


@check
def building_again_gives_the_same_network(kind: str) -> None:
    """Features, units and options say all but the weights; `resized` changes only what it is told to."""
    network = odd(kind)
    group = network.groups()[0].name

    again = EVERY[kind].build(3, network.units, network.options).double()
    again.load_state_dict(network.state_dict())
    wider = network.resized({group: 17})

    points = noise(2, 9, 3)
    assert torch.equal(again(points, again.fresh(2)).residual, network(points, network.fresh(2)).residual)
    assert wider.units == network.units | {group: 17}
    assert wider.options == network.options
    assert (type(wider), wider.warm_up_points) == (type(network), network.warm_up_points)


@check
def the_dense_parent_follows_its_options(kind: str) -> None:
    """`width` is the width of every prunable group of units; without options the parent is generous.

    Sixty-four units at the least: what runs a recurrent layer over a whole window for each point begins narrower.
    """
    for name, (low, high) in EVERY[kind].dense_options.items():
        assert EVERY[kind].dense(2, {name: min(max(7, low), high)})
    small, default = EVERY[kind].dense(2, with_width(kind, 9)), EVERY[kind].dense(2, {})

    if EVERY[kind].learned_by_gradient:
        assert all(group.width == 9 for group in small.groups() if not group.protected)
    assert all(group.width >= 64 for group in default.groups() if not group.protected)


@check
def warm_up_covers_the_blind_points(kind: str) -> None:
    """What may not be trained on has no score either."""
    network = odd(kind)

    assert 0 <= network.blind_points <= network.warm_up_points


@check
def options_are_plain(kind: str) -> None:
    """They travel as JSON and come back as they were."""
    network = odd(kind)

    assert json.loads(json.dumps(network.options)) == network.options


# Units


@check
def slices_cover_every_axis_that_has_units(kind: str) -> None:
    """Each slice names a real axis of blocks x width; together they name every axis but those of features, once.

    Consumers are weights (out, in) or (out, in, kernel), or (in, out, kernel) of a transposed convolution; the bias
    that takes over a constant is as long as the other axis.
    """
    needs_gradients(kind, "it has nodes, not weights")
    network = odd(kind)
    tensors = network.state_dict()
    claimed = []
    for group in network.groups():
        for where in (*group.own, *group.consumers):
            assert tensors[where.tensor].shape[where.axis] == where.blocks * group.width
            claimed.append((where.tensor, where.axis))
        for where in group.consumers:
            transposed = tensors[where.tensor].dim() == 3 and where.axis == 0
            assert where.axis == (0 if transposed else 1)
            assert where.phases == (2 if transposed else 1)
            assert where.bias is not None
            assert len(tensors[where.bias]) == tensors[where.tensor].shape[1 - where.axis]

    assert len(claimed) == len(set(claimed))
    free = {
        tensor.shape[axis]
        for name, tensor in tensors.items()
        for axis in range(min(tensor.dim(), 2))  # a third is the kernel
        if (name, axis) not in claimed
    }
    assert free <= {3} | {3 * member.window for member in network.members.values()}


@check
def activations_are_what_consumers_read(kind: str) -> None:
    """With every consumer of a group zeroed, its units have no effect: shifting what makes them changes nothing."""
    needs_gradients(kind, "its nodes are indices, nothing to shift")
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
def removing_nothing_changes_nothing(kind: str) -> None:
    """A keep-set of all units gives the same tensors, in a new network."""
    network = odd(kind)

    same = remove(network, {})

    assert same is not network
    assert (same.units, same.options) == (network.units, network.options)
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


@check
def removing_is_masking(kind: str) -> None:
    """Half of each group taken out, in float64 over carried state: what zeroing all that reads it gives."""
    network = odd(kind)
    points, keep = noise(2, 30, 3), halves(network)

    cut, wanted = remove(network, keep), masked(network, keep)

    assert cut.units == network.units | {name: len(indices) for name, indices in keep.items()}
    assert cut.options == network.options
    with torch.no_grad():
        difference = cut(points, cut.fresh(2)).residual - wanted(points, wanted.fresh(2)).residual
    assert float(difference.abs().max()) <= 1e-9


@check
def a_twin_takes_over_the_work_of_the_other(kind: str) -> None:
    """Of two units that always say the same one can go: least squares gives its work to the other in every consumer."""
    units, options = ODD[kind]
    torch.manual_seed(3)
    network = EVERY[kind].build(3, units, options)
    tensors = network.state_dict()
    keep = {}
    for group in network.groups():
        if group.protected:
            continue
        for where in group.own:
            by_unit = tensors[where.tensor].movedim(where.axis, 0).unflatten(0, (where.blocks, group.width))
            by_unit[:, 1] = by_unit[:, 0]
        keep[group.name] = torch.tensor([unit for unit in range(group.width) if unit != 1])
    data = Stretches.of([np.random.default_rng(0).normal(size=(500, 3))])
    points = noise(2, 60, 3, dtype=torch.float32)

    def loss_by(other: Network) -> float:
        with torch.no_grad():
            away = other(points, other.fresh(2)).residual - network(points, network.fresh(2)).residual
        return float(away.square().mean())

    repaired = remove_and_repair(network, keep, chunks_over(data, Scaler.identity(3), network, 0))

    assert repaired.units == network.units | {name: len(indices) for name, indices in keep.items()}
    assert loss_by(repaired) < 0.01 * loss_by(remove(network, keep))


# The detector around it


@check
def the_same_seed_gives_the_same_detector(kind: str) -> None:
    """Bit for bit, whatever torch's own generator was at; another seed gives another."""
    data = Stretches.of([machine(160)])

    def graph(seed: int, outside: int) -> bytes:
        torch.manual_seed(outside)
        return step_graph(fit(kind, data, FOUR, seed=seed, options=SMALL[kind], how=SHORT))

    assert graph(0, 1) == graph(0, 2)
    assert graph(0, 1) != graph(1, 1)


@check
def loading_gives_what_was_saved(kind: str) -> None:
    """The same scores bit for bit, the same graph byte for byte."""
    detector, raw = untrained(kind, 3), raw_points(2, 80, 3)

    loaded = load(save(detector))

    assert (loaded.network.units, loaded.network.options) == (detector.network.units, detector.network.options)
    for got, wanted in zip(loaded.trace(raw), detector.trace(raw), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert step_graph(loaded) == step_graph(detector)


@check
def there_is_no_score_before_the_warm_up_and_one_ever_after(kind: str) -> None:
    """Exactly `warm_up_points` points have none, offline as in service; all others have the same score in both."""
    detector, raw = untrained(kind, 3), raw_points(1, 90, 3)
    warm_up = detector.warm_up_points
    scorer = Scorer(Served(1, "", Runtime(step_graph(detector)), warm_up))

    trace = detector.trace(raw)
    served = list(score_alone(scorer, "pump", np.arange(90), raw[0]))

    status, score = (np.concatenate([getattr(part, name) for part in served]) for name in ("status", "score"))
    wanted = np.arange(90) < warm_up
    for part in trace:
        np.testing.assert_array_equal(np.isnan(part).reshape(90, -1).any(axis=1), wanted)
    np.testing.assert_array_equal(status, np.where(wanted, Status.WARMING_UP, Status.OK))
    np.testing.assert_array_equal(np.isnan(score), wanted)
    np.testing.assert_allclose(score[warm_up:], trace.score[0, warm_up:], rtol=1e-3, atol=1e-5)


@check
def constant_and_binary_features_can_be_fitted(kind: str) -> None:
    """Scores are finite; and when the constant moves for once, that point stands out.

    Not to a tree: it never splits what has stood still.
    """
    rows = machine(260)
    rows[:, 1] = 7.0
    rows[:, 3] = rows[:, 0] > 10
    detector = fit(kind, Stretches.of([rows]), FOUR, seed=0, options=SMALL[kind], how=SHORT)
    moved = rows.copy()
    moved[200, 1] = 50.0

    normal, changed = detector.trace(rows[None]).score[0], detector.trace(moved[None]).score[0]

    assert np.isfinite(normal[detector.warm_up_points :]).all()
    assert np.isfinite(changed[detector.warm_up_points :]).all()
    if EVERY[kind].learned_by_gradient:
        assert changed[200] > normal[200]


@check
def contributions_sum_to_the_error(kind: str) -> None:
    """Those of robust errors, the form of all that is trained here, are never negative."""
    trace, members = untrained(kind, 3).trace(raw_points(2, 90, 3)), EVERY[kind].dense(1, SMALL[kind]).members

    there = np.isfinite(trace.score)
    np.testing.assert_allclose(trace.contribution[there].sum(axis=-1), trace.error[there], rtol=1e-5)
    if all(member.learned_by_gradient for member in members.values()):
        assert all(isinstance(view.form, Robust) for view in untrained(kind, 3).views)
        assert (trace.contribution[there] >= 0).all()


@check
def a_larger_error_has_a_higher_score(kind: str) -> None:
    """Everywhere, from the smallest error to far beyond any that calibration has seen."""
    detector = untrained(kind, 3)
    raw = raw_points(8, 90, 3) * np.linspace(0.5, 20, 8, dtype=np.float32)[:, None, None]
    trace = detector.trace(raw)
    there = np.isfinite(trace.score)
    order = np.argsort(trace.error[there])

    errors, scores = trace.error[there][order], trace.score[there][order]

    assert scores[0] >= 0
    assert (np.diff(scores) >= 0).all()
    grown = np.diff(errors) > 1e-4 * errors[1:]
    assert (np.diff(scores)[grown] > 0).all()
    calibration = detector.combined or detector.views[0].calibration
    assert (np.diff(calibration.score(np.geomspace(1e-3, 1e6, 200) * calibration.knots[-1])) > 0).all()


@check
def smoothing_is_an_exponential_average_and_nothing_else(kind: str) -> None:
    """With a half-life of five points an error counts half after five points; nothing but that differs.

    What reconstructs a window weighs its positions so, by itself, and is not smoothed once more.
    """
    detector, raw = untrained(kind, 3), raw_points(2, 60, 3)
    forms = [view.form for view in detector.views]

    def contributions(half_life: float) -> list[np.ndarray]:
        how = ErrorOptions(half_life=half_life)
        return next(iter(member_errors(detector.network, detector.scaler, how, forms, raw)))[1]

    keep = 0.5 ** (1 / 5)
    members = detector.network.members.values()
    for member, form, sharp, smooth in zip(members, forms, contributions(0), contributions(5), strict=True):
        if member.positions > 1:
            np.testing.assert_array_equal(smooth, sharp)
            np.testing.assert_allclose(form.weights[1:] * keep, form.weights[:-1], rtol=1e-5)
            continue
        wanted, now = np.empty_like(sharp), np.zeros_like(sharp[:, 0])
        for t in range(sharp.shape[1]):
            now = keep * now + (1 - keep) * sharp[:, t]
            wanted[:, t] = now
        np.testing.assert_allclose(smooth, wanted, rtol=1e-4, atol=1e-5)


@check
def numbers_beyond_reason_have_finite_scores(kind: str) -> None:
    """Up to the largest a float can hold, in either direction, and the series goes on as if nothing had been."""
    detector, raw = untrained(kind, 3), raw_points(2, 120, 3)
    raw[0, 60], raw[1, 60:64] = 1e30, np.finfo(np.float32).min

    for trace in (detector.trace(raw), stepped(detector, raw)):
        there = np.arange(120) >= detector.warm_up_points
        assert np.isfinite(trace.score[:, there]).all()
        assert np.isfinite(trace.contribution[:, there]).all()


# Missing values


@check
def missing_values_are_carried_alike_in_the_graph(kind: str) -> None:
    """One sensor, all of them, for a while, and at the very first point: the graph has the scores of the network."""
    detector, raw = untrained(kind, 3, error=ErrorOptions(missing="carry")), raw_points(3, 100, 3)
    raw[0, 0, 1] = raw[1, 60:75, 2] = raw[2, 58] = raw[2, 80:82, :2] = np.nan
    raw[1, 0] = np.nan

    assert Runtime(step_graph(detector)).takes_missing
    assert_same_where_scored(stepped(detector, raw), detector.trace(raw))


@check
def what_is_missing_contributes_nothing(kind: str) -> None:
    """Once no value of a sensor is known any more that would be judged, it has no part in the error."""
    detector, raw = untrained(kind, 3, error=ErrorOptions(half_life=0, missing="carry")), raw_points(1, 110, 3)
    raw[0, 60:, 1] = np.nan
    silent = 60 + max(member.positions for member in detector.network.members.values()) - 1

    contribution = detector.trace(raw).contribution[0]

    assert not contribution[silent:, 1].any()
    assert contribution[silent:].any(axis=1).all()


@check
def carrying_is_nothing_where_nothing_is_missing(kind: str) -> None:
    """Complete points have the same scores with it and without."""
    raw = raw_points(1, 80, 3)

    with_it, without = (
        untrained(kind, 3, error=ErrorOptions(missing=missing)).trace(raw) for missing in ("carry", "reject")
    )

    np.testing.assert_array_equal(with_it.score, without.score)


# Every n-th point


@check
def a_stride_scores_every_nth_point(kind: str) -> None:
    """The n-th, 2n-th, ... after the warm-up, in the graph as offline; unsmoothed they are those of a stride of one."""
    if "stride" not in EVERY[kind].dense_options:
        pytest.skip(f"{kind} has no option `stride`: it needs every point")
    raw = raw_points(2, 90, 3)
    detector = untrained(kind, 3, stride=3)

    trace, due = detector.trace(raw), np.arange(90) % 3 == 2

    np.testing.assert_array_equal(np.isfinite(trace.score[0]), due & (np.arange(90) >= detector.warm_up_points))
    assert_same_where_scored(stepped(detector, raw), trace)
    sharp = replace(detector, how=ErrorOptions(half_life=0))
    every = replace(sharp, network=EVERY[kind].build(3, sharp.network.units, {**sharp.network.options, "stride": 1}))
    every.network.load_state_dict(sharp.network.state_dict())
    there = np.isfinite(sharp.trace(raw).score)
    np.testing.assert_array_equal(sharp.trace(raw).score[there], every.trace(raw).score[there])


@check
def missing_values_and_a_stride_go_together(kind: str) -> None:
    """The last value is carried from point to point, not from step to step."""
    if "stride" not in EVERY[kind].dense_options:
        pytest.skip(f"{kind} has no option `stride`: it needs every point")
    detector, raw = untrained(kind, 3, stride=3, error=ErrorOptions(missing="carry")), raw_points(2, 90, 3)
    raw[0, 0, 1] = raw[0, 55:57, 2] = raw[1, 59:64] = np.nan

    assert_same_where_scored(stepped(detector, raw), detector.trace(raw))


# The graph


@check
def the_graph_follows_the_runtime_contract(kind: str) -> None:
    """It loads; a series carries as many numbers as the network's fresh state has."""
    detector = untrained(kind, 3, error=ErrorOptions(half_life=0))

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


@check
def the_graph_draws_the_network(kind: str) -> None:
    """Over 60 carried steps the normalised residual of each member is that of torch to 1e-5, whatever the scale."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(4, 60, 3)).astype(np.float32)
    for member in untrained(kind, 3).network.members.values():
        center, inverse = rng.normal(size=3).astype(np.float32), rng.uniform(0.3, 1, 3).astype(np.float32)
        size = member.positions * 3
        with torch.no_grad():
            residual = member(torch.from_numpy(points), member.fresh(4)).residual.numpy()
        runtime = Runtime(residual_graph(member, Normal(center, inverse)))
        state, seen = runtime.fresh(4), []
        for t in range(60):
            state = runtime.step(np.ascontiguousarray(points[:, t]), state).state
            seen.append(state[0])

        wanted = ((residual - center) * inverse).reshape(4, 60, size)
        np.testing.assert_allclose(np.stack(seen, axis=1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("n_features", [1, 4])
@pytest.mark.parametrize("batch", [1, 64])
def test_the_exported_graph_gives_the_scores_of_the_network(kind: str, n_features: int, batch: int) -> None:
    """Over 120 carried steps from a fresh state: scores and contributions to a thousandth, or 1e-5 where small."""
    detector, raw = untrained(kind, n_features, seed=batch), raw_points(batch, 120, n_features)

    wanted = detector.trace(raw)

    assert np.nanmax(wanted.score) > 2  # the tail was reached
    got = stepped(detector, raw)
    assert_same_where_scored(got, wanted)
    there = np.isfinite(wanted.score)
    np.testing.assert_allclose(got.error[there], wanted.error[there], rtol=1e-3, atol=1e-5)


# One kind


@pytest.mark.parametrize(("n_features", "width"), [(4, 12), (4, 20), (4, 48), (40, 20)])
def test_an_lstm_of_any_width_is_drawn_as_it_is(n_features: int, width: int) -> None:
    """Its products come in two forms, by width, and what is around them by features: all give the network's scores."""
    detector, raw = untrained("lstm", n_features, width=width), raw_points(3, 80, n_features)

    assert_same_where_scored(stepped(detector, raw), detector.trace(raw))


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
        ("lstm", {"stride": 2}, "options.stride"),
        ("gru", {"window": 8}, "options.window"),
        ("autoencoder", {"window": 1}, "options.window"),
        ("autoencoder", {"bottleneck": 0}, "options.bottleneck"),
        ("autoencoder", {"width": 10**9}, "options.width"),
        ("autoencoder", {"stride": 9, "window": 8}, "options.stride"),
        ("autoencoder", {"stride": 51}, "options.stride"),
        ("conv_autoencoder", {"window": 3}, "options.window"),
        ("conv_autoencoder", {"depth": 5}, "options.depth"),
        ("ensemble", {"members": "lstm"}, "options.members"),
        ("ensemble", {"members": "lstm,lstm"}, "options.members"),
        ("ensemble", {"members": "lstm,transformer"}, "options.members"),
        ("ensemble", {"members": 2}, "options.members"),
        ("ensemble", {"width": 8}, "options.width"),
        ("ensemble", {"gru.width": 8}, "options.gru.width"),
        ("ensemble", {"lstm.width": 0}, "options.lstm.width"),
        ("ensemble", {"autoencoder.stride": 2}, "options.autoencoder.stride"),
    ],
)
def test_impossible_options_are_refused_by_name(kind: str, options, field: str) -> None:
    """A misspelt option is not ignored, and no value ends in an error of the framework."""
    with pytest.raises(InvalidInputError) as error:
        EVERY[kind].checked_options(options)

    assert error.value.field == field


def test_an_unknown_option_names_the_known_ones() -> None:
    """Whole numbers may come as floats, as JSON and protobuf have them."""
    with pytest.raises(InvalidInputError, match="It has layers, width"):
        KINDS["lstm"].checked_options({"depth": 3})
    assert KINDS["lstm"].checked_options({"width": 8.0, "layers": 1}) == {"width": 8, "layers": 1}


def test_every_kind_is_in_the_tables_of_these_tests() -> None:
    """A new network can not be forgotten."""
    assert set(EVERY) == set(ODD) == set(SMALL) == set(MACS)


def test_the_table_of_checks_is_long() -> None:
    """Every check that is written down is in it."""
    assert len({rule.__name__ for rule in CHECKS}) == len(CHECKS) >= 20


def test_an_unknown_kind_names_the_known_ones() -> None:
    """What to do stands in the error."""
    with pytest.raises(InvalidInputError, match="lstm, autoencoder"):
        network_class("transformer")


@pytest.mark.parametrize("kind", ["autoencoder", "conv_autoencoder"])
@pytest.mark.parametrize("n_features", [1, 3])
def test_the_bottleneck_is_protected_and_small(kind: str, n_features: int) -> None:
    """It decides what an autoencoder can fail to reconstruct: narrower than the window, never offered for pruning."""
    network = EVERY[kind].dense(n_features, {"window": 8})

    told = network(torch.zeros(1, 1, n_features), network.fresh(1)).activations["bottleneck"]

    assert [group.name for group in network.groups() if group.protected] == ["bottleneck"]
    assert told.numel() <= 8 * n_features // 4


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("window", [4, 5, 6, 7, 8, 9, 31, 50])
def test_a_convolved_window_of_any_length_comes_back_whole(window: int, depth: int) -> None:
    """Odd or even at any depth, halved and doubled again: as many positions as went in, in torch and in the graph."""
    torch.manual_seed(window)
    options = {"window": window, "depth": depth, "width": 5, "bottleneck": 2}
    network = ConvAutoencoder.dense(2, options)
    points = noise(2, window + 3, 2, dtype=torch.float32)

    with torch.no_grad():
        residual = network(points, network.fresh(2)).residual

    assert tuple(residual.shape) == (2, window + 3, window, 2)
    halved = network.lengths[: depth + 1]
    assert all(after == (before + 1) // 2 for before, after in pairwise((window, *halved)))
    assert network.lengths[depth:] == (*halved[::-1], window)
    runtime = Runtime(residual_graph(network, Normal(np.zeros(2, np.float32), np.ones(2, np.float32))))
    state = runtime.fresh(2)
    for t in range(window + 3):
        state = runtime.step(np.ascontiguousarray(points[:, t]), state).state
    np.testing.assert_allclose(state[0], residual[:, -1].flatten(1), rtol=1e-5, atol=1e-5)
