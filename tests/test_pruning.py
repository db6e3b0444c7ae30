"""Pruning: which units go, what repairs their loss, how wide a budget allows, and what may never be adopted."""

from __future__ import annotations

import copy
import gc
import itertools

import numpy as np
import pytest
import torch
from fits import FOUR, fitted, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from strategies import noise, randomised

from detectors.errors import InvalidInputError
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, Runner, chunks_over, fit, training_loss
from detectors.training.fitted import Fitted, mean_square
from detectors.training.networks import LSTM, Autoencoder, Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.cycle import CycleOptions, prune, run_cycle, split
from pruning.finetune import finetune
from pruning.gate import (
    GAP,
    GateLimits,
    Ranking,
    _alarm_checks,
    cut_at,
    cut_for,
    injected_drop,
    judge,
    segments,
    trimmed_error,
)
from pruning.groups import prunable
from pruning.importance import CRITERIA, Evidence, importance
from pruning.injection import KINDS as DISTURBANCES
from pruning.injection import inject
from pruning.latency import measure
from pruning.outcome import MARGIN, Budget, Latency
from pruning.repair import regress, remove_and_repair
from pruning.search import GRID, Ladder, Rung, climb, ladder_units, stages, within
from pruning.surgery import masked, remove

TRAINED = 150  # updates: enough for units to matter differently
FAST = Latency(1e-6, 2e-6, 16)
ROOMY = Budget(size_bytes=1 << 30, batch=16)
LOOSE = GateLimits(error_ratio=1e9, alarm_jaccard=0.0, injected_drop=1.0)


def chunks(network: Network, detector: Fitted, seed: int = 0) -> Lanes | Windows:
    """Lanes or windows of points that the detector was fitted to."""
    return chunks_over(Stretches.of([machine(700)]), detector.scaler, network, seed)


def loss(network: Network, detector: Fitted) -> float:
    """Mean squared residual on fresh points of the same machine, warm-up left out."""
    points = torch.from_numpy(detector.scaler(machine(400, seed=5)))[None]
    with torch.no_grad():
        residual = network(points, network.fresh(1)).residual
    return float(mean_square(residual)[:, network.warm_up_points :].mean())


# Importance


def test_l2_of_an_lstm_by_hand() -> None:
    """All gate rows and biases of the unit, its recurrent column and the head's column, squared, summed, rooted."""
    network = randomised(LSTM(2, (3,)), 1)
    layer, head = network.layers[0].requires_grad_(False), network.head.weight.detach()
    wanted = []
    for unit in range(3):
        rows = [unit, 3 + unit, 6 + unit, 9 + unit]
        made = sum(float(getattr(layer, f"{name}_l0")[rows].square().sum()) for name in PARTS)
        read = float(layer.weight_hh_l0[:, unit].square().sum() + head[:, unit].square().sum())
        wanted.append((made + read) ** 0.5)

    scores = importance("l2", Evidence(network, None, 0))

    assert scores["layer0"].tolist() == pytest.approx(wanted)


PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def test_l2_of_an_autoencoder_by_hand() -> None:
    """Row, bias and next column; the bottleneck is not offered."""
    network = randomised(Autoencoder(2, 3, {"encoder0": 4, "bottleneck": 2, "decoder0": 5}), 1).requires_grad_(False)
    decoder, output = network.layers["decoder0"], network.layers["output"]
    wanted = [
        float(decoder.weight[unit].square().sum() + decoder.bias[unit].square() + output.weight[:, unit].square().sum())
        ** 0.5
        for unit in range(5)
    ]

    scores = importance("l2", Evidence(network, None, 0))

    assert set(scores) == {"encoder0", "decoder0"}
    assert scores["decoder0"].tolist() == pytest.approx(wanted)


