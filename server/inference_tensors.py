"""Tensors of the Open Inference Protocol as arrays, and arrays as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from server.scoring import MAX_POINTS

DTYPES = {"FP32": "<f4", "INT64": "<i8", "UINT8": "u1", "BOOL": "?"}
CONTENTS = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
LENGTH_BYTES = 4  # before each element of raw BYTES, little-endian
LARGEST_RANK = 8  # beyond any shape that is taken; keeps absurd ones out of messages
SHARED_MEMORY = "shared_memory_region"
CLASSIFICATION = "classification"
SHOWN = 80  # characters of what a caller sent that an error repeats


@dataclass(frozen=True)
class Kind:
    """One input or output that there is.

    Attributes:
        name: What it is called.
        datatype: In the protocol's words.
        dims: Letters of its shape; N: any number, F: the features.
        optional: An input may be left out; an output is answered only when it is asked for.
    """

    name: str
    datatype: str
    dims: str
    optional: bool = False

    def shape(self, n_features: int | None) -> list[int]:
        """Its shape where a detector has so many features; -1: any.

        >>> Kind("values", "FP32", "NF").shape(3)
        [-1, 3]
        """
        sizes = {"N": -1, "F": n_features or -1, "1": 1}
        return [sizes[letter] for letter in self.dims]


INPUTS = {
    kind.name: kind
    for kind in (
        Kind("values", "FP32", "NF"),
        Kind("stamps", "INT64", "N", optional=True),
        Kind("series", "BYTES", "N", optional=True),
    )
}
OUTPUTS = {
    kind.name: kind
    for kind in (
        Kind("score", "FP32", "N"),
        Kind("status", "UINT8", "N"),
        Kind("anomaly", "BOOL", "N"),
        Kind("threshold", "FP32", "1"),
        Kind("contributions", "FP32", "NF", optional=True),
        Kind("version", "INT64", "N", optional=True),
    )
}


@dataclass(frozen=True)
class Inputs:
    """What a request brought.

    Attributes:
        values: [N, F] or [B, T, F] float32.
        stamps: int64 of the shape that was said; None: there are none.
        series: [N] names; None: there are none.
    """

    values: NDArray[np.float32]
    stamps: NDArray[np.int64] | None
    series: list[str] | None


def read_inputs(request: Any) -> Inputs:
    """The inputs of a ModelInferRequest as arrays; shapes are only held against contents.

    Raises:
        InvalidInputError: there is an unknown, repeated or missing input, or one whose datatype, shape and contents do
            not fit each other.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    found: dict[str, Any] = {}
    for tensor in request.inputs:
        kind = _kind(tensor, found)
        if SHARED_MEMORY in tensor.parameters:
            raise InvalidInputError("there is no shared memory.", field=kind.name, hint="Send the contents.")
        found[kind.name] = tensor
    if raw and len(raw) != len(found):
        raise InvalidInputError(
            f"there are {len(raw)} raw contents for {len(found)} inputs.",
            field="raw_input_contents",
            hint="Send one for each input, in their order, or none and typed contents.",
        )
    if "values" not in found:
        raise InvalidInputError("there is no input `values`.", field="values", hint="Send FP32 of shape [N, F].")
    read = {
        name: _read(INPUTS[name], tensor, raw[position] if raw else None)
        for position, (name, tensor) in enumerate(found.items())
    }
    return Inputs(read["values"], read.get("stamps"), read.get("series"))


def read_outputs(request: Any) -> list[Kind]:
    """The outputs that a ModelInferRequest asks for, in its order; without any, those that are not optional.

    Raises:
        InvalidInputError: there is no such output, or it is wanted in a form that is not served.
    """
    if not request.outputs:
        return [kind for kind in OUTPUTS.values() if not kind.optional]
    wanted: dict[str, Kind] = {}
    for output in request.outputs:
        kind = OUTPUTS.get(output.name)
        if kind is None:
            raise InvalidInputError(
                f"there is no output {output.name[:SHOWN]!r}.",
                field="outputs",
                hint=f"There are: {', '.join(OUTPUTS)}.",
            )
        for refused in (SHARED_MEMORY, CLASSIFICATION):
            if refused in output.parameters:
                raise InvalidInputError(
                    f"output {kind.name!r} can not come with {refused}.", field="outputs", hint="Ask for it as it is."
                )
        if kind.name in wanted:
            raise InvalidInputError(f"output {kind.name!r} is there twice.", field="outputs", hint="Ask for it once.")
        wanted[kind.name] = kind
    return list(wanted.values())


