"""Examples that a module is run on, and the tensors in what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detectors.errors import InvalidInputError

Inputs = Tensor | tuple[Tensor, ...]
"""What `forward` takes: one tensor, or one for each of its arguments. Examples lie along the first axis."""


def as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    """The arguments of `forward`.

    Raises:
        InvalidInputError: no tensors, no examples, values that are not finite, or different numbers of examples.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not given or not all(isinstance(each, Tensor) and each.ndim > 0 and len(each) for each in given):
        raise InvalidInputError("must be a tensor of examples, or a tuple of such.", field="inputs")
    if len({len(each) for each in given}) > 1:
        raise InvalidInputError(f"has {', '.join(str(len(each)) for each in given)} examples.", field="inputs")
    for each in given:
        require_finite(each, "inputs")
    return tuple(each.detach() for each in given)


def require_finite(given: Tensor, field: str) -> None:
    """Refuses examples with which nothing can be compared.

    Raises:
        InvalidInputError: a value is NaN or infinite.
    """
    wrong = int((~given.isfinite()).sum())
    if wrong:
        raise InvalidInputError(
            f"{wrong} of {given.numel()} values are not finite.",
            field=field,
            hint="Leave out examples with NaN or infinite values, or fill them in.",
        )


def rows(examples: tuple[Tensor, ...], which: Tensor | slice) -> tuple[Tensor, ...]:
    """Some of the examples."""
    return tuple(each[which] for each in examples)


def tensors_of(output: Any) -> list[Tensor]:
    """All floating-point tensors in what a module returned, however they are nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for each in output for tensor in tensors_of(each)]
    return []


def distance(one: Any, other: Any, scale: float) -> Tensor:
    """Mean squared distance of two outputs, over all their tensors, divided by `scale`."""
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    total = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return total / (sum(a.numel() for a, _ in pairs) * scale)


def spread(output: Any) -> float:
    """Variance of an output, over all its tensors, each around its mean over examples."""
    parts = tensors_of(output)
    total = sum(float((each - each.mean(dim=0)).square().sum()) for each in parts)
    return max(total / sum(each.numel() for each in parts), 1e-12)