def ablation(network: Network, judged: list) -> dict[str, np.ndarray]:
    """Rise of the loss over the same chunks when nothing reads one unit, unit by unit."""

    def total(candidate: Network) -> float:
        run = Runner(candidate)
        with torch.no_grad():
            return float(sum(training_loss(run(chunk), chunk.counted) for chunk in judged))

    base = total(network)
    return {
        group.name: np.array(
            [
                total(masked(network, {group.name: torch.tensor([i for i in range(group.width) if i != unit])})) - base
                for unit in range(group.width)
            ]
        )
        for group in prunable(network)
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value."""
    return np.argsort(np.argsort(values))


@pytest.mark.parametrize("criterion", ["taylor", "l2"])
def test_importance_ranks_units_as_ablation_does(criterion: str) -> None:
    """Taylor agrees with taking out each unit by itself; l2 need only not be nonsense."""
    detector = fitted("lstm", updates=TRAINED)
    network = detector.network
    truth = ablation(network, list(chunks(network, detector).chunks(4)))

    scores = importance(criterion, Evidence(network, chunks(network, detector), 0))

    agreement = [np.corrcoef(ranks(scores[name].numpy()), ranks(truth[name]))[0, 1] for name in truth]
    assert np.mean(agreement) > (0.5 if criterion == "taylor" else -0.2)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_a_unit_that_nobody_reads_has_no_taylor_importance(kind: str) -> None:
    """Exactly zero, and less than any other; the network and its gradients are left as they were."""
    detector = fitted(kind, updates=TRAINED)
    network = copy.deepcopy(detector.network)
    for group in prunable(network):
        for where in group.consumers:
            network.state_dict()[where.tensor][:, 3] = 0
    before = copy.deepcopy(network.state_dict())

    scores = importance("taylor", Evidence(network, chunks(network, detector), 0))

    for values in scores.values():
        assert values[3] == 0
        assert values.argmin() == 3 or (values == 0).sum() > 1  # a ReLU can be dead by itself
        assert (values >= 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_random_importance_follows_its_seed() -> None:
    """The same seed the same numbers, another seed others."""
    network = LSTM(2, (16, 8))

    first, second, other = (importance("random", Evidence(network, None, seed)) for seed in (1, 1, 2))

    assert {name: len(values) for name, values in first.items()} == network.units
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layer0"], other["layer0"])


def test_an_unknown_criterion_names_the_known_ones() -> None:
    """What to do stands in the error."""
    with pytest.raises(InvalidInputError, match="random, l2, taylor"):
        importance("magic", Evidence(LSTM(1, (2,)), None, 0))
    assert list(CRITERIA) == ["random", "l2", "taylor"]


# Repair and fine-tuning


def halves(network: Network, seed: int) -> dict[str, torch.Tensor]:
    """A random half of each prunable group."""
    scores = importance("random", Evidence(network, None, seed))
    return {name: values.topk(len(values) // 2).indices.sort().values for name, values in scores.items()}


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_repair_beats_plain_removal(kind: str, seed: int) -> None:
    """At half the units, chosen blindly, least squares takes back most of what removal did."""
    detector = fitted(kind, updates=TRAINED)
    network = detector.network
    keep = halves(network, seed)
    dense, plain = loss(network, detector), loss(remove(network, keep), detector)

    repaired = remove_and_repair(network, keep, chunks(network, detector))

    assert {name: len(indices) for name, indices in keep.items()}.items() <= repaired.units.items()
    assert loss(repaired, detector) - dense < 0.6 * (plain - dense)


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


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_fine_tuning_lowers_the_error(kind: str) -> None:
    """In place, against a parent that stays as it is; the same seed gives the same child."""
    detector = fitted(kind, updates=TRAINED)
    teacher, data = detector.network, Stretches.of([machine(700)])
    before = copy.deepcopy(teacher.state_dict())
    first, second = (remove(teacher, halves(teacher, 0)) for _ in range(2))
    error = loss(first, detector)

    for student in (first, second):
        finetune(student, teacher, data, detector.scaler, updates=40, seed=1)

    assert loss(first, detector) < 0.8 * error
    assert loss(first, detector) == loss(second, detector)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_student_moves_towards_its_parent() -> None:
    """A parent that predicts one standard deviation too high pulls its student up: half of the loss is agreement."""
    detector, data = fitted("lstm", updates=TRAINED), Stretches.of([machine(700)])
    teacher, student = copy.deepcopy(detector.network), copy.deepcopy(detector.network)
    teacher.state_dict()["head.bias"].add_(1.0)
    points = torch.from_numpy(detector.scaler(machine(300, seed=8)))[None]

    finetune(student, teacher, data, detector.scaler, updates=60, seed=0)

    with torch.no_grad():
        lower = student(points, student.fresh(1)).residual - detector.network(points, student.fresh(1)).residual
    assert 0.2 < -float(lower.mean()) < 1.0


# Latency and search


def wide(width: int) -> Fitted:
    """An untrained LSTM 2 x width."""
    parent = untrained("lstm", 8)
    return parent.with_network(parent.network.resized({"layer0": width, "layer1": width}))


def test_a_wide_graph_is_slower_than_a_narrow_one() -> None:
    """2x128 against 2x8 in one run, whatever their order; quantiles are ordered and say their batch."""
    slow, fast = step_graph(wide(128)), step_graph(wide(8))

    times = measure([slow, fast, slow], 64, rounds=3)

    assert len(times) == 3
    assert min(times[0].p50_seconds, times[2].p50_seconds) > 1.5 * times[1].p50_seconds
    assert all(0 < each.p50_seconds <= each.p99_seconds < 1 for each in times)
    assert {each.batch for each in times} == {64}


def test_a_graph_that_takes_several_points_can_be_measured() -> None:
    """A detector with a stride is timed by the step, whatever a step takes."""
    (time,) = measure([step_graph(untrained("autoencoder", 3, stride=4))], 8, rounds=1)

    assert 0 < time.p50_seconds < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "gru", "conv_autoencoder"])
def test_other_networks_are_pruned_too(kind: str) -> None:
    """A cycle on each ends with a child that was built, measured and judged."""
    parent = fitted(kind, updates=40)
    candidate = prune(parent, machine(900), speedup=1.01, batch=64)

    assert candidate.child is not None, candidate.outcome.reason
    assert candidate.child.network.parameters_count < parent.network.parameters_count
    assert {name: len(units) for name, units in candidate.kept.items()}.items() <= candidate.child.network.units.items()
    assert candidate.outcome.gate is not None


def test_a_strided_detector_is_pruned_and_scored() -> None:
    """Points that are due are judged, whatever the stride."""
    data = Stretches.of([machine(1200)])
    options = {"window": 8, "width": 32, "bottleneck": 4, "stride": 4}
    parent = fit("autoencoder", data, FOUR, seed=0, options=options, how=FitOptions(updates=60))

    candidate = prune(parent, machine(1200), size_bytes=12_000, batch=16)

    assert candidate.child is not None, candidate.outcome.reason
    assert candidate.child.network.stride == 4
    assert len(step_graph(candidate.child)) < 12_000


def test_measuring_leaves_garbage_collection_as_it_was() -> None:
    """Switched off only meanwhile, also where the caller had switched it off before."""
    graph = step_graph(wide(8))
    gc.disable()
    try:
        measure([graph], 1, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()
    measure([graph], 1, rounds=1)
    assert gc.isenabled()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=3))
def test_the_ladder_goes_down_from_dense_in_steps_of_the_grid(widths: list[int]) -> None:
    """First the network itself, then never wider and somewhere narrower; widths on the grid, none below it."""
    network = LSTM(1, tuple(widths))

    rungs = list(ladder_units(network))

    assert rungs[0] == network.units
    for upper, lower in itertools.pairwise(rungs):
        assert lower != upper
        assert all(lower[name] <= upper[name] for name in upper)
    for units in rungs[1:]:
        assert all(units[name] % GRID == 0 or units[name] == dense for name, dense in network.units.items())
    assert all(
        width <= max(GRID, -(-dense // 16) + GRID) for width, dense in zip(rungs[-1].values(), widths, strict=True)
    )


def test_the_ladder_leaves_protected_groups_out() -> None:
    """An autoencoder's bottleneck is not on it."""
    rungs = list(ladder_units(Autoencoder(2, 8, {"encoder0": 32, "bottleneck": 8, "decoder0": 32})))

    assert rungs == [{"encoder0": width, "decoder0": width} for width in (32, 24, 16, 8)]


def rung(width: int, p50: float, size: int = 1000, p99: float | None = None) -> Rung:
    """A rung with times in microseconds."""
    return Rung({"layer0": width}, Latency(p50 * 1e-6, (p99 or 2 * p50) * 1e-6, 16), size)


LADDER = Ladder((rung(32, 100, 4000), rung(24, 80, 3000), rung(16, 46, 2000), rung(8, 40, 1000)))


@pytest.mark.parametrize(
    ("budget", "width"),
    [
        (Budget(p50_seconds=200e-6), 32),
        (Budget(p50_seconds=100e-6), 24),  # 100 us would be on the edge; nine tenths of it are 90
        (Budget(p50_seconds=85e-6), 16),
        (Budget(p50_seconds=41e-6), 8),  # the floor is inside the budget, though not inside nine tenths of it
        (Budget(p50_seconds=39e-6), None),
        (Budget(p99_seconds=180e-6), 24),
        (Budget(p99_seconds=79e-6), None),
        (Budget(speedup=1.0), 24),
        (Budget(speedup=2.0), 8),  # 46 us is inside 50 us but not inside 45
        (Budget(speedup=2.6), None),
        (Budget(size_bytes=3000), 24),  # bytes are exact: no margin
        (Budget(size_bytes=2999), 16),
        (Budget(size_bytes=999), None),
        (Budget(p50_seconds=200e-6, size_bytes=1999), 8),
        (Budget(p50_seconds=39e-6, size_bytes=1 << 20), None),
    ],
    ids=str,
)
def test_the_widest_network_inside_nine_tenths_of_the_budget_is_chosen(budget: Budget, width: int | None) -> None:
    """Of all limits that are set; the floor may use the budget up; below the floor there is none."""
    chosen = LADDER.widest(budget)

    assert (chosen and chosen.units["layer0"]) == width
    assert chosen is None or within(chosen.latency, chosen.bytes, LADDER.dense.latency, budget)


def test_the_margin_is_nine_tenths() -> None:
    """As the issue says."""
    assert MARGIN == 0.9


def test_the_best_reachable_is_the_floor_with_what_else_could_help() -> None:
    """Units, times, bytes, the speedup over dense, and a lever."""
    best = LADDER.best_reachable(Budget(speedup=10, batch=16))

    assert (best.units, best.bytes) == ({"layer0": 8}, 1000)
    assert best.speedup == pytest.approx(2.5)
    assert "layer0=8" in best.hint
    assert "batch 16" in best.hint
    assert "budget" in best.hint


def test_the_next_rung_down() -> None:
    """For a child that misses the budget after all; below the floor there is none."""
    assert LADDER.below({"layer0": 24}) == LADDER.rungs[2]
    assert LADDER.below({"layer0": 8}) is None


@pytest.mark.parametrize(
    ("dense", "target", "wanted"),
    [
        (128, 128, [128]),
        (128, 100, [100]),
        (128, 64, [64]),
        (128, 63, [90, 63]),
        (128, 32, [64, 32]),
        (128, 16, [64, 32, 16]),
        (128, 8, [64, 32, 16, 8]),
        (512, 8, [181, 64, 23, 8]),  # four stages at most
    ],
)
def test_deep_cuts_are_taken_in_geometric_stages(dense: int, target: int, wanted: list[int]) -> None:
    """One shot while half the units stay, else equal ratios."""
    assert [step["layer0"] for step in stages({"layer0": dense}, {"layer0": target})] == wanted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 1.0)), min_size=1, max_size=3))
