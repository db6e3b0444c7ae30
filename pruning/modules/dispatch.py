"""The one call: prunes a detector, an estimator or a module of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, overload

from numpy.typing import ArrayLike
from torch import Tensor, nn

from detectors.errors import InvalidInputError
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from pruning import cycle
from pruning.cycle import Candidate
from pruning.modules.estimator import AnEstimator, Estimator, prune_estimator
from pruning.modules.examples import Inputs
from pruning.modules.prune import PrunedModule, prune_module


@overload
def prune(what: Fitted, data: ArrayLike, **options: Any) -> Candidate: ...
@overload
def prune(what: nn.Module, data: Inputs, targets: Tensor | None = None, **options: Any) -> PrunedModule: ...
@overload
def prune(what: AnEstimator, data: ArrayLike, **options: Any) -> AnEstimator: ...
def prune(what: Any, data: Any, *more: Any, **options: Any) -> Any:
    """Makes something smaller; what it is decides how.

    Args:
        what: A detector (`detectors.training.fitted.Fitted`), a `PrunewatchDetector`, or any `torch.nn.Module`. It
            stays as it is.
        data: Normal rows for the first two, examples of its inputs for a module.
        more: Targets of the examples, for a module.
        options: Of `pruning.cycle.prune`, `pruning.modules.estimator.prune_estimator` or
            `pruning.modules.prune.prune_module`; all three have `speedup`.

    Raises:
        InvalidInputError: something else, the network of a detector without the detector, or an option that it does
            not have.
    """
    if isinstance(what, Fitted):
        _require_options(cycle.prune, options, "a detector")
        return cycle.prune(what, data, *more, **options)
    if isinstance(what, Network):
        raise InvalidInputError(
            "a network of ours is pruned with the statistics around it.",
            field="what",
            hint="Give the detector that it belongs to.",
        )
    if isinstance(what, nn.Module):
        _require_options(prune_module, options, "a module")
        return prune_module(what, data, *more, **options)
    if hasattr(what, "scoring_with"):
        if not isinstance(what, Estimator):
            raise InvalidInputError("the estimator is not fitted.", field="what", hint="Call its `fit` first.")
        _require_options(cycle.prune, options, "an estimator")
        return prune_estimator(what, data, *more, **options)
    raise InvalidInputError(
        f"{type(what).__name__} can not be pruned.",
        field="what",
        hint="Give a fitted detector, a PrunewatchDetector or a torch module; models of PyOD go through "
        "`detectors.training.import_pyod`.",
    )


def _require_options(call: Callable[..., Any], options: Mapping[str, Any], what: str) -> None:
    """Refuses a keyword that a call does not have, and says which it has.

    Raises:
        InvalidInputError: names the keyword.
    """
    parameters = inspect.signature(call).parameters.values()
    known = [it.name for it in parameters if it.kind is it.KEYWORD_ONLY or it.name == "targets"]
    for name in options:
        if name not in known:
            raise InvalidInputError(
                f"pruning {what} has no such option.", field=name, hint=f"It takes {', '.join(known)}."
            )
