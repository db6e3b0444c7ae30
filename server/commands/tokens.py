"""`prunewatch tokens`: who may call a server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import JsonOption, StoreOption, quantity, store_path
from server.layout import TOKENS
from server.quantities import parse_duration
from server.security.principals import SCOPES
from server.security.tokens import make_token, read_tokens, remove_token

tokens = typer.Typer(
    name="tokens",
    no_args_is_help=True,
    help="Make, list and remove tokens, by which a server with `auth` knows who calls.\n\n"
    "Scopes: `score` scores and reads; `operate` also fits, prunes, rolls back and labels; `admin` also creates, "
    "deletes and enrols devices; `device` is for devices only. A running server sees changes in a second.",
)
FileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The file of tokens (default: tokens.json in the store).", show_default=False),
]


@tokens.command("make")
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; stands in the log.", show_default=False)],
    scope: Annotated[
        list[str], typer.Option(metavar="SCOPE", help=f"What it allows; may be given twice: {', '.join(SCOPES)}.")
    ],
    expires: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration), metavar="TIME", help="It ends after so long, e.g. 90d.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write it into this file, for you alone, not to the screen.", show_default=False
        ),
    ] = None,
    file: FileOption = None,
    store: StoreOption = None,
) -> None:
    """Make a token and show it, this once: only its hash is kept.

    prunewatch tokens make pipeline --scope score --out pipeline.token
    prunewatch tokens make ann --scope operate --expires 90d
    """
    token = make_token(_file(file, store), name, scope, now=time.time(), valid_seconds=expires)
    if out is None:
        typer.echo(token)
        return
    out.touch(mode=0o600, exist_ok=False)
    out.write_text(f"{token}\n")
    typer.echo(f"{out} holds the token of {name}")


@tokens.command("list")
def show(file: FileOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List tokens: names, scopes, when each ends. The tokens themselves are not known to anybody but their owners."""
    found = read_tokens(_file(file, store))
    if as_json:
        shown = [token.model_dump(include={"name", "scopes", "created", "expires"}) for token in found]
        typer.echo(json.dumps({"tokens": shown}))
        return
    now = time.time()
    for token in found:
        end = "never ends" if token.expires is None else f"ends {time.strftime('%F', time.gmtime(token.expires))}"
        typer.echo(f"{token.name:24} {','.join(token.scopes):16} {end if token.counts(now) else 'has ended'}")
    if not found:
        typer.echo("there are no tokens yet: prunewatch tokens make NAME --scope score")


@tokens.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token.", show_default=False)],
    file: FileOption = None,
    store: StoreOption = None,
) -> None:
    """Take a token away; calls with it are refused from then on. Streams that are open with it go on until they end."""
    remove_token(_file(file, store), name)
    typer.echo(f"the token of {name} counts no more")


def _file(file: Path | None, store: Path | None) -> Path:
    return file or store_path(store) / TOKENS