def write_outputs(response: Any, arrays: Iterable[tuple[Kind, NDArray[Any]]]) -> None:
    """Adds arrays to a ModelInferResponse, always as raw contents: the only ones that tritonclient reads."""
    for kind, array in arrays:
        response.outputs.add(name=kind.name, datatype=kind.datatype, shape=array.shape)
        response.raw_output_contents.append(np.ascontiguousarray(array, DTYPES[kind.datatype]).tobytes())


def _kind(tensor: Any, found: dict[str, Any]) -> Kind:
    """What a tensor is to be; refuses what it can not be."""
    kind = INPUTS.get(tensor.name)
    if kind is None:
        raise InvalidInputError(
            f"there is no input {tensor.name[:SHOWN]!r}.", field="inputs", hint=f"There are: {', '.join(INPUTS)}."
        )
    if kind.name in found:
        raise InvalidInputError("this input is there twice.", field=kind.name, hint="Send it once.")
    if tensor.datatype != kind.datatype:
        raise InvalidInputError(
            f"the datatype is {tensor.datatype[:SHOWN]!r}, not {kind.datatype}.",
            field=kind.name,
            hint=f"Send {kind.datatype}; nothing is converted on the way.",
        )
    return kind


def _read(kind: Kind, tensor: Any, raw: bytes | None) -> Any:
    """One input: an array, or a list of names."""
    shape = tuple(tensor.shape)
    if len(shape) > LARGEST_RANK or any(size < 0 for size in shape):
        raise InvalidInputError(
            f"the shape {list(shape[:LARGEST_RANK])} is none.", field=kind.name, hint="Send sizes of 0 or more."
        )
    n = math.prod(shape)
    if not n:
        raise InvalidInputError("there are no points.", field=kind.name, hint="Send at least one.")
    wanted = CONTENTS[kind.datatype]
    typed = {field.name for field, _ in tensor.contents.ListFields()}
    if typed and raw is not None:
        raise InvalidInputError(
            "there are contents twice.", field=kind.name, hint="Send raw_input_contents or typed contents."
        )
    if typed - {wanted}:
        raise InvalidInputError(
            f"{kind.datatype} does not stand in {min(typed - {wanted})}.", field=kind.name, hint=f"Send {wanted}."
        )
    contents = getattr(tensor.contents, wanted)
    if kind.datatype == "BYTES":
        if n > MAX_POINTS:
            raise InvalidInputError(f"{n} names are too many.", field=kind.name, hint=f"Send {MAX_POINTS} at most.")
        return _names(kind, list(contents) if raw is None else _elements(kind, raw, n + 1), shape)
    dtype = np.dtype(DTYPES[kind.datatype])
    if raw is None:
        _check_count(kind, len(contents), n, shape)
        return np.fromiter(contents, dtype, n).reshape(shape)
    if len(raw) != n * dtype.itemsize:
        raise InvalidInputError(
            f"{len(raw)} bytes are not {kind.datatype} of shape {list(shape)}.",
            field=kind.name,
            hint=f"Send {n * dtype.itemsize} bytes, little-endian, row after row.",
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _check_count(kind: Kind, count: int, n: int, shape: tuple[int, ...]) -> None:
    if count != n:
        raise InvalidInputError(
            f"{count} elements do not have the shape {list(shape)}.", field=kind.name, hint=f"Send {n}."
        )


def _names(kind: Kind, elements: list[bytes], shape: tuple[int, ...]) -> list[str]:
    """Names of series from BYTES of shape [N]."""
    if len(shape) != 1:
        raise InvalidInputError(
            f"the shape is {list(shape)}.", field=kind.name, hint="Send [N], a name for each point."
        )
    _check_count(kind, len(elements), shape[0], shape)
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise InvalidInputError("a name is not UTF-8.", field=kind.name, hint="Write names in UTF-8.") from None


def _elements(kind: Kind, raw: bytes, most: int) -> list[bytes]:
    """The elements of raw BYTES, each after its length; no more than `most`, whatever is there."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) < most:
        end = at + LENGTH_BYTES + int.from_bytes(raw[at : at + LENGTH_BYTES], "little")
        if at + LENGTH_BYTES > len(raw) or end > len(raw):
            raise InvalidInputError(
                "the raw contents end inside an element.",
                field=kind.name,
                hint="Send each element after its length in 4 bytes, little-endian.",
            )
        elements.append(raw[at + LENGTH_BYTES : end])
        at = end
    return elements
