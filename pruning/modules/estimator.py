"""The PyOD-style estimator, pruned: a copy of it that scores with the child."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.training.fitted import Fitted
from pruning.cycle import prune


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
    seed: int = 0,
    **options: Any,
) -> AnEstimator:
    """One cycle for a fitted estimator.

    Args:
        estimator: Fitted; it stays as it is, and keeps scoring as the parent.
        X: The rows that it was fitted to, or others like them, [N, F] in the order of time.
        seed: Of every random draw.
        options: Others of `pruning.cycle.prune`: budgets, batch, progress.

    Returns:
        A new estimator; `outcome_` says whether the gate let the child in. Where it did, all scores are the child's,
        and `decision_scores_`, `threshold_` and `labels_` are those of X. Where not, it scores as the one given.

    Raises:
        ValueError: rows that do not fit the estimator, or one that is not fitted.
        InvalidInputError: too few rows, or no budget.
        PreconditionError: the network has nothing to prune.
    """
    candidate = prune(estimator.fitted_, estimator.checked_rows(X), seed=seed, **options)
    if candidate.outcome.outcome != "adopted" or candidate.child is None:
        return estimator.scoring_with(estimator.fitted_, X, candidate.outcome)  # type: ignore[no-any-return]
    return estimator.scoring_with(  # type: ignore[no-any-return]
        candidate.child, X, candidate.outcome, kept=candidate.kept, criterion=candidate.criterion, seed=seed
    )
