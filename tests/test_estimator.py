"""The estimator: what PyOD's own tests ask of every model, what scikit-learn asks of parameters, and what is ours."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fits import FOUR, machine
from numpy.typing import NDArray
from pyod.models.base import BaseDetector
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils import estimator_checks

import detectors.training.estimator
import pruning
from detectors.bundle import read_bundle, write_bundle
from detectors.errors import InvalidInputError
from detectors.runtime import Runtime
from detectors.training.estimator import PrunewatchDetector
from detectors.training.fitted import load

SMALL = {"options": {"layers": 1, "width": 16}, "updates": 120}
TRAIN, TEST = 900, 500
CONTAMINATION = 0.05


def labelled(points: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The machine with a sensor that leaves its course now and then, and where it does."""
    rng = np.random.default_rng(seed)
    rows, labels = machine(points, seed=seed), np.zeros(points, int)
    for start in range(100, points - 12, 100):
        sensor, length = rng.integers(4), rng.integers(4, 9)
        rows[start : start + length, sensor] += 4 * rows[:, sensor].std() * rng.choice([-1, 1])
        labels[start : start + length] = 1
    return rows, labels


X_TRAIN, Y_TRAIN = labelled(TRAIN, 1)
X_TEST, Y_TEST = labelled(TEST, 2)


def detector(**parameters) -> PrunewatchDetector:
    """A small one."""
    return PrunewatchDetector(**{**SMALL, "contamination": CONTAMINATION, **parameters})


@pytest.fixture(scope="module")
def fitted() -> PrunewatchDetector:
    """Fitted once; shared: no test may change it."""
    return detector().fit(X_TRAIN)


# What PyOD asks


def test_it_is_a_pyod_detector_with_all_fitted_attributes(fitted: PrunewatchDetector) -> None:
    """Combinations and thresholds of PyOD read these, two private ones included."""
    assert isinstance(fitted, BaseDetector)
    for name in ("decision_scores_", "labels_", "threshold_", "_mu", "_sigma", "_classes", "n_features_in_"):
        assert getattr(fitted, name) is not None
    assert fitted.n_features_in_ == 4


def test_training_scores_threshold_and_labels_agree(fitted: PrunewatchDetector) -> None:
    """One score a row; labels are what exceeds the threshold; `contamination` is their share of the scored rows."""
    warm = fitted.fitted_.warm_up_points

    assert fitted.decision_scores_.shape == fitted.labels_.shape == (TRAIN,)
    assert fitted.threshold_ == pytest.approx(np.percentile(fitted.decision_scores_[warm:], 95))
    assert np.array_equal(fitted.labels_, fitted.decision_scores_ > fitted.threshold_)
    assert fitted.labels_[warm:].mean() == pytest.approx(CONTAMINATION, abs=2 / TRAIN)
    assert roc_auc_score(Y_TRAIN[warm:], fitted.decision_scores_[warm:]) > 0.9


def test_anomalies_of_new_rows_score_higher(fitted: PrunewatchDetector) -> None:
    """Higher is more abnormal, one finite score a row."""
    scores = fitted.decision_function(X_TEST)

    assert scores.shape == (TEST,)
    assert np.isfinite(scores).all()
    assert roc_auc_score(Y_TEST, scores) > 0.85


def test_rows_of_the_warm_up_are_filled_as_pyod_does(fitted: PrunewatchDetector) -> None:
    """They sit at the threshold and are no anomalies, in training and in new rows, also where there is nothing else."""
    warm = fitted.fitted_.warm_up_points

    assert (fitted.decision_scores_[:warm] == fitted.threshold_).all()
    assert (fitted.decision_function(X_TEST)[:warm] == fitted.threshold_).all()
    assert (fitted.decision_function(X_TEST[: warm - 3]) == fitted.threshold_).all()
    assert not fitted.predict(X_TEST[: warm - 3]).any()


