"""What pydantic complains about, as an error that a person can mend: the key with dots, a sentence, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from detectors.errors import InvalidInputError


def as_input_error(error: ValidationError, model: type[BaseModel], where: str = "") -> InvalidInputError:
    """What pydantic refused, as one error: the first thing as `field` and `problem`, the others in the hint.

    Args:
        error: What it raised.
        model: What was validated.
        where: Stands before the keys.
    """
    first, *others = [_explained(detail, model, where) for detail in error.errors(include_url=False)]
    field, problem, hint = first
    also = [f"{key}: {text}" if key else text for key, text, _ in others]
    return InvalidInputError(problem, field=field, hint=" ".join(filter(None, [hint, *(f"Also {it}" for it in also)])))


def _explained(detail: ErrorDetails, model: type[BaseModel], where: str) -> tuple[str, str, str]:
    """Dotted key, sentence and hint of one thing that pydantic refused."""
    path = [str(part) for part in detail["loc"] if part != "[key]"]
    field = ".".join([where, *path] if where else path)
    if detail["type"] == "extra_forbidden":
        return field, "is not a setting.", nearest(path[-1], _known_keys(model, path[:-1]))
    if detail["type"] == "string_pattern_mismatch":
        return field, "is not a name: write lower-case letters, digits, `-` and `_`, a letter first.", ""
    message = detail["msg"].removeprefix("Value error, ")
    return field, f"{message[:1].lower()}{message[1:]}.", ""


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that are allowed at a path inside `model`."""
    for key in path:
        if key in model.model_fields:  # everything else is the name of a detector or device class
            model = next(iter(_models_in(model.model_fields[key].annotation)), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def nearest(key: str, known: Collection[str]) -> str:
    """The known key that was probably meant, or all of them, as a hint."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(known)}."
