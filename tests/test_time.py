"""Points that do not come as they should: gaps, repeated and backward stamps, missing values, and every n-th point."""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import FOUR, SMALL, machine, untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from detectors.runtime import Runtime
from detectors.scorer import Scorer
from detectors.served import Served
from detectors.stamps import StampPolicy, Status
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, Fitted
from detectors.training.stretches import Stretches
from server.cli import app

needs_data = pytest.mark.skipif("PRUNEWATCH_DATA" not in os.environ, reason="PRUNEWATCH_DATA names no folder of series")
HOLES = st.lists(st.tuples(st.integers(0, 119), st.integers(0, 3)), max_size=60)


@cache
def detector(kind: str, stride: int = 1, missing: str = "reject", half_life: float = 5.0) -> Fitted:
    """A small detector of the machine, two gradient steps old."""
    options = SMALL[kind] | ({"stride": stride} if stride > 1 else {})
    error = ErrorOptions(missing=missing, half_life=half_life)
    how = FitOptions(updates=2)
    return fit(kind, Stretches.of([machine(600)]), FOUR, seed=0, options=options, how=how, error=error)


def served(fitted: Fitted, version: int = 1) -> Served:
    """As the service loads it."""
    return Served(version, "", Runtime(step_graph(fitted)), fitted.warm_up_points)


def feed(scorer: Scorer, values: np.ndarray, stamps: np.ndarray | None = None, name: str = "a"):
    """Scores a series point after point."""
    stamps = np.arange(len(values)) if stamps is None else stamps
    return scorer.score(np.repeat(scorer.series.slots([name]), len(values)), stamps, values.astype(np.float32))


@pytest.mark.parametrize("stride", [2, 3, 5])
@pytest.mark.parametrize("kind", ["autoencoder", "conv_autoencoder"])
def test_with_a_stride_every_nth_point_is_scored(kind: str, stride: int) -> None:
    """NOT_DUE between, with no score; the scores are those of the detector at the points that are due."""
    fitted = detector(kind, stride)
    values = machine(60, seed=3)

    scored = feed(Scorer(served(fitted)), values)

    wanted = fitted.trace(values[None])
    due = (np.arange(60) + 1) % stride == 0
    warm = np.arange(60) >= fitted.warm_up_points
    np.testing.assert_array_equal(scored.status == Status.OK, due & warm)
    np.testing.assert_array_equal(scored.status == Status.NOT_DUE, ~due & warm)
    np.testing.assert_array_equal(scored.status == Status.WARMING_UP, ~warm)
    np.testing.assert_array_equal(np.isnan(scored.score), ~(due & warm))
    np.testing.assert_allclose(scored.score[due & warm], wanted.score[0, due & warm], rtol=1e-3, atol=1e-4)
    assert not scored.contribution[~(due & warm)].any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=90), st.integers(1, 17))
def test_a_stride_counts_for_each_series_by_itself(order, cut: int) -> None:
    """However series are mixed and messages cut: each gets the scores it gets alone."""
    fitted = detector("autoencoder", 3)
    values = machine(len(order), seed=4)
    scorer = Scorer(served(fitted))
    slots, clock = scorer.series.slots([str(i) for i in range(4)])[np.array(order)], np.arange(len(order))

    parts = [
        scorer.score(slots[rows], clock[rows], values[rows])
        for rows in (slice(i, i + cut) for i in range(0, len(order), cut))
    ]

    scores, statuses = (np.concatenate([getattr(part, key) for part in parts]) for key in ("score", "status"))
    for series in range(4):
        mine = np.array(order) == series
        alone = feed(Scorer(served(fitted)), values[mine], clock[mine])
        np.testing.assert_allclose(scores[mine], alone.score, rtol=1e-5)
        np.testing.assert_array_equal(statuses[mine], alone.status)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 4), st.integers(1, 4), st.integers(20, 60))
def test_versions_with_a_stride_follow_each_other(before: int, old: int, new: int, ring: int) -> None:
    """After a swap a series goes on as if the new version had seen the last points of its ring from the beginning.

    Its steps end where they would have ended: at every n-th point since the series began.
    """
    values = machine(before + 30, seed=5)
    first, second = detector("autoencoder", old), detector("autoencoder", new)
    scorer = Scorer(served(first), ring_points=ring)
    feed(scorer, values[:before])

    scorer.flip(scorer.successor(served(second, 2)))
    after = feed(scorer, values[before:], np.arange(before, before + 30))

    whole = feed(Scorer(served(second)), values)
    np.testing.assert_array_equal(after.status, whole.status[before:])
    np.testing.assert_allclose(after.score, whole.score[before:], rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(["lstm", "autoencoder", "ensemble"]), HOLES)
