"""`prunewatch series`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from detectors.errors import InvalidInputError
from server.commands.options import JsonOption, NameArgument, ServerOption
from server.commands.tables import console, printable, series_table

DEFAULT_LIMIT = 50


def series(
    name: NameArgument,
    reset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERIES", help="Let this series warm up again. May be given several times.", show_default=False
        ),
    ] = None,
    delete: Annotated[
        list[str] | None,
        typer.Option(metavar="SERIES", help="Forget this series. May be given several times.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10**6, help="List at most so many.")] = DEFAULT_LIMIT,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the series of a detector by name, let some warm up again, or forget some.

    A series is one stream of points with a state of its own. The list says of each when its newest point was, how many
    it has taken since it began, whether it warms up, and when the server last heard of it.

    Reset a series after a repair or a change of the machine: state and last points are forgotten, and the next
    points have no score until it is warm again. Its last stamp stays, so nothing is taken twice. Delete it when the
    machine is gone, or its clock was wrong: all is forgotten, and a point that comes later begins a new series,
    whatever its stamp. Both work under open streams. Points kept for training and anomalies that were found stay.

        prunewatch series pump --server 127.0.0.1:8001
        prunewatch series pump --server 127.0.0.1:8001 --reset north --reset south
        prunewatch series pump --server 127.0.0.1:8001 --delete old --json
    """
    if reset and delete:
        raise InvalidInputError("a series is reset or deleted.", field="--reset, --delete", hint="Ask for one of them.")
    if server is None:
        raise InvalidInputError(
            "series live in a running server.", field="--server", hint="Say which, e.g. --server 127.0.0.1:8001."
        )
    from server.commands import remote

    if names := list(dict.fromkeys(reset or delete or ())):
        count = remote.ask(server, lambda it: it.reset_series(name, names) if reset else it.delete_series(name, names))
        done = "reset" if reset else "deleted"
        if as_json:
            typer.echo(json.dumps({"detector": name, done: count, "unknown": len(names) - count}))
        else:
            typer.echo(f"{name}: {done} {count} of {len(names)} series{_missing(names, count)}")
        return
    found = remote.ask(server, lambda it: remote.series(it, name, limit + 1))
    more = len(found["series"]) > limit
    found["series"] = found["series"][:limit]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found["series"]:
        typer.echo(f"{name}: no series")
        return
    console().print(series_table(found))
    if more:
        typer.echo(f"The first {limit} by name; there are more: --limit {10 * limit}", err=True)


def _missing(names: list[str], count: int) -> str:
    if count == len(names):
        return ""
    return f"; {printable(names[0])} is not known" if len(names) == 1 else "; the others are not known"
