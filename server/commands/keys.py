"""`prunewatch keys`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from detectors.errors import InvalidInputError
from server.commands.options import JsonOption, ServerOption, StoreOption, require_hub, store_path
from server.commands.tables import console


class KeyAction(StrEnum):
    """What `prunewatch keys` does."""

    LIST = "list"
    ROTATE = "rotate"


def keys(
    action: Annotated[KeyAction, typer.Argument(metavar="ACTION", help="What to do.")] = KeyAction.LIST,
    retire_older: Annotated[
        bool, typer.Option("--retire-older", help="With `rotate`: devices are to trust no older key any more.")
    ] = False,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys that sign what devices run, or make a new one.

    ACTION is `list` (the default) or `rotate`. The first key is made when the first device is enrolled, or by `rotate`.
    A new one is vouched for by that which each device trusts already, so devices follow by themselves when they are
    next connected. Tokens and exported files that were made before `--retire-older` are worth nothing after it.

        prunewatch keys --server 127.0.0.1:8001
        prunewatch keys rotate --retire-older --server 127.0.0.1:8001
    """
    root = store_path(store, server)
    if retire_older and action is not KeyAction.ROTATE:
        raise InvalidInputError("nothing is made.", field="--retire-older", hint="Use it with `rotate`.")
    if server is None:
        found = _in_store(root, action, retire_older=retire_older)
    else:
        from server.commands import remote

        if action is KeyAction.ROTATE:
            remote.ask(server, lambda client: client.fleet.rotate_signing_key(retire_older=retire_older))
        found = remote.ask(server, lambda client: client.fleet.signing_keys())
    if as_json:
        typer.echo(json.dumps({"keys": found}))
    elif not found:
        typer.echo("no keys yet: the first one is made when the first device is enrolled")
    else:
        console().print(_table(found))


def _in_store(root: Path, action: KeyAction, *, retire_older: bool) -> list[dict[str, Any]]:
    require_hub("sqlalchemy", "pyarrow")
    from server.fleet.keys import Keys
    from server.store import Store

    with Store.open(root, create=False) as opened:
        held = Keys(opened.root, opened.catalog.clock)
        if action is KeyAction.ROTATE:
            held.rotate(retire_older=retire_older)
        return [
            {
                "key_id": it.key_id,
                "public_key": it.public_key,
                "created_seconds": float(it.created),
                "current": number == 0,
            }
            for number, it in enumerate(held.known)
        ]


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table("key", "made", "signs", "public key")
    for it in found:
        made = datetime.fromtimestamp(it["created_seconds"], UTC)
        table.add_row(it["key_id"], f"{made:%Y-%m-%d %H:%M:%S}", "yes" if it["current"] else "", it["public_key"])
    return table