def test_stages_end_at_the_target_and_never_grow(groups) -> None:
    """For any mixture of groups, also those that keep all their units."""
    dense = {f"g{i}": width for i, (width, _) in enumerate(groups)}
    target = {f"g{i}": max(1, int(width * share)) for i, (width, share) in enumerate(groups)}

    steps = stages(dense, target)

    assert steps[-1] == target
    for upper, lower in itertools.pairwise([dense, *steps]):
        assert all(target[name] <= lower[name] <= upper[name] for name in dense)


def test_climbing_measures_every_rung_in_the_serving_runtime() -> None:
    """Bytes fall from rung to rung; the parent is the first."""
    parent = wide(32)

    ladder = climb(parent, Budget(speedup=2, batch=16))

    assert [each.units["layer1"] for each in ladder.rungs] == [32, 24, 16, 8]
    assert [each.bytes for each in ladder.rungs] == sorted((each.bytes for each in ladder.rungs), reverse=True)
    assert ladder.dense.bytes == len(step_graph(parent))
    assert all(each.latency.p50_seconds > 0 for each in ladder.rungs)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"p50_seconds": 0},
        {"p99_seconds": -1},
        {"speedup": 0.5},
        {"speedup": float("nan")},
        {"size_bytes": 0},
        {"speedup": 2, "batch": 0},
        {"speedup": 2, "batch": 70000},
    ],
    ids=str,
)
def test_impossible_budgets_are_refused(limits) -> None:
    """None at all, not positive, slower than before, no batch: an error that names the field."""
    with pytest.raises(InvalidInputError) as error:
        Budget(**limits)

    assert error.value.field.startswith("budget")


