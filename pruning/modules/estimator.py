"""The PyOD-style estimator, pruned: a copy of it that scores with the child."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.training.fit import Progress, silent
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.cycle import CycleOptions, run_cycle
from pruning.outcome import Budget


@runtime_checkable
class Estimator(Protocol):
    """What `detectors.training.estimator.PrunewatchDetector` is, said without importing PyOD."""

    fitted_: Fitted

    def checked_rows(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803  (scikit-learn's name)
        """Rows [N, F], as it was fitted to."""

    def scoring_with(self, fitted: Fitted, X: ArrayLike, outcome: Any = None, **lineage: Any) -> Any:  # noqa: N803
        """A copy with another detector inside."""


AnEstimator = TypeVar("AnEstimator", bound=Estimator)


def prune_estimator(
    estimator: AnEstimator,
    X: ArrayLike,  # noqa: N803  (scikit-learn's name)
    *,
    p50_seconds: float | None = None,
    p99_seconds: float | None = None,
    speedup: float | None = None,
    size_bytes: int | None = None,
    batch: int = 256,
    seed: int = 0,
    progress: Progress = silent,
) -> AnEstimator:
    """One cycle for a fitted estimator.

    Args:
        estimator: Fitted; it stays as it is, and keeps scoring as the parent.
        X: The rows that it was fitted to, or others like them, [N, F] in the order of time.
        p50_seconds: Budgets, see `pruning.outcome.Budget`; at least one is given.
        p99_seconds: The same.
        speedup: The same.
        size_bytes: The same.
        batch: Points a step.
        seed: Of every random draw.
        progress: Told about every stage.

    Returns:
        A new estimator; `outcome_` says whether the gate let the child in. Where it did, all scores are the child's,
        and `decision_scores_`, `threshold_` and `labels_` are those of X. Where not, it scores as the one given.

    Raises:
        ValueError: rows that do not fit the estimator, or one that is not fitted.
        InvalidInputError: too few rows, or no budget.
        PreconditionError: the network has nothing to prune.
    """
    budget = Budget(p50_seconds, p99_seconds, speedup, size_bytes, batch)
    data = Stretches.of([estimator.checked_rows(X)], missing=estimator.fitted_.how.missing)
    options = CycleOptions(seed=seed)
    candidate = run_cycle(
        estimator.fitted_, data, budget, parent_version=1, version=2, options=options, progress=progress
    )
    if candidate.outcome.outcome != "adopted" or candidate.child is None:
        return estimator.scoring_with(estimator.fitted_, X, candidate.outcome)  # type: ignore[no-any-return]
    return estimator.scoring_with(  # type: ignore[no-any-return]
        candidate.child, X, candidate.outcome, kept=candidate.kept, criterion=candidate.criterion, seed=seed
    )