def test_labels_are_scores_above_the_threshold(fitted: PrunewatchDetector) -> None:
    """0 and 1."""
    labels = fitted.predict(X_TEST)

    assert np.array_equal(labels, (fitted.decision_function(X_TEST) > fitted.threshold_).astype(int))
    assert set(labels) == {0, 1}


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities(fitted: PrunewatchDetector, method: str) -> None:
    """[N, 2], each row sums to 1, rising with the score; with confidences beside them if asked."""
    probabilities, confidence = fitted.predict_proba(X_TEST, method=method, return_confidence=True)
    order = np.argsort(fitted.decision_function(X_TEST))

    assert probabilities.shape == (TEST, 2)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (np.diff(probabilities[order, 1]) >= 0).all()
    assert confidence.shape == (TEST,)
    assert np.array_equal(fitted.predict_proba(X_TEST, method=method), probabilities)


def test_an_unknown_kind_of_probability_is_refused(fitted: PrunewatchDetector) -> None:
    """As everywhere in PyOD."""
    with pytest.raises(ValueError, match="not a valid probability conversion method"):
        fitted.predict_proba(X_TEST, method="something")


def test_confidence(fitted: PrunewatchDetector) -> None:
    """Between 0 and 1, one a row, the same from both methods that give it."""
    labels, confidence = fitted.predict(X_TEST, return_confidence=True)

    assert labels.shape == confidence.shape == (TEST,)
    assert confidence.min() >= 0
    assert confidence.max() <= 1
    assert np.array_equal(confidence, fitted.predict_confidence(X_TEST))


def test_rejection(fitted: PrunewatchDetector) -> None:
    """PyOD's `predict_with_rejection`, with its statistics."""
    with pytest.warns(UserWarning, match="cost of rejection"):
        labels, (expected, upper, cost) = copy.copy(fitted).predict_with_rejection(X_TEST, return_stats=True)

    assert labels.shape == (TEST,)
    assert set(labels) <= {-2, 0, 1}
    assert 0 <= expected <= 1
    assert 0 <= upper <= 1
    assert cost >= 0


def test_ranks(fitted: PrunewatchDetector) -> None:
    """Among the training rows; PyOD's score combinations use it."""
    ranks = fitted._predict_rank(X_TEST)
    normalised = fitted._predict_rank(X_TEST, normalized=True)

    assert ranks.shape == (TEST,)
    assert ranks.min() >= 0
    assert ranks.max() <= TRAIN
    assert (normalised.min() >= 0, normalised.max()) == (True, 1)


def test_fit_predict_and_its_score() -> None:
    """PyOD has deprecated both and still offers them."""
    with pytest.warns(FutureWarning):
        labels = detector().fit_predict(X_TRAIN)
    with pytest.warns(FutureWarning):
        score = detector().fit_predict_score(X_TRAIN, Y_TRAIN)

    assert labels.shape == (TRAIN,)
    assert score > 0.8


def test_labels_given_to_fit_are_only_counted() -> None:
    """Unsupervised: they change nothing, and PyOD's warning says so."""
    with pytest.warns(UserWarning, match="y should not be presented"):
        told = detector(updates=20).fit(X_TRAIN, Y_TRAIN)

    assert np.array_equal(told.decision_scores_, detector(updates=20).fit(X_TRAIN).decision_scores_)


@pytest.mark.parametrize("contamination", [0.0, 0.6, -1])
def test_impossible_contamination_is_refused(contamination: float) -> None:
    """At once, as in PyOD."""
    with pytest.raises(ValueError, match="contamination"):
        PrunewatchDetector(contamination=contamination)