# Injected anomalies


def test_injected_anomalies_lie_where_the_labels_say() -> None:
    """From the first to the last changed point; everything else is the normal stretch."""
    rows = machine(600)
    rows[:, 0] = np.arange(600)  # tells where a stretch came from, as long as it is not disturbed
    scale = rows.std(axis=0)

    events = inject(Stretches((rows,)), scale, per_kind=12, warm_up=20, rng=np.random.default_rng(0))

    assert events.kinds == tuple(kind for kind in DISTURBANCES for _ in range(12))
    for points, labels in zip(events.points, events.labels, strict=True):
        start = int(points[0, 0])
        changed = (points != rows[start : start + len(points)]).any(axis=1)
        assert not changed[~labels].any()
        assert not labels[:20].any()
        assert labels.any()
        first, last = np.flatnonzero(labels)[[0, -1]]
        assert labels[first : last + 1].all()
        assert changed[first]
        assert changed[last]
    assert np.isfinite(events.points).all()


def test_the_same_seed_injects_the_same() -> None:
    """And another seed something else; the normal points stay as they are."""
    normal = Stretches((machine(400), machine(300, 1)))
    before = [part.copy() for part in normal.parts]
    scale = normal.rows.std(axis=0)

    first, second, other = (
        inject(normal, scale, per_kind=3, warm_up=50, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )

    assert np.array_equal(first.points, second.points)
    assert np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.points, other.points)
    assert all(np.array_equal(part, was) for part, was in zip(normal.parts, before, strict=True))


