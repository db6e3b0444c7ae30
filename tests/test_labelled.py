"""Labelled anomalies: read with the points before them, and asked of a candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fits import fitted, machine
from test_gate import FAST, LOOSE, ROOMY, destroyed

from detectors.training.export import step_graph
from detectors.training.stretches import Stretches
from pruning.gate import GateLimits, Labelled, judge
from pruning.injection import Events
from pruning.update import updated
from server.history import History
from server.labelled import LONGEST, MOST_EVENTS, read_labelled
from server.spans import Said, Span

FEATURES = ["flow", "pressure"]
BEFORE = 20


def anomalies(*spans: tuple[str, int, int]) -> Said:
    """Labels."""
    return Said(labels=tuple((Span(*span), "anomaly") for span in spans))


def kept(folder: Path, n: int = 400, series: str = "a") -> History:
    """A history of points whose first value is their stamp."""
    history = History(folder, FEATURES)
    stamps = np.arange(n)
    values = np.column_stack([stamps, -stamps]).astype(np.float32)
    history.append([series] * n, stamps, values, np.zeros(n, np.float32), np.zeros(n, np.bool_))
    history.flush()
    return history


def test_an_anomaly_comes_with_the_points_before_it(tmp_path: Path) -> None:
    """All stretches end with their anomaly and are as long as the longest needs; shorter ones have more before."""
    history = kept(tmp_path)

    found = read_labelled(history.paths(), FEATURES, anomalies(("", 50, 59), ("a", 300, 302)), before=BEFORE)

    assert found.points.shape == (2, BEFORE + 10, 2)
    assert found.points[:, :, 0].tolist() == [list(range(30, 60)), list(range(273, 303))]
    assert [labels.nonzero()[0].tolist() for labels in found.labels] == [list(range(20, 30)), [27, 28, 29]]


def test_what_can_not_be_asked_about_is_left_out(tmp_path: Path) -> None:
    """Too few points before, another series, points that are gone, a window, a second look."""
    history = kept(tmp_path)
    said = anomalies(("", 5, 9), ("b", 100, 110), ("", 1000, 1010), ("", 150, 160), ("", 200, 210))
    normal = (Span("a", 200, 210), "normal")

    assert read_labelled(history.paths(), FEATURES, Said(), before=BEFORE) is None
    assert (
        read_labelled(
            history.paths(),
            FEATURES,
            Said(labels=(*said.labels, normal), windows=(Span("", 140, 170),)),
            before=BEFORE,
        )
        is None
    )
    found = read_labelled(history.paths(), FEATURES, said, before=BEFORE)
    assert found.points[:, -1, 0].tolist() == [160, 210]


def test_no_anomaly_reaches_over_a_gap(tmp_path: Path) -> None:
    """Where a series was silent or lacks a value, points before that are no context."""
    history = History(tmp_path, FEATURES)
    stamps = np.r_[np.arange(100), np.arange(1000, 1100), np.arange(1200, 1300)]
    values = np.zeros((300, 2), np.float32)
    values[280, 1] = np.nan
    history.add_points(stamps, values)
    said = anomalies(("", 90, 1005), ("", 1050, 1055), ("", 1285, 1290))

    found = read_labelled(history.paths(), FEATURES, said, before=BEFORE, max_gap=50)
    carrying = read_labelled(history.paths(), FEATURES, said, before=BEFORE, max_gap=50, keep_missing=True)

    assert found.labels.sum(axis=1).tolist() == [10, 6]
    assert carrying.labels.sum(axis=1).tolist() == [10, 6, 6]


def test_long_and_many_anomalies_are_bounded(tmp_path: Path) -> None:
    """Of a long one its beginning, of many the newest."""
    history = kept(tmp_path, 3000)
    one = read_labelled(history.paths(), FEATURES, anomalies(("", 1000, 2500)), before=BEFORE)
    many = read_labelled(
        history.paths(), FEATURES, anomalies(*(("", at, at) for at in range(100, 2900, 10))), before=BEFORE
    )

    assert one.labels.sum() == LONGEST
    assert one.points[0, BEFORE, 0] == 1000
    assert len(many.points) == MOST_EVENTS
    assert many.points[-1, -1, 0] == 2890


# the gate


def incidents(strength: float, n: int = 8) -> Labelled:
    """Stretches of the machine that end with a level shift."""
    points = np.stack([machine(160, seed=100 + i) for i in range(n)])
    labels = np.zeros((n, 160), np.bool_)
    labels[:, 140:] = True
    points[:, 140:] += strength * np.array([1, -1, 1, -1], np.float32)
    return Labelled(Events(points.astype(np.float32), labels, ("labelled",) * n), threshold=3.0)


def labelled_check(parent, child, events: Labelled | None, limits: GateLimits = LOOSE):
    """What the gate says of labelled anomalies; None where it does not ask."""
    held_out = Stretches((machine(500, seed=3),))
    parent, child = parent.recalibrated(held_out), child.recalibrated(held_out)
    size, rng = len(step_graph(child)), np.random.default_rng(0)
    gate = judge(parent, child, held_out, FAST, FAST, size, ROOMY, limits, rng, events)
    return next((check for check in gate.checks if check.name == "labelled"), None), gate


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_a_child_that_misses_what_its_parent_finds_is_rejected(kind: str) -> None:
    """By the labelled anomalies alone, where all other limits are lifted."""
    parent = fitted(kind, updates=150)

    same, whole = labelled_check(parent, parent, incidents(0.5))
    worse, lame = labelled_check(parent, destroyed(parent), incidents(0.5))

    assert same.passed
    assert same.value == 1.0
    assert "labelled anomalies that the parent finds" in same.detail
    assert not worse.passed
    assert worse.value < 0.9
    assert worse.detail in lame.reason
    assert worse.detail not in whole.reason
    lifted, _ = labelled_check(parent, destroyed(parent), incidents(0.5), GateLimits(labelled_recall=0.0))
    assert lifted.passed


def test_an_updated_parent_is_asked_too() -> None:
    """Where it was trained on: what the old one finds, both calibrated on the same points, the new one has to find."""
    parent = fitted("lstm", updates=150)
    training, held_out = Stretches((machine(2000, seed=11),)), Stretches((machine(800, seed=7),))

    faithful, refused, unchanged = (
        updated(parent, points, held_out, updates=updates, labelled=incidents(0.5), limits=limits)
        for points, updates, limits in (
            (training, 300, GateLimits()),
            (training, 300, GateLimits(labelled_recall=1.1)),  # what nobody can do
            (held_out, 1, GateLimits(labelled_recall=1.1)),
        )
    )

    assert faithful.changed
    assert [check.name for check in faithful.gate.checks] == ["labelled"]
    assert not faithful.refused
    assert refused.refused
    assert "labelled anomalies" in refused.gate.reason
    assert not unchanged.changed
    assert unchanged.gate is None


def test_few_labels_say_nothing() -> None:
    """No labels, too few, or none that the parent finds: the check is not made."""
    parent = fitted("lstm", updates=150)

    assert labelled_check(parent, destroyed(parent), None)[0] is None
    assert labelled_check(parent, destroyed(parent), incidents(0.5, n=2))[0] is None
    assert labelled_check(parent, destroyed(parent), incidents(0.0))[0] is None
    unreachable = replace(incidents(0.5), threshold=50.0)
    assert labelled_check(parent, destroyed(parent), unreachable)[0] is None