def test_a_threshold_object_may_stand_for_the_contamination() -> None:
    """PyThresh objects have fit, labels_, thresh_ and predict."""

    class Half:
        """Everything above the median."""

        def fit(self, scores):
            self.thresh_ = float(np.median(scores))
            self.labels_ = (scores > self.thresh_).astype(int)

        def predict(self, scores):
            return (scores > self.thresh_).astype(int)

    half = detector(contamination=Half(), updates=20).fit(X_TRAIN)

    assert half.labels_.shape == (TRAIN,)
    assert half.labels_[half.fitted_.warm_up_points :].mean() == pytest.approx(0.5, abs=0.01)
    assert half.predict(X_TEST).shape == (TEST,)


# What scikit-learn asks of parameters


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimators_unfitted",
        "check_get_params_invariance",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_scikit_learns_checks_of_parameters(check: str) -> None:
    """The checks of `check_estimator` that need no rows; those that fit use twenty shuffled rows, no time series."""
    getattr(estimator_checks, check)("PrunewatchDetector", PrunewatchDetector())


def test_a_clone_has_the_parameters_and_nothing_else(fitted: PrunewatchDetector) -> None:
    """Parameters are kept as they were given; a clone is not fitted, and fitting it gives the same detector."""
    copied = clone(fitted)

    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "fitted_")
    assert np.array_equal(copied.fit(X_TRAIN).decision_scores_, fitted.decision_scores_)


def test_what_is_not_fitted_says_so() -> None:
    """scikit-learn's own error."""
    for call in ("decision_function", "predict", "predict_proba", "predict_confidence", "explain"):
        with pytest.raises(NotFittedError):
            getattr(detector(), call)(X_TEST)
    with pytest.raises(NotFittedError):
        detector().bundle("pump")


@pytest.mark.parametrize(
    ("parameters", "rows", "message"),
    [
        ({"network": "transformer"}, X_TRAIN, "network: 'transformer' is not a network. Choose one of: lstm,"),
        ({"options": {"wdith": 8}}, X_TRAIN, "options.wdith"),
        ({}, X_TRAIN[:60], "60 usable rows are too few"),
        ({}, np.where(np.arange(TRAIN)[:, None] == 7, np.nan, X_TRAIN), "contains NaN"),
        ({"missing": "carry"}, np.where(np.arange(TRAIN)[:, None] == 7, np.inf, X_TRAIN), "infinity"),
        ({}, X_TRAIN[None], "dim 3"),
        ({}, np.where(np.arange(TRAIN)[:, None] == 7, 1e39, X_TRAIN.astype(float)), "too large for dtype"),
    ],
)
def test_what_can_not_be_fitted_is_a_value_error(parameters, rows, message: str) -> None:
    """As scikit-learn wants it, with our words where the check is ours."""
    with pytest.raises(ValueError, match=message):
        detector(**parameters).fit(rows)


def test_rows_of_another_width_or_with_other_names_are_refused(fitted: PrunewatchDetector) -> None:
    """A score of the wrong columns would mean nothing."""
    named = detector(updates=20).fit(pd.DataFrame(X_TRAIN, columns=list(FOUR)))

    with pytest.raises(ValueError, match="expecting 4 features"):
        fitted.decision_function(X_TEST[:, :3])
    with pytest.raises(ValueError, match="feature names"):
        named.decision_function(pd.DataFrame(X_TEST, columns=["flow", "heat", "load", "pressure"]))
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.decision_function(np.full((100, 4), np.nan))
    assert named.fitted_.features == FOUR


# What is ours


def test_scoring_is_pure_and_starts_afresh(fitted: PrunewatchDetector) -> None:
    """Nothing carries over: a stretch gets the scores it would get alone, and the estimator stays as it is."""
    before = copy.deepcopy({name: value for name, value in vars(fitted).items() if name != "fitted_"})
    rows = X_TEST.copy()

    first = fitted.decision_function(rows)
    fitted.decision_function(X_TRAIN)
    again = fitted.decision_function(rows)

    assert np.array_equal(first, again)
    assert np.array_equal(rows, X_TEST)
    assert str(before) == str({name: value for name, value in vars(fitted).items() if name != "fitted_"})


