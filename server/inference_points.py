"""Requests of the Open Inference Protocol as points of series: whose they are, and in which mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.runtime import FloatArray
from server.hosted import HostedDetector
from server.inference_tensors import SHOWN, Inputs, read_inputs
from server.scoring import MAX_FEATURES, MAX_POINTS
from server.tracks import Index

MODES = ("live", "ephemeral")
UNSIGNED = 2**64  # a sequence id is unsigned; clients put it into an int64


@dataclass(frozen=True)
class Points:
    """Points of one request.

    Attributes:
        names: Of the series, each once.
        index: [N] into `names`.
        stamps: [N], or None to go on with row numbers.
        values: [N, F].
        shape: Of the points as they came: [N], or [B, T] of windows.
        ephemeral: They start from a fresh state and leave no trace.
        starts: The series are forgotten before: these points begin new ones.
        ends: The series are forgotten afterwards.
    """

    names: list[str]
    index: Index
    stamps: NDArray[np.int64] | None
    values: FloatArray
    shape: tuple[int, ...]
    ephemeral: bool
    starts: bool = False
    ends: bool = False

    @property
    def one_each(self) -> bool:
        """Whether point i is the only one of series i."""
        return len(self.names) == len(self.index)


def points_of(request: Any, hosted: HostedDetector) -> Points:
    """What a ModelInferRequest asks a detector to score.

    Raises:
        InvalidInputError: it can not be used; the field is the input or the parameter.
    """
    sequence, mode = _sequence_id(request), _mode(request)
    starts, ends = _flag(request, "sequence_start"), _flag(request, "sequence_end")
    inputs = read_inputs(request)
    values, shape = inputs.values, inputs.values.shape[:-1]
    _check_values(values, hosted)
    names, index = _series(inputs, sequence)
    ephemeral = mode == "ephemeral" if mode else names is None
    if names is None:
        if not ephemeral:
            raise InvalidInputError(
                "it is not said to which series the points belong.",
                field="sequence_id",
                hint="Send the parameter sequence_id, or a name for each point as the input `series`.",
            )
        # Windows know nothing of each other, so each is a series of its own.
        length = shape[-1]
        names, index = [str(window) for window in range(len(index) // length)], index // length
    stamps = None if inputs.stamps is None else _stamps(inputs.stamps, shape)
    if stamps is None and not ephemeral and hosted.config.time != "index":
        raise InvalidInputError(
            "this detector wants time stamps.",
            field="stamps",
            hint="Send INT64 nanoseconds since the epoch, one for each point, or configure it with time: index.",
        )
    lasts = not ephemeral  # else they start and end here anyway
    points = values.reshape(len(index), -1)
    return Points(names, index, stamps, points, shape, ephemeral, starts=starts and lasts, ends=ends and lasts)


def _check_values(values: FloatArray, hosted: HostedDetector) -> None:
    """Refuses values that are no points of the detector."""
    width = hosted.n_features
    form = f"[N, {width or 'F'}], or [B, T, {width or 'F'}] for B windows of T points"
    if values.ndim not in {2, 3}:
        raise InvalidInputError(f"the shape is {list(values.shape)}.", field="values", hint=f"Send {form}.")
    if width is not None and values.shape[-1] != width:
        raise InvalidInputError(
            f"these points have {values.shape[-1]} features, the detector has {width}.",
            field="values",
            hint=f"Send {form}: {', '.join((hosted.features or ())[:8])}.",
        )
    if values.shape[-1] > MAX_FEATURES:
        raise InvalidInputError(
            f"{values.shape[-1]} features are too many.", field="values", hint=f"Send {MAX_FEATURES} at most."
        )
    if (n := values.size // values.shape[-1]) > MAX_POINTS:
        raise InvalidInputError(f"{n} points are too many.", field="values", hint=f"Send {MAX_POINTS} at most.")


def _series(inputs: Inputs, sequence: str | None) -> tuple[list[str] | None, Index]:
    """The series that are named, and which of them each point belongs to; None and row numbers: none is."""
    shape, named = inputs.values.shape[:-1], inputs.series
    n = int(np.prod(shape))
    if named is not None and sequence is not None:
        raise InvalidInputError("the series is said twice.", field="series", hint="Send `series` or sequence_id.")
    if (named is not None and len(shape) == 2) or (sequence is not None and len(shape) == 2 and shape[0] != 1):
        raise InvalidInputError(
            f"{shape[0]} windows are no points of named series.",
            field="values",
            hint="Send [N, F]; windows are scored without sequence_id and `series`.",
        )
    if named is None:
        return (None, np.arange(n)) if sequence is None else ([sequence], np.zeros(n, np.int64))
    if len(named) != n:
        raise InvalidInputError(f"there are {len(named)} names for {n} points.", field="series", hint="Send one each.")
    position = {name: i for i, name in enumerate(dict.fromkeys(named))}
    return list(position), np.fromiter((position[name] for name in named), np.int64, n)


def _stamps(stamps: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    if stamps.shape != shape:
        raise InvalidInputError(
            f"the shape is {list(stamps.shape)}.", field="stamps", hint=f"Send {list(shape)}, one for each point."
        )
    return stamps.reshape(-1)


def _sequence_id(request: Any) -> str | None:
    """The name of the series; None: the request belongs to none."""
    if "sequence_id" not in request.parameters:
        return None
    parameter = request.parameters["sequence_id"]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in {"int64_param", "uint64_param", "string_param"}:
        raise InvalidInputError(
            "this is neither a whole number nor text.", field="sequence_id", hint="Send int64_param or string_param."
        )
    told = getattr(parameter, choice)
    return str(told % UNSIGNED if choice == "int64_param" else told) if told else None  # 0 and "" mean none


def _flag(request: Any, name: str) -> bool:
    """`sequence_start` or `sequence_end`; not said is false."""
    if name not in request.parameters:
        return False
    parameter = request.parameters[name]
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidInputError("this is neither true nor false.", field=name, hint="Send bool_param.")
    return bool(parameter.bool_param)


def _mode(request: Any) -> str | None:
    """`live` or `ephemeral`; None: not said."""
    if "mode" not in request.parameters:
        return None
    mode: str = request.parameters["mode"].string_param
    if mode not in MODES:
        raise InvalidInputError(f"there is no mode {mode[:SHOWN]!r}.", field="mode", hint=f"Say {' or '.join(MODES)}.")
    return mode
