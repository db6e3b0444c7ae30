"""Arguments and options that several commands share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from detectors.errors import InvalidInputError, MissingExtraError
from server.config import load_settings

Value = TypeVar("Value")

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


def store_path(store: Path | None, server: str | None = None) -> Path:
    """The store to work on when no server is asked.

    Raises:
        InvalidInputError: both are named.
    """
    if store is not None and server is not None:
        raise InvalidInputError("name either a store or a server.", field="--store, --server")
    return store or load_settings().store


def quantity(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Makes a parser of durations or sizes explain itself on the command line."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.") from error

    return parsed


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