def test_the_same_seed_gives_the_same_detector_and_leaves_the_generators_alone() -> None:
    """A RandomState works too; torch's and numpy's global generators go on as if nothing had been."""
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    wanted = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002

    one, other, third = (
        detector(updates=20, random_state=state).fit(X_TRAIN) for state in (5, np.int64(5), np.random.RandomState(5))
    )

    assert np.array_equal(one.decision_scores_, other.decision_scores_)
    assert not np.array_equal(one.decision_scores_, third.decision_scores_)
    assert (torch.rand(1), np.random.rand()) == wanted  # noqa: NPY002


@pytest.mark.parametrize("shape", [(TRAIN,), (TRAIN, 1)])
def test_one_sensor_may_come_as_a_flat_array(shape: tuple[int, ...]) -> None:
    """[N] and [N, 1] are the same, also as a list or a pandas Series."""
    flat = X_TRAIN[:, 2]

    one = detector(updates=20).fit(flat.reshape(shape))

    wanted = one.decision_function(flat)
    for rows in (flat[:, None], flat.tolist(), pd.Series(flat)):
        np.testing.assert_allclose(one.decision_function(rows), wanted)
    assert one.n_features_in_ == 1
    assert one.explain(flat).shape == (TRAIN, 1)
    assert one.predict_proba(flat).shape == (TRAIN, 2)


def test_missing_values_are_carried_where_asked() -> None:
    """Rows with NaN get a score, and the missing value contributes nothing; training rows may have them too."""
    holes = X_TRAIN.copy()
    holes[300:310, 1] = np.nan

    carrying = detector(missing="carry", half_life=0.0, updates=20).fit(holes)

    assert np.isfinite(carrying.decision_scores_).all()
    assert (carrying.explain(holes)[300:310, 1] == 0).all()


def test_rows_between_two_scores_repeat_the_last() -> None:
    """With a stride of five every fifth row has a score of its own."""
    every_fifth = PrunewatchDetector("autoencoder", options={"window": 10, "stride": 5, "width": 8}, updates=20)

    scores = every_fifth.fit(X_TRAIN).decision_function(X_TEST)

    warm = every_fifth.fitted_.warm_up_points
    first = warm + (-warm - 1) % 5
    held = scores[first : first + 100].reshape(-1, 5)
    assert (held == held[:, :1]).all()
    assert len(np.unique(held[:, 0])) > 15
    assert every_fifth.explain(X_TEST)[first:].any(axis=1).all()


@pytest.mark.parametrize("network", ["lstm", "isolation_forest"])
def test_explanations_sum_to_the_error_and_name_the_sensor(network: str) -> None:
    """[N, F], zeros while warming up; the sensor that was disturbed contributes most."""
    options = {"trees": 50} if network == "isolation_forest" else SMALL["options"]
    how = {"options": options, "updates": 100, "half_life": 0.0, "aggregate": "mean"}
    explained = PrunewatchDetector(network, **how).fit(machine(TRAIN))
    rows = machine(TEST, seed=4)
    rows[200, 2] += 5

    contributions = explained.explain(rows)

    error = explained.fitted_.trace(rows[None]).error[0]
    warm = explained.fitted_.warm_up_points
    assert contributions.shape == (TEST, 4)
    assert not contributions[:warm].any()
    np.testing.assert_allclose(contributions[warm:].sum(axis=1), error[warm:], rtol=1e-5)
    assert contributions[200].argmax() == 2


