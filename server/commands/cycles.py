"""`prunewatch cycles`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from detectors.errors import InvalidInputError
from server.commands.options import JsonOption, NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.progress import Report, progress
from server.commands.tables import console

DEFAULT_LIMIT = 20


def cycles(
    name: NameArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on and show what happens, until Ctrl-C; with --server.")
    ] = False,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="At most so many of the past, the newest.")
    ] = DEFAULT_LIMIT,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the cycles of a detector: what began each, what came of it, and whether its version was kept.

    A cycle begins because somebody asked (`manual`), by the `schedule`, on `drift`, for a `missed_budget` or after a
    `config_change`. What it adopts is on `probation` first: where it misbehaves on live points, the version before
    serves again (`rolled_back`). `prunewatch report` shows one cycle whole.

        prunewatch cycles pump
        prunewatch cycles pump --follow --server 127.0.0.1:8001
        prunewatch cycles pump --json | jq '.cycles[] | select(.outcome == "rejected") | .reason'
    """
    root = store_path(store, server)
    if follow and server is None:
        raise InvalidInputError(
            "there is nothing to follow in a store.", field="--follow", hint="Name the server that runs it: --server."
        )
    if follow and server is not None:
        _follow(server, name, limit, as_json=as_json)
        return
    if server is None:
        found = cycles_in_store(root, name, limit)
    else:
        from server.commands import remote

        found = remote.ask(server, lambda client: client.cycles(name))[:limit]
    if as_json:
        typer.echo(json.dumps({"detector": name, "cycles": [brief(it) for it in found]}))
    elif not found:
        typer.echo(f"{name}: no cycles yet")
    else:
        console().print(cycles_table(found))


def cycles_in_store(root: Path, name: str, limit: int) -> list[dict[str, Any]]:
    """Cycles of a store that nobody else uses, newest first."""
    require_hub("sqlalchemy")
    from server.cycle_watch import cycle_states
    from server.store import Store

    with Store.open(root, create=False) as opened:
        opened.catalog.get_detector(name)
        states = cycle_states(opened.catalog, name, limit)
    return [
        {
            **asdict(it.row),
            "started_seconds": it.row.started,
            "ended_seconds": it.row.ended,
            "adoption": it.adoption.state if it.adoption else "",
            "adoption_reason": it.adoption.reason if it.adoption else "",
        }
        for it in states
    ]


def brief(cycle: Mapping[str, Any]) -> dict[str, Any]:
    """A cycle without its report, as `--json` prints it."""
    names = ("id", "device_class", "trigger", "cause", "started_seconds", "ended_seconds", "outcome", "reason")
    result = cycle.get("result") or {}
    return {
        **{field: cycle[field] for field in names},
        "adoption": cycle["adoption"],
        "adoption_reason": cycle["adoption_reason"],
        "version": result.get("version") if cycle["outcome"] == "adopted" else None,
        "speedup": speedup(result),
    }


def speedup(result: Mapping[str, Any]) -> float | None:
    """Median time of the parent's step over the child's; None where there is no child that was measured."""
    parent, child = result.get("parent") or {}, result.get("child") or {}
    times = parent.get("p50_seconds"), child.get("p50_seconds")
    return times[0] / times[1] if times[0] and times[1] else None


def cycles_table(found: Iterable[Mapping[str, Any]]) -> Table:
    """One row a cycle."""
    table = Table("cycle", "began", "trigger", "class", "outcome", "version", "speed-up", "took", "why")
    for cycle in found:
        told = brief(cycle)
        began = datetime.fromtimestamp(told["started_seconds"], UTC)
        took = None if told["ended_seconds"] is None else told["ended_seconds"] - told["started_seconds"]
        adoption = f", {told['adoption'].replace('_', ' ')}" if told["adoption"] else ""
        why = told["adoption_reason"] or told["reason"]
        table.add_row(
            str(told["id"]),
            f"{began:%Y-%m-%d %H:%M:%S}",
            Text(f"{told['trigger']}: {told['cause']}" if told["cause"] else told["trigger"]),
            Text(told["device_class"]),
            f"{told['outcome']}{adoption}",
            str(told["version"] or "-"),
            f"{told['speedup']:.1f}x" if told["speedup"] else "-",
            "-" if took is None else f"{took:.0f} s",
            Text(why),
        )
    return table


def _follow(server: str, name: str, limit: int, *, as_json: bool) -> None:
    from server.commands import remote

    if as_json:
        remote.ask(server, lambda client: _each(client, name, limit, _said))
        return
    with progress() as report:
        remote.ask(server, lambda client: _each(client, name, limit, _Shown(report)))


async def _each(client: Any, name: str, limit: int, take: Any) -> None:
    async for cycle in client.watch_cycles(name, newest=limit):
        take(cycle)


def _said(cycle: Mapping[str, Any]) -> None:
    now = {key: cycle[key] for key in ("stage", "done", "message")}
    typer.echo(json.dumps({**brief(cycle), **now}))


class _Shown:
    """Shows progress of what runs, and a line when something has been decided."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told: dict[int, str] = {}

    def __call__(self, cycle: Mapping[str, Any]) -> None:
        line = _line(cycle)
        if self._told.get(cycle["id"]) != line:
            self._told[cycle["id"]] = line
            typer.echo(line)
        if cycle["stage"]:
            self._report(f"{cycle['id']} {cycle['stage']}", cycle["done"], cycle["message"])


def _line(cycle: Mapping[str, Any]) -> str:
    told = brief(cycle)
    began = datetime.fromtimestamp(told["started_seconds"], UTC)
    cause = f" ({told['cause']})" if told["cause"] else ""
    faster = f", {told['speedup']:.1f}x as fast" if told["speedup"] and told["outcome"] == "adopted" else ""
    version = f" version {told['version']}" if told["version"] else ""
    adoption = f", {told['adoption'].replace('_', ' ')}" if told["adoption"] else ""
    why = told["adoption_reason"] or told["reason"]
    return (
        f"{began:%Y-%m-%d %H:%M:%S}  cycle {told['id']} of {told['device_class']}, {told['trigger']}{cause}: "
        f"{told['outcome']}{version}{faster}{adoption}{f': {why}' if why else ''}"
    )
