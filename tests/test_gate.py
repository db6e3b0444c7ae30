"""The gate: what may never be adopted, judged without labels on anomalies that were injected."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fits import fitted, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from detectors.training.export import step_graph
from detectors.training.fitted import Fitted, mean_square
from detectors.training.stretches import Stretches
from pruning.gate import (
    GAP,
    TAIL,
    GateLimits,
    Ranking,
    _alarm_checks,
    cut_at,
    cut_for,
    injected,
    injected_drop,
    judge,
    segments,
    tail_agreement,
    trimmed_error,
)
from pruning.injection import KINDS as DISTURBANCES
from pruning.injection import inject
from pruning.outcome import Budget, Latency
from pruning.surgery import remove

TRAINED = 150  # updates: enough for units to matter differently
FAST = Latency(1e-6, 2e-6, 16)
ROOMY = Budget(size_bytes=1 << 30, batch=16)
LOOSE = GateLimits(error_ratio=1e9, alarm_jaccard=0.0, tail_agreement=-1.0, injected_drop=1.0)
NAMES = ["latency p50", "latency p99", "size", "error", "alarms", "alarm rate", "tail", "injected"]


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


def test_detectors_that_score_seldom_are_asked_about_longer_events() -> None:
    """Four times as long at most, and as far as the stretches go; a stride of one changes nothing."""
    normal, scale = Stretches((machine(2000),)), np.ones(4, np.float32)

    def events(stride: int, rows: Stretches = normal):
        return inject(rows, scale, per_kind=9, warm_up=20, rng=np.random.default_rng(0), stride=stride)

    once = events(1)
    lasting = [events(stride).points.shape[1] - 20 for stride in (1, 2, 4, 9)]
    assert lasting == [128, 256, 512, 512]
    assert events(9, Stretches((machine(300),))).points.shape[1] == 20 + 2 * 128
    longest = {stride: events(stride).labels.sum(axis=1).max() for stride in (1, 4)}
    assert longest[1] <= 48 < longest[4] <= 4 * 48 + 3
    assert np.array_equal(
        once.points, inject(normal, scale, per_kind=9, warm_up=20, rng=np.random.default_rng(0)).points
    )


def test_a_child_that_misses_what_lies_between_the_points_it_scores_does_not_gain() -> None:
    """A score is about all points since the one before: the parent that sees them is right."""
    rows = machine(3000)
    rows[:, 0] = np.arange(3000)  # tells where a stretch came from; the features that are looked at are others
    rng = np.random.default_rng(0)
    events = inject(Stretches((rows,)), rows.std(axis=0), per_kind=40, warm_up=20, rng=rng, stride=5)
    spikes = events.points[[kind == "spike" for kind in events.kinds]]
    labels = events.labels[[kind == "spike" for kind in events.kinds]]
    starts = np.median(spikes[:, :, 0] - np.arange(spikes.shape[1]), axis=1).astype(int)
    normal = np.stack([rows[start : start + spikes.shape[1]] for start in starts])
    changed = (spikes != normal).any(axis=2)
    last = changed.shape[1] // 5 * 5
    since = changed[:, :last].reshape(len(changed), -1, 5)
    parent, child = (np.full(changed.shape, np.nan, np.float32) for _ in range(2))
    noise = rng.random((len(changed), since.shape[1]))
    parent[:, 4:last:5] = since.any(axis=2) + noise * 0.5
    child[:, 4:last:5] = since[:, :, 4] + noise * 0.5

    drop, bound = injected_drop(parent, child, labels, rng)

    assert bound <= drop < -0.2


def test_what_detectors_are_asked_about_fits_their_stride() -> None:
    """Each spike is in the label of a point that both score, however short it is."""
    detectors = [untrained("autoencoder", 4, stride=stride) for stride in (4, 8)]

    events = injected(detectors, Stretches((machine(1500),)), np.random.default_rng(0))

    spikes = events.labels[[kind == "spike" for kind in events.kinds]]
    assert spikes[:, 7::8].any(axis=1).mean() > 0.9


def test_alarms_of_neighbouring_scores_are_one_segment_whatever_the_stride() -> None:
    """The gap is counted in points that have a score."""
    parent = np.full((4, 300), np.nan, np.float32)
    parent[:, 9::10] = np.random.default_rng(0).random((4, 30))
    child = np.full_like(parent, np.nan)
    child[:, 19::10] = parent[:, 9:-10:10]  # one score later

    seldom, often = (_alarm_checks(parent, child, GateLimits(), gap)[0].value for gap in (GAP * 10, GAP))

    assert seldom > 0.8
    assert often < seldom


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
    assert checks["tail"].value == pytest.approx(1.0)
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
        for limits in (GateLimits(), GateLimits(error_ratio=1e9, alarm_jaccard=0.0, tail_agreement=-1.0))
    )

    assert not verdict.passed
    assert "times the parent's" in verdict.reason
    assert not {check.name: check.passed for check in lifted.checks}["injected"]
    assert verdict.checks[-2].value < 0.8  # of the tail


def test_a_child_outside_the_budget_is_rejected() -> None:
    """Each limit that is set is checked against what was measured, and named."""
    parent = fitted("lstm", updates=TRAINED)
    budget = Budget(p50_seconds=1e-6, p99_seconds=1e-6, speedup=2, size_bytes=10, batch=16)

    verdict = gate(parent, parent, LOOSE, budget)

    assert [check.name for check in verdict.checks if not check.passed] == [
        "latency p99",
        "latency p50 (asked: 2 times as fast as the parent)",
        "size",
    ]
    assert "p99 is 2 us, the budget allows 1 us" in verdict.reason
    assert set(verdict.to_dict()["checks"]) >= {"latency p50", "error", "alarms", "tail", "injected"}


def test_scores_of_events_are_scores_of_the_detector() -> None:
    """From a fresh state, event by event; none while warming up."""
    detector = fitted("autoencoder", updates=TRAINED)
    events = inject(
        Stretches((machine(300),)), np.ones(4, np.float32), per_kind=1, warm_up=27, rng=np.random.default_rng(0)
    )

    scores = detector.trace(events.points).score

    wanted = np.stack([detector.scores(Stretches((points,))) for points in events.points])
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4)


def scores(seed: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Of a parent and of a child that knows a part of what it says, [40, 60], not all of them there."""
    rng = np.random.default_rng(seed)
    parent, other = rng.exponential(1, (2, 40, 60))
    child = correlation * parent + (1 - correlation) * other
    parent[:, :7], child[:, :9] = np.nan, np.nan
    return parent.astype(np.float32), child.astype(np.float32)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7, 1.0])
