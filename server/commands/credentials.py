"""`--ca`, `--token-file`, `--certificate` and `--key` of every command that asks a server."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInputError

if TYPE_CHECKING:
    from prunewatch.credentials import Credentials

CA, TOKEN_FILE = "PRUNEWATCH_CA", "PRUNEWATCH_TOKEN_FILE"
PANEL = "Who asks, with --server"


def _option(metavar: str, said: str) -> Any:
    return typer.Option(metavar=metavar, help=said, show_default=False, rich_help_panel=PANEL)


OPTIONS = {
    "ca": _option("FILE", f"Authorities that may vouch for the server: talk TLS (default: ${CA})."),
    "token_file": _option("FILE", f"The token to show (default: ${TOKEN_FILE})."),
    "certificate": _option("FILE", "Your own certificate, where the server asks for one."),
    "key": _option("FILE", "Its private key."),
}
_given: ContextVar[dict[str, Path | None]] = ContextVar("credentials")


def with_credentials(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with these options, if it has `--server`."""
    signature = inspect.signature(command)
    if "server" not in signature.parameters:
        return command

    @functools.wraps(command)
    def asking(**given: Any) -> Any:
        _given.set({name: given.pop(name) for name in OPTIONS})
        return command(**given)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option])
        for name, option in OPTIONS.items()
    ]
    resolved = inspect.signature(command, eval_str=True)
    parameters = [it.replace(kind=inspect.Parameter.KEYWORD_ONLY) for it in resolved.parameters.values()]
    asking.__signature__ = resolved.replace(parameters=[*parameters, *more])  # type: ignore[attr-defined]
    asking.__annotations__ = {it.name: it.annotation for it in [*parameters, *more]}
    return asking


def credentials() -> Credentials:
    """What the command line and the environment say.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: they do not go together, or a file holds no token.
    """
    from prunewatch.credentials import Credentials
    from server.security.tokens import read_token_file

    given = _given.get({})
    token_file = given.get("token_file") or _path(TOKEN_FILE)
    token = None if token_file is None else read_token_file(token_file)
    ca = given.get("ca") or _path(CA)
    for name in ("ca", "certificate", "key"):
        path = ca if name == "ca" else given.get(name)
        if path is not None and not path.is_file():
            raise InvalidInputError("there is no such file.", field=f"--{name} {path}")
    try:
        return Credentials(token, ca, given.get("certificate"), given.get("key"))
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--ca, --certificate, --key") from error


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