def test_the_bundle_scores_as_the_estimator_does(fitted: PrunewatchDetector, tmp_path: Path) -> None:
    """It is written, read and verified like any other, and carries what training needs."""
    write_bundle(fitted.bundle("pump", version=3, device_class="pi4"), tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle", weights=True)

    runtime = Runtime(bundle.graph)
    state, scores = runtime.fresh(1), []
    for row in X_TEST:
        step = runtime.step(row[None], state)
        state = step.state
        scores.append(step.score[0])

    warm = bundle.manifest.warm_up_points
    np.testing.assert_allclose(scores[warm:], fitted.decision_function(X_TEST)[warm:], rtol=1e-4, atol=1e-5)
    assert (bundle.manifest.detector, bundle.manifest.version, bundle.manifest.device_class) == ("pump", 3, "pi4")
    assert bundle.manifest.lineage.data_rows == TRAIN
    again = load(bundle.files["weights.safetensors"])
    assert np.array_equal(again.trace(X_TEST[None]).score[0, warm:], fitted.decision_function(X_TEST)[warm:])


@pytest.mark.slow
def test_the_estimator_is_pruned_by_the_library_call(fitted: PrunewatchDetector) -> None:
    """A copy scores with the child, judged by its own threshold; the one that was given stays the parent's."""
    before = fitted.decision_function(X_TEST)
    wide = detector(options={"layers": 1, "width": 64}, updates=200).fit(X_TRAIN)

    small = pruning.prune(wide, X_TRAIN, size_bytes=40_000)
    floor = pruning.prune(fitted, X_TRAIN, speedup=1000)

    assert isinstance(small, PrunewatchDetector)
    assert small.outcome_.outcome == "adopted"
    assert small.fitted_.network.units["layer0"] < 64
    warm = small.fitted_.warm_up_points
    assert small.threshold_ == pytest.approx(np.percentile(small.decision_scores_[warm:], 95))
    assert np.array_equal(small.decision_function(X_TRAIN), small.decision_scores_)
    assert small.bundle("pump").manifest.lineage.cause == "prune"
    assert floor.outcome_.outcome == "rejected"
    assert floor.fitted_ is fitted.fitted_
    assert np.array_equal(floor.decision_function(X_TEST), before)
    assert fitted.outcome_ is None
    assert wide.fitted_.network.units["layer0"] == 64


def test_a_copy_scores_with_another_detector(fitted: PrunewatchDetector) -> None:
    """`scoring_with` is what pruning ends in: scores, threshold, labels and bundle are the other detector's."""
    other = detector(updates=20, random_state=1).fit(X_TRAIN)
    scores = fitted.decision_scores_.copy()

    copied = fitted.scoring_with(other.fitted_, X_TRAIN, "said", kept={"layer0": [0, 2]}, criterion="taylor", seed=3)

    assert np.array_equal(copied.decision_function(X_TEST), other.decision_function(X_TEST))
    assert np.array_equal(copied.decision_scores_, other.decision_scores_)
    assert np.array_equal(copied.labels_, other.labels_)
    assert copied.threshold_ == other.threshold_
    assert (copied.outcome_, fitted.outcome_) == ("said", None)
    lineage = copied.bundle("pump").manifest.lineage
    assert (lineage.cause, lineage.kept, lineage.seed, lineage.data_rows) == ("prune", {"layer0": [0, 2]}, 3, TRAIN)
    assert np.array_equal(fitted.decision_scores_, scores)
    assert fitted.bundle("pump").manifest.lineage.cause == "fit"
    assert copied.fit(X_TRAIN).outcome_ is None


def test_an_estimator_that_can_not_be_pruned_says_so() -> None:
    """Not fitted, rows of another width, or no budget."""
    with pytest.raises(InvalidInputError, match=r"not fitted.*`fit`"):
        pruning.prune(detector(), X_TRAIN, speedup=2)
    quick = detector(updates=20).fit(X_TRAIN)
    with pytest.raises(ValueError, match="expecting 4 features"):
        pruning.prune(quick, X_TRAIN[:, :2], speedup=2)
    with pytest.raises(InvalidInputError, match="no budget"):
        pruning.prune(quick, X_TRAIN)


def test_the_example_in_the_documentation_is_true() -> None:
    """The doctest runs."""
    result = doctest.testmod(detectors.training.estimator)

    assert result.attempted
    assert not result.failed
