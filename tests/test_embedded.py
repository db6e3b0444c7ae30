"""A detector inside somebody's program: what it takes, refuses and remembers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import ewma_bundle, ewma_scores

from detectors.archive import pack_bundle
from detectors.bundle import write_bundle
from detectors.embedded import Detector
from detectors.errors import CorruptBundleError, ExhaustedError, InvalidInputError, NotFoundError
from detectors.stamps import StampPolicy, Status

POINTS = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)


@pytest.fixture
def pump() -> Detector:
    """Two features, three points of warm-up; one point in ten may be flagged."""
    return Detector(ewma_bundle("pump"), false_alarm_rate=0.1)


def test_it_scores_series_apart_and_says_what_is_an_anomaly(pump: Detector) -> None:
    """Points of series that take turns get what each would get alone; scores from the threshold on are anomalies."""
    turns = np.repeat(POINTS, 2, axis=0)

    scores = pump.score(turns, ["a", "b"] * len(POINTS))

    np.testing.assert_allclose(scores.score[::2], ewma_scores(POINTS), rtol=1e-6)
    np.testing.assert_array_equal(scores.score[::2], scores.score[1::2])
    assert scores.threshold == 1.0
    np.testing.assert_array_equal(scores.anomalies, np.flatnonzero(scores.score >= 1.0))
    assert len(scores.anomalies)
    assert pump.features == ["f1", "f2"]


def test_points_without_stamps_are_numbered(pump: Detector) -> None:
    """One at a time or many at once: each comes after the one before, also after a stamp that was given."""
    whole = Detector(ewma_bundle("pump")).score(POINTS)

    pump.score(POINTS[:2])
    third = pump.score(POINTS[2], stamps=[700])
    rest = pump.score(POINTS[3:])

    np.testing.assert_array_equal(np.r_[third.score, rest.score], whole.score[2:])
    assert pump.score(POINTS[0], stamps=[704]).status.tolist() == [Status.LATE]


def test_stamps_and_numbers_are_judged(pump: Detector) -> None:
    """What is late, repeated or no number is not scored and changes nothing."""
    given = np.array([[0, 0], [1, 1], [np.nan, 0], [2, 2]], np.float32)

    scores = pump.score(given, "a", stamps=[5, 5, 6, 4])

    assert scores.status.tolist() == [Status.WARMING_UP, Status.DUPLICATE, Status.INVALID, Status.LATE]
    assert np.isnan(scores.score).all()
    assert pump.score(given[0], "a", stamps=[6]).status.tolist() == [Status.WARMING_UP]


def test_the_policy_of_stamps_can_be_chosen() -> None:
    """Sources that repeat stamps are scored when asked for."""
    pump = Detector(ewma_bundle("pump"), policy=StampPolicy(duplicate="score"))

    assert pump.score(POINTS[:2], stamps=[5, 5]).status.tolist() == [Status.WARMING_UP] * 2


def test_no_points_are_fine(pump: Detector) -> None:
    """Nothing in, nothing out."""
    assert not len(pump.score(np.empty((0, 2))).score)


@pytest.mark.parametrize(
    ("values", "series", "stamps", "field"),
    [
        ([[1, 2, 3]], "a", None, "values"),
        ([["x", "y"]], "a", None, "values"),
        ([[1, 2], [3]], "a", None, "values"),
        (np.zeros((1, 1, 2)), "a", None, "values"),
        ([[1, 2]], ["a", "b"], None, "series"),
        ([[1, 2]], "a", [1, 2], "stamps"),
        ([[1, 2]], "a", [0.5], "stamps"),
    ],
)
def test_what_does_not_fit_is_refused(pump: Detector, values, series, stamps, field: str) -> None:
    """The error names the argument, and no series has begun."""
    with pytest.raises(InvalidInputError) as caught:
        pump.score(values, series, stamps)

    assert caught.value.field == field
    assert caught.value.hint
    assert pump.score(POINTS[:3], "a").status.tolist() == [Status.WARMING_UP] * 3


def test_rates_and_numbers_of_series_have_limits() -> None:
    """A rate lies between 0 and 1; more series than allowed are refused."""
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        Detector(ewma_bundle("pump"), false_alarm_rate=1.0)
    with pytest.raises(ExhaustedError):
        Detector(ewma_bundle("pump"), max_series=1).score(POINTS[:2], ["a", "b"])


def test_it_loads_what_was_exported_and_nothing_damaged(tmp_path: Path) -> None:
    """The tar file and the folder give the same detector; a flipped bit and a missing file are refused."""
    bundle = ewma_bundle("pump")
    write_bundle(bundle, tmp_path / "folder")
    pack_bundle(tmp_path / "folder", bundle.hash, tmp_path / "pump.tar")
    damaged = bytearray((tmp_path / "pump.tar").read_bytes())
    damaged[damaged.index(bundle.graph[:64]) + 200] ^= 1
    (tmp_path / "damaged.tar").write_bytes(damaged)

    for path in ("folder", "pump.tar"):
        np.testing.assert_array_equal(
            Detector.load(tmp_path / path).score(POINTS).score, Detector(bundle).score(POINTS).score
        )
    with pytest.raises(CorruptBundleError):
        Detector.load(str(tmp_path / "damaged.tar"))
    with pytest.raises(NotFoundError):
        Detector.load(tmp_path / "nothing.tar")


def test_it_imports_no_transport_and_no_training_framework() -> None:
    """A program that embeds a detector pays for numpy, pydantic and ONNX Runtime alone."""
    unwanted = ["grpc", "google", "prometheus_client", "torch", "pandas", "onnx", "typer", "server"]
    program = f"import sys, detectors.embedded; print([it for it in {unwanted!r} if it in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