def test_sensors_that_stand_still_do_not_make_empty_events() -> None:
    """A constant sensor that hangs or runs backwards is no anomaly: another one is disturbed."""
    rows = machine(400)
    rows[:, 2:] = 5.0

    events = inject(Stretches((rows,)), rows.std(axis=0), per_kind=20, warm_up=20, rng=np.random.default_rng(0))

    assert events.labels.any(axis=1).mean() > 0.99


def test_events_come_from_stretches_with_at_least_half_of_the_points() -> None:
    """One stretch a little longer than the others is not the only one that is used."""
    lengths = (150, 152, 155, 160)
    parts = [np.full((length, 2), length, np.float32) for length in lengths]

    events = inject(
        Stretches(tuple(parts)), np.ones(2, np.float32), per_kind=9, warm_up=50, rng=np.random.default_rng(0)
    )

    assert events.points.shape[1] == 155
    assert {int(first) for first in events.points[:, 0, 0]} == {155, 160}


@pytest.mark.parametrize("length", [31, 32, 60, 150])
def test_short_stretches_still_carry_an_event(length: int) -> None:
    """Ten points beyond the warm-up are not enough, eleven are."""
    events = inject(
        Stretches((machine(length),)), np.ones(4, np.float32), per_kind=5, warm_up=20, rng=np.random.default_rng(0)
    )

    assert events.labels[:, 20:].any(axis=1).all()
    with pytest.raises(ValueError, match="long enough"):
        inject(Stretches((machine(30),)), np.ones(4, np.float32), per_kind=1, warm_up=20, rng=np.random.default_rng(0))


# The gate


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 200), st.floats(0.05, 0.9))
def test_average_precision_is_that_of_scikit_learn(seed: int, n: int, share: float) -> None:
    """Also with points drawn several times or not at all, as a bootstrap does."""
    rng = np.random.default_rng(seed)
    score, label = rng.permutation(n).astype(np.float32), rng.random(n) < share
    label[rng.integers(n)] = True
    weights = rng.poisson(1.0, n)
    ranking = Ranking(score, label)

    assert ranking.average_precision() == pytest.approx(average_precision_score(label, score))
    if (weights * label).sum():
        wanted = average_precision_score(label, score, sample_weight=weights)
        assert ranking.average_precision(weights) == pytest.approx(wanted)


def test_the_drop_of_a_child_against_its_parent() -> None:
    """None where scores are the same; close to all where the child has no idea, and the bound below it."""
    rng = np.random.default_rng(0)
    labels = rng.random((60, 40)) < 0.1
    parent = (labels + 0.1 * rng.random(labels.shape)).astype(np.float32)
    parent[:, :5] = np.nan
    child = rng.random(labels.shape).astype(np.float32)

    assert injected_drop(parent, 5 * parent, labels, rng) == (0.0, 0.0)
    drop, bound = injected_drop(parent, child, labels, rng)
    assert bound <= drop < -0.8
    better, bound = injected_drop(child, parent, labels, rng)
    assert 0.8 < bound <= better


