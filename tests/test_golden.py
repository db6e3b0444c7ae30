"""Golden sets in a store: written by the real trainer at a fit, asked by every cycle after it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import FOUR, machine

from detectors.errors import PreconditionError
from detectors.training.fit import silent
from detectors.training.fitted import Fitted, load
from server.config import Budget, DetectorConfig
from server.golden import golden_path, read_golden
from server.jobs import fit_job, round_job, served_parent
from server.layout import BUNDLES
from server.publish import publish_fit, publish_round
from server.store import Store
from server.trainer import run_job

NAME = "pump"
TINY: dict[str, Any] = {"network": "autoencoder", "options": {"window": 8, "width": 12, "bottleneck": 3}}
ANYTHING = {"golden_quality": 0.0, "movement": 1e9}
NOTHING = {"golden_quality": 0.0, "movement": 1e-9}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store whose detector was fitted to 600 points and has seen 600 others at another level since."""
    with Store.open(tmp_path / "store") as opened:
        config = DetectorConfig(**TINY)
        opened.catalog.create_detector(NAME, config.model_dump(mode="json"), list(FOUR))
        history = opened.history(NAME)
        history.add_points(np.arange(600), machine(600))
        job = fit_job(opened, NAME, config, FOUR, history.paths(), version=1)
        publish_fit(opened, NAME, ran(job))
        moved = machine(600, seed=4) * np.float32(1.05) + np.float32([0.5, 10, 0.3, 0.3])
        history.append(["a"] * 600, np.arange(600, 1200), moved, np.zeros(600, np.float32), np.zeros(600, bool))
        history.flush()
        yield opened


def ran(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a job as the service gets it."""
    result: dict[str, Any] = run_job(json.loads(json.dumps(job)), silent)
    return result


def cycled(store: Store, parent_gate: Mapping[str, float]) -> dict[str, Any]:
    """A cycle of a class without a budget: its parent is updated."""
    config = DetectorConfig(**TINY, parent_gate=parent_gate)
    return ran(round_job(store, NAME, config, {"hub": Budget()}, history=store.history(NAME).paths()))


def parent_of(store: Store, bundle_hash: str) -> Fitted:
    """A published parent."""
    return load(store.read_bundle(bundle_hash, weights=True).files["weights.safetensors"])


def bundles(store: Store) -> set[str]:
    """Hashes of the bundles on disk."""
    return {path.name for path in (store.root / BUNDLES).iterdir()}


def test_a_fit_keeps_what_its_parent_can(store: Store) -> None:
    """The parent to the bit, and points of its own; a bundle without one has none."""
    fitted = served_parent(store, NAME)
    assert fitted is not None

    golden = read_golden(store.root, NAME, fitted)

    assert golden is not None
    assert golden.follows
    rows = machine(600)
    assert np.array_equal(golden.points.rows[-1], rows[-1])
    assert np.array_equal(golden.first.scores(golden.points), parent_of(store, fitted).scores(golden.points), True)
    assert read_golden(store.root, NAME, "0" * 64) is None


@pytest.mark.slow
def test_a_parent_that_follows_has_the_golden_set_of_the_first_one(store: Store) -> None:
    """However often it is updated; its bundle says what the gate measured."""
    first = served_parent(store, NAME)
    assert first is not None

    result = cycled(store, ANYTHING)
    publish_round(store, NAME, result, {})

    heir = served_parent(store, NAME)
    assert heir == result["parent"]["hash"] != first
    assert golden_path(store.root, NAME, heir).read_bytes() == golden_path(store.root, NAME, first).read_bytes()
    gate = store.read_bundle(heir).manifest.gate
    assert gate is not None
    assert {"golden quality", "movement"} <= gate["checks"].keys()
    assert gate["checks"]["movement"]["value"] > 0


@pytest.mark.slow
@pytest.mark.promise("I5")
def test_a_cycle_whose_parent_moved_too_far_changes_nothing(store: Store) -> None:
    """It is rejected with the reason: no bundle, no child, no version."""
    before, version = bundles(store), store.catalog.next_version(NAME)

    result = cycled(store, NOTHING)

    assert (result["outcome"], result["children"], result["updated"]) == ("rejected", [], False)
    assert result["reason"].startswith("the updated parent: on the golden set it is ")
    assert result["parent_gate"]["passed"] is False
    assert publish_round(store, NAME, result, {}) is None
    assert bundles(store) == before
    assert store.catalog.next_version(NAME) == version


@pytest.mark.slow
def test_a_store_of_an_older_version_gets_its_golden_set_with_the_next_cycle(store: Store) -> None:
    """Of the points that came from files: what streams in since does not decide what is golden."""
    fitted = served_parent(store, NAME)
    assert fitted is not None
    golden_path(store.root, NAME, fitted).unlink()

    result = cycled(store, NOTHING)

    golden = read_golden(store.root, NAME, fitted)
    assert golden is not None
    assert np.array_equal(golden.points.rows[-1], machine(600)[-1])
    assert result["outcome"] == "rejected"


@pytest.mark.slow
@pytest.mark.promise("I5")
def test_a_fit_that_nobody_asked_for_must_find_what_the_first_one_found(store: Store) -> None:
    """One that learned nothing is refused and leaves no bundle; a sound one goes on with the golden set."""
    first = served_parent(store, NAME)
    assert first is not None
    before, paths = bundles(store), store.history(NAME).paths()
    blind = DetectorConfig(**TINY, learning_rate=1e-9, parent_gate={"golden_quality": 0.95})

    with pytest.raises(PreconditionError, match="the new parent is not published: average precision on the golden set"):
        ran(fit_job(store, NAME, blind, FOUR, paths, version=2, first=first))
    assert bundles(store) == before
    asked = DetectorConfig(**TINY, parent_gate={"golden_quality": 0.5})
    result = ran(fit_job(store, NAME, asked, FOUR, paths, version=2, first=first))

    golden, original = (read_golden(store.root, NAME, key) for key in (result["parent"]["hash"], first))
    assert golden is not None
    assert original is not None
    assert not golden.follows
    assert np.array_equal(golden.points.rows, original.points.rows)


def test_a_damaged_golden_set_is_an_error_that_says_what_to_do(store: Store) -> None:
    """Whoever could damage it must not get a new one that suits them."""
    fitted = served_parent(store, NAME)
    assert fitted is not None
    path = golden_path(store.root, NAME, fitted)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(PreconditionError, match="is damaged") as caught:
        read_golden(store.root, NAME, fitted)

    assert "Fit the detector again" in (caught.value.hint or "")
