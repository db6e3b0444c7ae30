"""What a job learns from: the trainer reads what the store says, real files and a real catalog."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import bundle_facts
from graphs import ewma_bundle

from detectors.bundle import write_bundle
from detectors.errors import InvalidInputError
from server.config import Budget, DetectorConfig
from server.jobs import cycle_job, fit_job, said_of
from server.labelled import read_labelled
from server.publish import publish_fit
from server.reservoir import STRETCH_ROWS, is_reservoir
from server.store import Store
from server.trainer import STREAMED_ROWS, _points

FEATURES = ["f1", "f2"]


@pytest.fixture
def store(tmp_path: Path):
    """A store with the fitted detector `pump`, which keeps few points and a reservoir of two stretches."""
    with Store.open(tmp_path / "store") as opened:
        history = {"max_rows": 1500, "max_age": "30d", "reservoir_rows": 2 * STRETCH_ROWS}
        opened.catalog.create_detector("pump", DetectorConfig(history=history).model_dump(mode="json"), FEATURES)
        bundle = ewma_bundle("pump")
        write_bundle(bundle, opened.bundle_folder(bundle.hash))
        publish_fit(opened, "pump", {"parent": bundle_facts(bundle)})
        yield opened


def stream(history, start: int, n: int, *, flagged=()) -> None:
    """Live points of series `a`."""
    stamps = np.arange(start, start + n)
    values = np.column_stack([stamps, stamps]).astype(np.float32)
    history.append(["a"] * n, stamps, values, np.zeros(n, np.float32), np.isin(stamps, flagged))
    history.flush()


def learned(store: Store, history, job=None) -> list[list[int]]:
    """First and last stamps of what a cycle would learn from."""
    made = job or cycle_job(store, "pump", DetectorConfig(), "hub", budget=Budget(speedup=2), history=history.paths())
    job = json.loads(json.dumps(made))  # as it reaches the trainer
    return [[int(it.stamps[0]), int(it.stamps[-1])] for it in _points(job, FEATURES, "reject")]


def test_labels_and_windows_reach_the_trainer(store: Store) -> None:
    """Both kinds of jobs leave out anomalies and maintenance, and take in what is normal after all."""
    history = store.history("pump")
    stream(history, 0, 1000, flagged=[200, 500])
    assert learned(store, history) == [[0, 174], [226, 474], [526, 999]]

    store.catalog.add_label("pump", "normal", 200, 200)
    store.catalog.add_label("pump", "anomaly", 800, 801, series="a")
    store.catalog.add_window("pump", 0, 9)
    label = store.catalog.add_label("pump", "anomaly", 900, 900, series="b")
    expected = [[10, 474], [526, 774], [827, 999]]

    assert learned(store, history) == expected
    assert label.series == "b"
    fit = fit_job(store, "pump", DetectorConfig(), FEATURES, history.paths(), version=2)
    assert learned(store, history, fit) == expected


def test_old_stretches_are_learned_from_beside_recent_ones(store: Store) -> None:
    """After the retention has let them go; no season is forgotten because another is streamed now."""
    history = store.history("pump")
    assert history.max_age == 30 * 86_400
    for start in range(0, 20_000, 1000):
        stream(history, start, 1000)

    found = learned(store, history)

    recent = [run for run in found if run[1] == 19_999]
    assert len(recent) == 1
    assert len(found) == 3
    assert all(last - first + 1 <= STRETCH_ROWS and last < 19_000 for first, last in found if last != 19_999)


def test_old_stretches_never_outweigh_what_was_imported(store: Store) -> None:
    """As many points of the reservoir as there are recent ones at most: what a person chose keeps its part."""
    history = store.history("pump")
    for start in range(0, 20_000, 1000):
        stream(history, start, 1000)
    history.add_points(np.arange(300), np.zeros((300, 2), np.float32))

    found = learned(store, history)
    old = [it for it in found if 300 <= it[1] < 18_000]

    assert any(map(is_reservoir, history.paths()))
    assert [0, 299] in found
    assert sum(last - first + 1 for first, last in old) <= STREAMED_ROWS


def test_labelled_anomalies_are_asked_about_after_their_points_went(store: Store) -> None:
    """The store tells the history of labels: the gate goes on asking, and nothing is learned from them."""
    history = store.history("pump")
    store.catalog.add_label("pump", "anomaly", 300, 310)
    for start in range(0, 20_000, 1000):
        stream(history, start, 1000)

    found = read_labelled(history.paths(), FEATURES, said_of(store, "pump"), before=50)

    assert found.points[0, 50:, 0].tolist() == list(range(300, 311))
    assert not any(first <= 310 and last >= 300 for first, last in learned(store, history))


def test_points_that_are_all_excluded_are_an_error_that_says_so(store: Store) -> None:
    """The field and what to do, not an empty fit."""
    history = store.history("pump")
    stream(history, 0, 1000)
    store.catalog.add_window("pump", 0, 5000)

    with pytest.raises(InvalidInputError, match="no complete normal points"):
        learned(store, history)


def test_a_detector_that_does_not_exist_yet_was_told_nothing(store: Store) -> None:
    """A first fit from a file has no labels."""
    job = fit_job(store, "new", DetectorConfig(), FEATURES, [], version=1)

    assert job["labels"] == job["windows"] == []