def test_segments_by_hand() -> None:
    """Runs of alarms; those less than `GAP` apart are one; rows are events and never join."""
    alarms = np.zeros((3, 30), bool)
    alarms[0, [2, 3, 4]] = True
    alarms[0, 4 + GAP] = True  # a new one
    alarms[1, [0, GAP - 1]] = True  # one
    alarms[0, 29] = alarms[1, 0] = True

    assert segments(alarms) == [(0, 2, 4), (0, 9, 9), (0, 29, 29), (1, 0, 4)]
    assert segments(np.zeros((2, 5), bool)) == []


def test_the_cut_is_the_highest_with_enough_alarms() -> None:
    """Never above 3, never below the median; NaN of the warm-up does not count."""
    scores = np.full((10, 100), 0.1, np.float32)
    scores[:, 50] = np.arange(10) * 0.2 + 1  # one peak an event: 1.0 ... 2.8
    scores[:, :5] = np.nan

    cut = cut_for(scores, 4)

    assert len(segments(scores >= cut)) >= 4
    assert cut > 0.9
    assert cut_for(scores * 100, 1) == 3.0
    assert cut_for(scores, 10**6) == pytest.approx(0.1)


def test_trimmed_error_leaves_out_the_worst_and_the_warm_up() -> None:
    """In scaled units, before any calibration: that of a child can be held against its parent's."""
    detector, data = fitted("lstm"), Stretches((machine(300, seed=4),))
    points = torch.from_numpy(detector.scaler(data.rows))[None]
    with torch.no_grad():
        residual = detector.network(points, detector.network.fresh(1)).residual
    errors = np.sort(mean_square(residual)[0, 50:].numpy())

    assert trimmed_error(detector, data) == pytest.approx(errors[: 250 - 5].mean(), rel=1e-4)


def test_the_same_alarms_are_told_from_the_same_scale() -> None:
    """A child that ranks points as its parent does raises the same alarms; that its scale is another is said apart."""
    parent = np.random.default_rng(0).exponential(1, (60, 40)).astype(np.float32)

    same, other = (
        {check.name: check for check in _alarm_checks(parent, child, GateLimits())} for child in (parent, parent / 4)
    )

    assert (same["alarms"].value, same["alarm rate"].value) == (1.0, 1.0)
    assert other["alarms"].value == 1.0
    assert not other["alarm rate"].passed


@pytest.mark.parametrize(("points", "cut"), [(1, 9.0), (3, 7.0), (10, 0.0), (99, 0.0)])
def test_a_cut_is_reached_by_as_many_points_as_were_asked_for(points: int, cut: float) -> None:
    """Points without a score do not count; where there are fewer, by all of them."""
    assert cut_at(np.array([np.nan, *range(10)], np.float32), points) == cut


def gate(
    parent: Fitted, child: Fitted, limits: GateLimits | None = None, budget: Budget = ROOMY, latency: Latency = FAST
):
    """The gate on fresh points of the machine."""
    held_out = Stretches((machine(500, seed=3),))
    parent, child = parent.recalibrated(held_out), child.recalibrated(held_out)
    size, rng = len(step_graph(child)), np.random.default_rng(0)
    return judge(parent, child, held_out, latency, FAST, size, budget, limits or GateLimits(), rng)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_the_parent_passes_its_own_gate(kind: str) -> None:
    """Every check, with the ratio at one and no drop."""
    parent = fitted(kind, updates=TRAINED)

    verdict = gate(parent, parent)

    checks = {check.name: check for check in verdict.checks}
    assert verdict.passed
    assert verdict.reason == ""
    assert checks["error"].value == pytest.approx(1.0)
    assert checks["alarms"].value == 1.0
    assert checks["alarm rate"].value == 1.0
    assert checks["injected"].value == 0.0


def destroyed(parent: Fitted) -> Fitted:
    """The parent with weights that know nothing."""
    network = copy.deepcopy(parent.network)
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return parent.with_network(network)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_a_destroyed_child_is_rejected(kind: str) -> None:
    """By its error; and, were that limit lifted, by the anomalies it no longer sees."""
    parent = fitted(kind, updates=TRAINED)

    verdict, lifted = (
        gate(parent, destroyed(parent), limits)
        for limits in (GateLimits(), GateLimits(error_ratio=1e9, alarm_jaccard=0.0))
    )

    assert not verdict.passed
    assert "times the parent's" in verdict.reason
    assert not {check.name: check.passed for check in lifted.checks}["injected"]