def test_missing_values_are_carried_as_the_detector_was_judged(kind: str, holes) -> None:
    """NaN anywhere, also at the first point: every point is taken, and scored as in calibration."""
    fitted = detector(kind, missing="carry")
    values = machine(120, seed=6)
    for at, feature in holes:
        values[at, feature] = np.nan

    scored = feed(Scorer(served(fitted)), values)

    wanted = fitted.trace(values[None])
    assert set(scored.status) == {int(Status.OK), int(Status.WARMING_UP)}
    np.testing.assert_allclose(scored.score, wanted.score[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "gru", "variational_autoencoder"])
def test_a_carried_feature_contributes_nothing(kind: str) -> None:
    """From the point where it went missing; without smoothing over time at once, in a window as it fills up."""
    fitted = detector(kind, missing="carry", half_life=0)
    values = machine(150, seed=7)
    values[100:, 2] = np.nan

    contribution = feed(Scorer(served(fitted)), values).contribution

    window = fitted.network.window or 1
    assert (contribution[60:100, 2] > 0).all()
    assert (contribution[100 + window - 1 :, 2] == 0).all()
    assert (contribution[110:].sum(axis=1) > 0).all()


def test_infinite_values_are_never_carried() -> None:
    """Only missing ones are: infinity is a fault of the source."""
    fitted = detector("lstm", missing="carry")
    values = machine(80, seed=8)
    values[70, 1], values[75, 0] = np.inf, np.nan

    status = feed(Scorer(served(fitted)), values).status

    assert status[[70, 75]].tolist() == [Status.INVALID, Status.OK]


def test_without_carrying_a_point_that_lacks_a_value_changes_nothing() -> None:
    """INVALID, and the next score is what it is without that point, bit for bit."""
    fitted = detector("lstm")
    values = machine(90, seed=8)
    broken = np.insert(values, 70, values[70], axis=0)
    broken[70, 3] = np.nan
    stamps = np.arange(90)

    with_hole = feed(Scorer(served(fitted)), broken, np.insert(stamps * 2, 70, 139))
    without = feed(Scorer(served(fitted)), values, stamps * 2)

    assert with_hole.status[70] == Status.INVALID
    np.testing.assert_array_equal(np.delete(with_hole.score, 70), without.score)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_after_a_gap_that_is_too_long_a_series_begins_anew(kind: str) -> None:
    """It warms up again, and what it scores then is what a new series scores; a gap of just the limit is none."""
    fitted, policy = detector(kind), StampPolicy(max_gap=10)
    values = machine(200, seed=9)
    stamps = np.arange(200)
    stamps[60:] += 9  # a step of 10
    stamps[120:] += 10  # a step of 11

    scored = feed(Scorer(served(fitted), policy=policy), values, stamps)

    alone = feed(Scorer(served(fitted)), values[120:])
    np.testing.assert_array_equal(scored.status[60:120], [Status.OK] * 60)
    np.testing.assert_array_equal(scored.status[120:], alone.status)
    np.testing.assert_array_equal(scored.score[120:], alone.score)


def test_a_swap_under_way_notices_that_a_series_began_anew() -> None:
    """What was replayed from before the gap is forgotten."""
    old, new, policy = detector("lstm"), detector("lstm", half_life=0), StampPolicy(max_gap=5)
    values = machine(190, seed=10)
    stamps = np.arange(190)
    stamps[100:] += 50
    scorer = Scorer(served(old), policy=policy)
    feed(scorer, values[:100], stamps[:100])
    successor = scorer.successor(served(new, 2))
    replay = successor.snapshot()
    successor.run(replay)
    feed(scorer, values[100:160], stamps[100:160])
    successor.commit(replay)

    scorer.flip(successor)
    after = feed(scorer, values[160:], stamps[160:])

    wanted = feed(Scorer(served(new)), values[100:])
    np.testing.assert_allclose(after.score, wanted.score[60:], rtol=1e-4, atol=1e-5)