def test_the_tails_agree_as_ranks_correlate(correlation: float) -> None:
    """Spearman's, over the tenth of the points that the parent scores highest; those without a score do not count."""
    parent, child = scores(1, correlation)
    both = np.isfinite(parent) & np.isfinite(child)
    highest = np.argsort(-parent[both])[: int(np.ceil(both.sum() * TAIL))]

    wanted = spearmanr(parent[both][highest], child[both][highest]).statistic

    assert tail_agreement(parent, child) == pytest.approx(wanted, abs=1e-6)
    assert (wanted > 0.8) == (correlation > 0.5)


@pytest.mark.parametrize("parent", [[], [3.0], [1.0, 2.0], [2.0] * 30, [np.nan]])
def test_where_there_is_no_order_the_tails_agree(parent: list[float]) -> None:
    """No points, one or two in the tail, or all alike: 1 instead of no number."""
    theirs = np.array([parent], np.float32)

    assert tail_agreement(theirs, np.arange(len(parent), dtype=np.float32)[None]) == 1.0


def test_only_the_tail_is_compared() -> None:
    """Normal points may swap places: a child that differs there alone agrees, one that differs above does not."""
    parent, _ = scores(1, 1.0)
    tail = parent >= np.nanquantile(parent, 1 - TAIL)
    below, above = parent.copy(), parent.copy()
    below[~tail] = parent[~tail][::-1]
    above[tail] = parent[tail][::-1]

    assert tail_agreement(parent, np.where(tail, parent, below)) == pytest.approx(1.0)
    assert tail_agreement(parent, above) < 0.5


def test_each_limit_is_a_threshold_of_its_check() -> None:
    """A child that passes when it is loosely judged fails every check whose limit nothing can meet, and only those."""
    parent = fitted("lstm", updates=TRAINED)
    child = parent.with_network(remove(parent.network, {"layer0": torch.arange(10), "layer1": torch.arange(10)}))
    never = GateLimits(error_ratio=0.0, alarm_jaccard=1.1, tail_agreement=1.1, injected_drop=-1.1)

    loose, strict = gate(parent, child, LOOSE), gate(parent, child, never)

    by_limits = {"error": 0.0, "alarms": 1.1, "tail": 1.1, "injected": 1.1}
    assert not by_limits.keys() & {check.name for check in loose.checks if not check.passed}
    for before, after in zip(loose.checks, strict.checks, strict=True):
        assert after.value == before.value
        assert after.passed == (before.passed and after.name not in by_limits)
        assert after.passed or after.detail in strict.reason
    assert {check.name: check.limit for check in strict.checks if check.name in by_limits} == by_limits


def test_the_limits_that_are_not_given() -> None:
    """Those that the configuration documents."""
    assert GateLimits() == GateLimits(error_ratio=1.5, alarm_jaccard=0.6, tail_agreement=0.3, injected_drop=0.02)


def test_what_is_checked_and_in_which_order() -> None:
    """Limits of the budget that are set, then quality; each check holds its value and limit, and says both."""
    parent = fitted("autoencoder", updates=TRAINED)
    budget = Budget(p50_seconds=1.0, p99_seconds=1.0, size_bytes=1 << 30, batch=16)

    verdict = gate(parent, parent, budget=budget)

    assert [check.name for check in verdict.checks] == NAMES
    assert all(check.detail for check in verdict.checks)
    assert verdict.to_dict()["checks"]["tail"].keys() == {"value", "limit", "passed", "detail"}
