"""`prunewatch show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from server.commands.options import JsonOption, NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.tables import console, versions_table


def show(
    name: NameArgument, store: StoreOption = None, server: ServerOption = None, as_json: JsonOption = False
) -> None:
    """Show a detector: its versions, parents and children, sizes, latencies, where they came from, and what serves.

    A version has one parent, the dense network, and a child for each device class it was pruned for. Times are of one
    step on a device class with the batch in parentheses.

        prunewatch show pump
        prunewatch show pump --json | jq .served
    """
    root = store_path(store, server)
    if server is None:
        described = describe_in_store(root, name)
    else:
        from server.commands import remote

        described = remote.ask(server, lambda client: client.show(name))
    if as_json:
        typer.echo(json.dumps(described))
        return
    out = console()
    out.print(_headline(described), markup=False)
    for served in described["served"]:
        pinned, before = " (pinned)" if served["pinned"] else "", served["previous_version"]
        came_after = f", before it {before}" if before else ""
        out.print(f"  {served['device_class']}: version {served['version']}{pinned}{came_after}", markup=False)
    out.print(versions_table(described))


def _headline(described: dict[str, Any]) -> str:
    problem = f" ({described['problem']})" if described["problem"] else ""
    frozen = ", frozen" if described["frozen"] else ""
    features = described["features"]
    return (
        f"{described['name']}: {described['network']}, {described['state']}{problem}{frozen}, "
        f"{len(features)} features, "
        f"threshold {described['threshold']:.4g} (false alarm rate {described['false_alarm_rate']:g}), "
        f"{described['history_points']:,} points kept"
    )


def describe_in_store(root: Path, name: str) -> dict[str, Any]:
    """The same from a store that nobody else uses."""
    require_hub("sqlalchemy", "pyarrow")
    from server.describe import describe
    from server.store import Store

    with Store.open(root, create=False) as store:
        return describe(store, name)