@pytest.mark.promise("I3")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 12), min_size=1, max_size=120), st.integers(1, 40))
def test_replaying_any_prefix_gives_the_same_scores(steps, cut: int) -> None:
    """Late, repeated and gappy stamps are judged by what came before, however messages are cut."""
    fitted, policy = detector("autoencoder", 2, "carry"), StampPolicy(max_gap=10)
    stamps, values = np.cumsum(steps), machine(len(steps), seed=11)
    values[::7, 1] = np.nan

    whole = feed(Scorer(served(fitted), policy=policy), values, stamps)
    scorer = Scorer(served(fitted), policy=policy)
    parts = [feed(scorer, values[i : i + cut], stamps[i : i + cut]) for i in range(0, len(steps), cut)]

    np.testing.assert_array_equal(np.concatenate([part.status for part in parts]), whole.status)
    np.testing.assert_array_equal(np.concatenate([part.score for part in parts]), whole.score)


def test_training_on_rows_with_holes_keeps_runs_whole_when_values_are_carried() -> None:
    """A sensor that often lacks a value must not cut the data into pieces too short to learn from."""
    rows = machine(400)
    rows[::20, 1] = np.nan

    cut, whole = (Stretches.of([rows], missing=missing) for missing in ("reject", "carry"))
    fitted = fit("lstm", whole, FOUR, seed=0, options=SMALL["lstm"], how=FitOptions(updates=2), error=CARRY)

    assert len(cut.parts) == 20
    assert len(whole.parts) == 1
    assert np.isfinite(whole.filled().rows).all()
    assert np.isfinite(fitted.scores(whole)[fitted.warm_up_points :]).all()


CARRY = ErrorOptions(missing="carry")


def test_a_value_that_is_missing_at_the_very_beginning_is_the_mean() -> None:
    """There is nothing to carry yet."""
    fitted = untrained("lstm", 2, error=ErrorOptions(missing="carry", half_life=0))
    runtime = Runtime(step_graph(fitted))
    mean = fitted.scaler.center[None].copy()
    missing = mean.copy()
    missing[0, 1] = np.nan

    first, second = (runtime.step(values, runtime.fresh(1)) for values in (mean, missing))

    for a, b in zip(first.state, second.state, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# Real files


def nab(name: str, tmp_path: Path) -> Path:
    """A labelled series as a CSV."""
    source = Path(os.environ["PRUNEWATCH_DATA"]) / "nab" / f"{name}.csv.gz"
    path = tmp_path / "series.csv"
    path.write_bytes(gzip.decompress(source.read_bytes()))
    return path


@needs_data
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "late", "repeated", "max_gap", "anew"),
    [
        ("realKnownCause/machine_temperature_system_failure", 11, 1, "1h", 0),
        ("realAWSCloudwatch/ec2_network_in_5abac7", 0, 11, None, 0),
        ("realAdExchange/exchange-2_cpc_results", 0, 1, "6h", 1),
        ("realTraffic/speed_6005", 0, 0, "6h", 1),
        ("realTraffic/occupancy_6005", 0, 0, None, 0),
    ],
)
def test_files_with_odd_stamps_are_fitted_and_scored(
    name: str, late: int, repeated: int, max_gap: str | None, anew: int, tmp_path: Path
) -> None:
    """Rows that go back or repeat have no score, gaps begin anew where that was asked for, all others are scored."""
    path = nab(name, tmp_path)
    config = tmp_path / "config.yaml"
    gap = f", max_gap: {max_gap}" if max_gap else ""
    config.write_text(f"detectors: {{series: {{network: autoencoder, options: {{window: 10, width: 16}}{gap}}}}}\n")
    store = ("--store", str(tmp_path / "store"))
    run = CliRunner()

    fitting = run.invoke(app, ["fit", "series", "--data", str(path), "--config", str(config), *store])
    out = tmp_path / "scores.csv"
    scoring = run.invoke(app, ["score", "series", "--data", str(path), "--out", str(out), *store])

    assert fitting.exit_code == 0, fitting.output
    assert scoring.exit_code == 0, scoring.output
    assert ("rows left out" in fitting.output) == bool(late + repeated)
    rows = out.read_text().splitlines()[1:]
    unscored = sum(row.split(",")[1] == "" for row in rows)
    assert len(rows) == len(path.read_text().splitlines()) - 1
    assert unscored == late + repeated + 9 * (1 + anew)


torch.set_num_threads(1)
