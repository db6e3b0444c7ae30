"""Arguments and options that several commands share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from detectors.errors import InvalidInputError, MissingExtraError
from server.complaints import as_input_error
from server.config import DEFAULT_BATCH, HUB, Budget, load_settings
from server.quantities import parse_duration, parse_size

Value = TypeVar("Value")


def quantity(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Makes a parser of durations or sizes explain itself on the command line."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.") from error

    return parsed


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The detector.", show_default=False)]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Work on this store directly, without a server (default: $PRUNEWATCH__STORE or ./prunewatch-store).",
        show_default=False,
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Ask the prunewatch that serves here instead.", show_default=False),
]
DeviceClassOption = Annotated[str, typer.Option(metavar="CLASS", help="The device class; the hub itself is `hub`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
SeedOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        max=2**31 - 1,
        help="Seed of every random draw (default: the detector's).",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings in YAML; see `prunewatch validate`.", show_default=False)
]
P99Option = Annotated[
    float | None,
    typer.Option(
        parser=quantity(parse_duration),
        metavar="TIME",
        help="99th percentile of a step, e.g. 2ms.",
        show_default=False,
    ),
]
P50Option = Annotated[
    float | None,
    typer.Option(
        parser=quantity(parse_duration), metavar="TIME", help="Median of a step, e.g. 1ms.", show_default=False
    ),
]
SpeedupOption = Annotated[
    float | None,
    typer.Option(min=1, metavar="X", help="Median of a step, as the parent's divided by X.", show_default=False),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        parser=quantity(parse_size), metavar="SIZE", help="Bytes of the step graph, e.g. 64KiB.", show_default=False
    ),
]


BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65536,
        metavar="B",
        help="Points in a step (default: 256 on the hub; with --server what it says of the device class).",
        show_default=False,
    ),
]


def asked_batch(batch: int | None, device_class: str, server: str | None) -> int:
    """Points in a step, as the command line says; a server looks up what is not said.

    Raises:
        InvalidInputError: it is not said, and only a server knows it.
    """
    if batch is None and server is None and device_class != HUB:
        raise InvalidInputError(
            f"without a server nothing says how many points a step has on {device_class!r}.",
            field="--batch",
            hint="Give it, e.g. --batch 1.",
        )
    return batch or DEFAULT_BATCH


def asked_budget(p99: float | None, p50: float | None, speedup: float | None, size: int | None, batch: int) -> Budget:
    """The budget that a command line asks for.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        budget = Budget(p99=p99, p50=p50, speedup=speedup, size=size, batch=batch)
    except ValidationError as error:
        raise as_input_error(error, Budget) from error
    if not budget.is_set:
        raise InvalidInputError(
            "no budget is given.", field="--p99, --p50, --speedup, --size", hint="Give at least one, e.g. --speedup 4."
        )
    return budget


def store_path(store: Path | None, server: str | None = None) -> Path:
    """The store to work on when no server is asked.

    Raises:
        InvalidInputError: both are named.
    """
    if store is not None and server is not None:
        raise InvalidInputError("name either a store or a server.", field="--store, --server")
    return store or load_settings().store


def require_hub(*modules: str) -> None:
    """Refuses a command whose packages are not installed.

    Raises:
        MissingExtraError: names the extra that brings them.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"this command needs {', '.join(missing)}, which the base install does not have.",
            hint="Install them with: pip install 'prunewatch[hub]'",
        )