def test_a_child_outside_the_budget_is_rejected() -> None:
    """Each limit that is set is checked against what was measured, and named."""
    parent = fitted("lstm", updates=TRAINED)
    budget = Budget(p50_seconds=1e-6, p99_seconds=1e-6, speedup=2, size_bytes=10, batch=16)

    verdict = gate(parent, parent, LOOSE, budget)

    assert [check.name for check in verdict.checks if not check.passed] == [
        "latency p99",
        "latency p50 at speedup 2",
        "size",
    ]
    assert "p99 is 2 us, the budget allows 1 us" in verdict.reason
    assert set(verdict.to_dict()["checks"]) >= {"latency p50", "error", "alarms", "injected"}


def test_scores_of_events_are_scores_of_the_detector() -> None:
    """From a fresh state, event by event; none while warming up."""
    detector = fitted("autoencoder", updates=TRAINED)
    events = inject(
        Stretches((machine(300),)), np.ones(4, np.float32), per_kind=1, warm_up=27, rng=np.random.default_rng(0)
    )

    scores = detector.trace(events.points).score

    wanted = np.stack([detector.scores(Stretches((points,))) for points in events.points])
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4)


# The cycle

RECENT = machine(900, seed=0)


def cycle(kind: str, budget: Budget, recent: np.ndarray = RECENT, **options):
    """A short cycle on recent points of the machine."""
    parent = fitted(kind, updates=TRAINED, width=32)
    options = {"updates": 60, "limits": GateLimits(error_ratio=5, alarm_jaccard=0.0, injected_drop=0.3)} | options
    told: list[str] = []
    candidate = run_cycle(
        parent,
        Stretches.of([recent]),
        budget,
        parent_version=1,
        version=2,
        options=CycleOptions(**options),
        progress=lambda stage, _done, _message: told.append(stage),
    )
    return parent, candidate, list(dict.fromkeys(told))


def middle(kind: str, narrow: int = 16, wide_: int = 24) -> Budget:
    """A budget in bytes that `narrow` units meet and `wide_` ones do not."""
    parent = fitted(kind, updates=TRAINED, width=32)
    groups = [group.name for group in prunable(parent.network)]
    networks = [parent.network.resized(dict.fromkeys(groups, width)) for width in (narrow, wide_)]
    return Budget(size_bytes=sum(len(step_graph(parent.with_network(each))) for each in networks) // 2, batch=16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_a_cycle_ends_with_a_smaller_detector_inside_the_budget(kind: str) -> None:
    """Adopted: fewer units and bytes, the parent untouched, kept units named, every stage told and timed."""
    budget = middle(kind)
    before = copy.deepcopy(fitted(kind, updates=TRAINED, width=32).network.state_dict())

    parent, candidate, told = cycle(kind, budget)

    outcome, child = candidate.outcome, candidate.child
    assert outcome.outcome == "adopted", outcome.reason
    assert child is not None
    assert outcome.reason == ""
    assert outcome.best_reachable is None
    assert {name: len(units) for name, units in candidate.kept.items()} == {
        group.name: 16 for group in prunable(child.network)
    }
    assert all(units == sorted(set(units)) and units[-1] < 32 for units in candidate.kept.values())
    assert outcome.child.units == child.network.units
    assert outcome.child.bytes == len(step_graph(child)) <= budget.size_bytes
    assert outcome.child.parameters < outcome.parent.parameters
    assert (outcome.parent.version, outcome.child.version) == (1, 2)
    assert candidate.updated is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.network.state_dict().items())
    assert told == ["update", "search", "prune", "fine-tune", "calibrate", "measure", "gate", "done"]
    assert set(outcome.stages) == set(told) - {"done"}
    assert outcome.to_dict()["gate"]["passed"] is True


def test_the_most_important_units_are_kept_and_named_by_their_place_in_the_parent() -> None:
    """Through two stages: indices of the second are those among the survivors of the first."""
    first = torch.rand(32, generator=torch.Generator().manual_seed(7)).topk(16).indices.sort().values
    second = torch.rand(16, generator=torch.Generator().manual_seed(7)).topk(8).indices.sort().values

    _, candidate, _ = cycle("autoencoder", middle("autoencoder", 8, 16), criterion="random", seed=7, updates=1)

    assert candidate.kept["encoder0"] == first[second].tolist()


