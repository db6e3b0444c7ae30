"""What `prunewatch fit` does as an estimator with the conventions of PyOD and scikit-learn."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyod.models.base import BaseDetector
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from detectors.bundle import Bundle, Lineage
from detectors.errors import InvalidInputError
from detectors.training.error_forms import Aggregate, FloatArray
from detectors.training.export import to_bundle
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, Fitted, Trace
from detectors.training.networks.base import Options
from detectors.training.stretches import Missing, Stretches

Float64 = NDArray[np.float64]


class PrunewatchDetector(BaseDetector):  # type: ignore[misc]  # PyOD has no types
    """An anomaly detector for one time series of one or more sensors.

    Rows are points in the order of time: do not shuffle them. Scores are -log10 of how rare a point's error is among
    normal points: 3 is one in a thousand, whatever the network. Points of the warm-up, the first
    `fitted_.warm_up_points` of every array that is scored, have no score; they are filled with `threshold_`, so they
    are no anomalies (as in PyOD's LSTMAD). With a `stride`, points between two scores repeat the last one.

    Args:
        network: One of `detectors.training.networks.KINDS`.
        contamination: Share of anomalies in the training rows, in (0, 0.5], or a PyThresh object; sets `threshold_`.
        options: Sizes of the network that differ from its defaults, as `{"width": 64}`.
        half_life: Points after which an error counts half; 0: no smoothing, no delay.
        aggregate: Of features: `worst` few or `mean`.
        missing: `reject` arrays with NaN, or `carry` the last value on; a carried value contributes nothing.
        updates: Gradient steps at the most; None chooses by the amount of data.
        random_state: A seed, a `numpy.random.RandomState`, or None for a random one.

    Attributes:
        fitted_: The detector itself, to be exported; `pruning.prune` takes the whole estimator.
        decision_scores_: [N], scores of the training rows.
        threshold_: Scores above it are anomalies: the quantile of training scores that `contamination` says.
        labels_: [N], 1 for anomalies among the training rows.
        n_features_in_: F.
        feature_names_in_: Where rows came with names.
        outcome_: What came of pruning (`pruning.outcome.Outcome`); None where it was not pruned.

    >>> rows = np.sin(np.arange(600) / 5) + np.random.default_rng(0).normal(0, 0.1, 600)
    >>> detector = PrunewatchDetector(options={"layers": 1, "width": 8}, updates=50).fit(rows)
    >>> rows[400:405] = 3.0
    >>> bool(detector.predict(rows)[400:405].any())
    True
    """

    fitted_: Fitted
    decision_scores_: Float64
    threshold_: float
    labels_: NDArray[np.int64]
    outcome_: Any = None

    def __init__(
        self,
        network: str = "lstm",
        *,
        contamination: Any = 0.1,
        options: Options | None = None,
        half_life: float = 5.0,
        aggregate: Aggregate = "worst",
        missing: Missing = "reject",
        updates: int | None = None,
        random_state: Any = 0,
    ) -> None:
        super().__init__(contamination=contamination)
        self.network = network
        self.options = options
        self.half_life = half_life
        self.aggregate = aggregate
        self.missing = missing
        self.updates = updates
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803  (scikit-learn's name)
        """Learns what is normal.

        Args:
            X: Rows [N, F], or [N] of one sensor.
            y: Ignored.

        Raises:
            ValueError: too few rows, values that are not finite, or a parameter that can not be.
        """
        rows = self._rows(X, reset=True)
        self._set_n_classes(y)
        names = getattr(self, "feature_names_in_", None)
        features = tuple(map(str, names)) if names is not None else tuple(f"x{i}" for i in range(rows.shape[1]))
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        data = Stretches.of([rows], missing=self.missing)
        how = ErrorOptions(self.half_life, self.aggregate, self.missing)
        try:
            fitted = fit(
                self.network,
                data,
                features,
                seed=int(seed),
                options=self.options,
                how=FitOptions(updates=self.updates),
                error=how,
            )
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        self.outcome_ = None
        self._take(fitted, rows, Lineage(cause="fit", seed=int(seed), data_rows=len(rows)))
        return self

    def decision_function(self, X: ArrayLike) -> Float64:  # noqa: N803
        """Scores [N] of a stretch of points from a fresh state; nothing is remembered from call to call.

        Args:
            X: Rows [N, F] in the order of time, or [N] of one sensor.
        """
        check_is_fitted(self, "fitted_")
        scores, there = self._scores(self._rows(X, reset=False))
        return np.where(there, scores, self.threshold_)

    def explain(self, X: ArrayLike) -> FloatArray:  # noqa: N803
        """What each feature contributes to the error behind each score, [N, F]; zeros where there is no score.

        A row sums to the point's error, which the score is a growing function of; for an ensemble, to the mean score of
        its members.
        """
        check_is_fitted(self, "fitted_")
        contribution, there = self._held(self._trace(self._rows(X, reset=False)).contribution)
        return np.where(there[:, None], contribution, np.float32(0))

    def bundle(self, detector: str, *, version: int = 1, device_class: str = "hub") -> Bundle:
        """The detector in the form that is served.

        `detectors.bundle.write_bundle` puts it into a folder, which `prunewatch edge --bundle` takes.

        Args:
            detector: Its name there: lower-case letters, digits, `_` and `-`.
            version: Of the detector.
            device_class: What it is for.
        """
        check_is_fitted(self, "fitted_")
        return to_bundle(
            self.fitted_, detector=detector, version=version, device_class=device_class, lineage=self._lineage
        )

    def checked_rows(self, X: ArrayLike) -> FloatArray:  # noqa: N803
        """Rows [N, F] as the estimator was fitted to, in float32.

        Raises:
            ValueError: other columns, or values that can not be.
        """
        check_is_fitted(self, "fitted_")
        return self._rows(X, reset=False)

    def scoring_with(self, fitted: Fitted, X: ArrayLike, outcome: Any = None, **lineage: Any) -> Self:  # noqa: N803
        """A copy with another detector of the same features inside, as `pruning.prune` makes it.

        Args:
            fitted: The other detector, or the same one: then the copy scores as this estimator does.
            X: Rows that the copy takes `decision_scores_`, `threshold_` and `labels_` from, with another detector.
            outcome: What came of pruning.
            lineage: Where the other detector comes from, for its bundle: `kept`, `criterion`, `seed`.
        """
        rows = self.checked_rows(X)
        other = copy.copy(self)
        other.outcome_ = outcome
        if fitted is not self.fitted_:
            other._take(  # noqa: SLF001  (a copy of this one)
                fitted, rows, Lineage(cause="prune", data_rows=len(rows), **lineage)
            )
        return other

    def _take(self, fitted: Fitted, rows: FloatArray, lineage: Lineage) -> None:
        """Takes a detector in: scores of training rows, and the threshold and labels that follow from them."""
        self.fitted_, self._lineage = fitted, lineage
        scores, there = self._scores(rows)
        self.decision_scores_ = scores[there]
        self._process_decision_scores()  # sets threshold_, labels_ and what predict_proba needs, from real scores only
        labels = np.zeros(len(rows), int)
        labels[there] = self.labels_
        self.decision_scores_, self.labels_ = np.where(there, scores, self.threshold_), labels

    def _rows(self, data: ArrayLike, *, reset: bool) -> FloatArray:
        """Checked rows [N, F]; `reset` learns their number and names of features."""
        if getattr(data, "ndim", None) == 1 or (isinstance(data, list) and np.ndim(data) == 1):
            data = np.reshape(data, (-1, 1))
        missing = self.missing if reset else self.fitted_.how.missing
        finite = "allow-nan" if missing == "carry" else True
        with np.errstate(over="ignore"):  # what float32 can not hold is refused as infinite
            rows: FloatArray = validate_data(self, data, reset=reset, dtype=np.float32, ensure_all_finite=finite)
        return rows

    def _trace(self, rows: FloatArray) -> Trace:
        return Trace(*(each[0] for each in self.fitted_.trace(rows[None])))

    def _scores(self, rows: FloatArray) -> tuple[Float64, NDArray[np.bool_]]:
        scores, there = self._held(self._trace(rows).score)
        return scores.astype(np.float64), there

    def _held(self, values: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Values [N, ...] with those between two scores repeated, and [N] whether there is one."""
        at = np.arange(len(values))
        warm, stride = self.fitted_.warm_up_points, self.fitted_.network.stride
        due = (at >= warm) & ((at + 1) % stride == 0)
        last = np.maximum.accumulate(np.where(due, at, -1))
        return values[last], last >= 0