@pytest.mark.slow
def test_a_child_is_calibrated_for_itself() -> None:
    """With its parent's statistics it would flood its users: its scores mean what they say.

    On the points it was trained on or on those held out, whichever made the larger errors; on the others fewer are.
    """
    _, candidate, _ = cycle("lstm", middle("lstm", 8, 16), updates=20)

    parts = split(fitted("lstm", updates=TRAINED, width=32), Stretches.of([RECENT]))
    assert candidate.child is not None

    def flagged(detector: Fitted) -> float:
        scores = [detector.scores(part) for part in parts]
        return max(float((each[np.isfinite(each)] > 1).mean()) for each in scores)

    assert flagged(candidate.child) == pytest.approx(0.1, abs=0.02)
    assert flagged(candidate.parent.with_network(candidate.child.network)) > 0.3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_child() -> None:
    """Measured times aside; another seed may differ."""
    (_, first, _), (_, second, _) = (cycle("lstm", middle("lstm"), seed=4) for _ in range(2))

    assert first.child is not None
    assert second.child is not None
    assert step_graph(first.child) == step_graph(second.child)
    assert first.kept == second.kept


@pytest.mark.slow
def test_a_child_that_the_gate_refuses_is_rejected_with_the_reason() -> None:
    """The candidate is there to look at; the outcome says what was wrong."""
    _, candidate, _ = cycle("lstm", middle("lstm"), updates=1, limits=GateLimits(error_ratio=0.5))

    assert candidate.outcome.outcome == "rejected"
    assert "times the parent's (limit 0.5)" in candidate.outcome.reason
    assert candidate.outcome.gate is not None
    assert candidate.outcome.child is not None


@pytest.mark.slow
def test_a_parent_is_updated_only_for_the_better() -> None:
    """On points whose level has moved the updated parent replaces the old one, which stays as it was."""
    moved = RECENT * np.float32(1.05) + np.float32([0.5, 10, 0.3, 0.3])

    parent, candidate, _ = cycle("lstm", middle("lstm"), recent=moved, update_parent=True, updates=200)

    held_out = split(parent, Stretches.of([moved]))[1]
    assert candidate.updated
    assert trimmed_error(candidate.parent, held_out) < trimmed_error(parent, held_out)


def test_a_dry_run_says_what_it_would_do() -> None:
    """The plan: widths, size and time of the child, no error of it, nothing trained."""
    parent, candidate, told = cycle("lstm", middle("lstm"), dry_run=True)

    outcome = candidate.outcome
    assert outcome.outcome == "planned"
    assert "would prune in 1 stage and fine-tune for 60 updates" in outcome.reason
    assert outcome.child.units == {"layer0": 16, "layer1": 16}
    assert outcome.child.error is None
    assert candidate.child is None
    assert "fine-tune" not in told
    assert outcome.parent.units == parent.network.units


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        (Budget(p50_seconds=1e-9, batch=16), "p50"),
        (Budget(p99_seconds=1e-9, size_bytes=100, batch=16), "size"),
        (Budget(speedup=10_000, batch=16), "speedup 10000"),
    ],
    ids=str,
)
def test_a_budget_below_the_floor_is_answered_with_the_floor(budget: Budget, named: str) -> None:
    """Rejected at once: what was missed and by how much, what can be reached, and the levers left."""
    _, candidate, told = cycle("lstm", budget)

    outcome = candidate.outcome
    assert outcome.outcome == "rejected"
    assert "below the floor" in outcome.reason
    assert named in outcome.reason
    assert "batch 16" in outcome.reason
    assert outcome.best_reachable.units == {"layer0": 8, "layer1": 8}
    assert outcome.best_reachable.p50_seconds > 0
    assert outcome.best_reachable.hint
    assert outcome.child is None
    assert candidate.child is None
    assert "prune" not in told


@pytest.mark.parametrize("rows", [0, 50, 219])
def test_too_few_recent_points_are_refused(rows: int) -> None:
    """With the number that is needed."""
    with pytest.raises(InvalidInputError, match=f"needs {2 * 50 + 120}"):
        cycle("lstm", ROOMY, recent=RECENT[:rows])


@pytest.mark.parametrize("rows", [220, 300, 900])
def test_judged_points_come_after_those_trained_on(rows: int) -> None:
    """Both sides get what they need; what is judged on overlaps training only in its warm-up."""
    parent = fitted("lstm", updates=TRAINED, width=32)
    numbered = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 4, axis=1)

    training, held_out = split(parent, Stretches((numbered,)))

    assert len(training) >= 50 + 60
    assert len(held_out) >= 50 + 60
    last_trained, first_judged = training.parts[-1][-1, 0], held_out.parts[0][parent.network.warm_up_points, 0]
    assert first_judged > last_trained
