"""`prunewatch devices`, `device-classes` and `rollouts`: the devices of a hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from detectors.errors import InvalidInputError
from server.commands.options import JsonOption, P50Option, P99Option, ServerOption, SpeedupOption, quantity
from server.commands.tables import console, duration_text, printable
from server.quantities import format_size, parse_duration, parse_size


class DeviceAction(StrEnum):
    """What `prunewatch devices` does."""

    LIST = "list"
    SHOW = "show"
    ENROL_TOKEN = "enrol-token"  # noqa: S105  (a word, no secret)
    REMOVE = "remove"


class ClassAction(StrEnum):
    """What `prunewatch device-classes` does."""

    LIST = "list"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class RolloutAction(StrEnum):
    """What `prunewatch rollouts` does."""

    LIST = "list"
    SHOW = "show"
    ADVANCE = "advance"
    STOP = "stop"


def devices(
    action: Annotated[DeviceAction, typer.Argument(metavar="ACTION", help="What to do.")] = DeviceAction.LIST,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.", show_default=False)] = "",
    device_class: Annotated[
        str,
        typer.Option(metavar="CLASS", help="Only devices of this class; of a token: its class.", show_default=False),
    ] = "",
    valid: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration),
            metavar="TIME",
            help="How long a token may be used (default: a day).",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a device is removed.")] = False,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the devices of a hub, show one, make a token to enrol one with, or remove one.

    ACTION is `list` (the default), `show`, `enrol-token` or `remove`. A token is for one device of a class, and for the
    device NAME alone where it is given; the hub keeps only its hash, so it is shown once. A device that was removed
    scores on with what it has, but is not let in again.

        prunewatch devices --server 127.0.0.1:8001
        prunewatch devices enrol-token --device-class pi4 --server 127.0.0.1:8001
        prunewatch devices show north-7 --server 127.0.0.1:8001 --json | jq .served
        prunewatch devices remove north-7 --server 127.0.0.1:8001
    """
    address = _hub(server)
    if action in {DeviceAction.SHOW, DeviceAction.REMOVE}:
        _require(name, "NAME")
    if action is DeviceAction.ENROL_TOKEN:
        _require(device_class, "--device-class")
        made = _ask(address, lambda it: it.create_token(device_class, device=name, valid_seconds=valid))
        expires = _time(made["expire_seconds"])
        _print(made, as_json, lambda: f"{made['token']}\nfor one device of {device_class}, until {expires}; shown once")
    elif action is DeviceAction.REMOVE:
        if not yes:
            typer.confirm(f"Remove {name}? It has to be enrolled again to come back.", abort=True)
        _ask(address, lambda it: it.delete_device(name))
        _print({"removed": name}, as_json, lambda: f"{name}: removed")
    elif action is DeviceAction.SHOW:
        found = _ask(address, lambda it: it.device(name))
        _print(found, as_json, lambda: _devices_table([found]), lambda: _served_table(found["served"]))
    else:
        listed = _ask(address, lambda it: it.devices(device_class))
        _print({"devices": listed}, as_json, lambda: _devices_table(listed) if listed else "no devices")


def device_classes(
    action: Annotated[ClassAction, typer.Argument(metavar="ACTION", help="What to do.")] = ClassAction.LIST,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The class.", show_default=False)] = "",
    p99: P99Option = None,
    p50: P50Option = None,
    speedup: SpeedupOption = None,
    size: Annotated[
        int | None,
        typer.Option(
            parser=quantity(parse_size), metavar="SIZE", help="Bytes of the step graph, e.g. 64KiB.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=65536, metavar="B", help="Points in a step.", show_default=False)
    ] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List device classes, make one, change what its devices can afford, or forget one.

    ACTION is `list` (the default), `create`, `update` or `delete`. Classes of the server's configuration file are
    changed there. One that a detector or a device names can not be deleted.

        prunewatch device-classes --server 127.0.0.1:8001
        prunewatch device-classes create pi4 --p99 2ms --batch 64 --size 200KiB --server 127.0.0.1:8001
        prunewatch device-classes update pi4 --p99 1ms --server 127.0.0.1:8001
    """
    address = _hub(server)
    given = {"p99_seconds": p99, "p50_seconds": p50, "speedup": speedup, "size_bytes": size, "batch": batch}
    budget = {key: value for key, value in given.items() if value is not None}
    if action is not ClassAction.LIST:
        _require(name, "NAME")
    if action is ClassAction.DELETE:
        _ask(address, lambda it: it.delete_device_class(name))
        _print({"deleted": name}, as_json, lambda: f"{name}: deleted")
        return
    if action is ClassAction.UPDATE and not budget:
        raise InvalidInputError("nothing is to change.", field="--p99", hint="Give what its devices can afford.")
    if action is ClassAction.LIST:
        listed = _ask(address, lambda it: it.device_classes())
        _print({"device_classes": listed}, as_json, lambda: _classes_table(listed))
        return
    made = _ask(
        address,
        lambda it: (it.create_device_class if action is ClassAction.CREATE else it.update_device_class)(name, budget),
    )
    _print(made, as_json, lambda: _classes_table([made]))


def rollouts(
    action: Annotated[RolloutAction, typer.Argument(metavar="ACTION", help="What to do.")] = RolloutAction.LIST,
    number: Annotated[int | None, typer.Argument(metavar="ID", min=1, help="The roll-out.", show_default=False)] = None,
    detector: Annotated[
        str, typer.Option(metavar="NAME", help="Only those of this detector.", show_default=False)
    ] = "",
    device_class: Annotated[
        str, typer.Option(metavar="CLASS", help="Only those of this class.", show_default=False)
    ] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it is stopped.", show_default=False)] = "",
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List how new versions reach devices, take one a stage further, or stop one.

    ACTION is `list` (the default), `show`, `advance` or `stop`. A version goes to a few canaries, to a share of the
    class, then to all; each stage waits until its devices have proven themselves. It stops by itself where devices
    refuse it, fall back, are slower than their budget or flood with alarms; then those that took it go back.

        prunewatch rollouts --server 127.0.0.1:8001
        prunewatch rollouts advance 12 --server 127.0.0.1:8001
        prunewatch rollouts stop 12 --reason "smells of smoke" --server 127.0.0.1:8001
    """
    address = _hub(server)
    if action is RolloutAction.LIST:
        listed = _ask(address, lambda it: it.rollouts(detector, device_class))
        _print({"rollouts": listed}, as_json, lambda: _rollouts_table(listed) if listed else "no roll-outs")
        return
    if number is None:
        raise InvalidInputError("it is not said which one.", field="ID", hint="List them: prunewatch rollouts.")
    calls: dict[RolloutAction, Callable[[Any], Any]] = {
        RolloutAction.SHOW: lambda it: it.rollout(number),
        RolloutAction.ADVANCE: lambda it: it.advance_rollout(number),
        RolloutAction.STOP: lambda it: it.stop_rollout(number, reason),
    }
    found = _ask(address, calls[action])
    _print(found, as_json, lambda: _rollouts_table([found]))


def _hub(server: str | None) -> str:
    if server is None:
        raise InvalidInputError(
            "devices belong to a running server.", field="--server", hint="Say which, e.g. --server 127.0.0.1:8001."
        )
    return server


def _require(given: str, field: str) -> None:
    if not given:
        raise InvalidInputError("is missing.", field=field, hint="Say which one; see --help.")


def _ask(server: str, work: Callable[[Any], Any]) -> Any:
    from server.commands import remote

    return remote.ask(server, lambda client: work(client.fleet))


def _print(found: Mapping[str, Any], as_json: bool, *shown: Callable[[], Table | str]) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    for each in shown:
        part = each()
        typer.echo(part) if isinstance(part, str) else console().print(part)


def _devices_table(found: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("device", "class", "link", "heard of", "detectors", "machine", "waiting", "dropped")
    for it in found:
        facts = it["facts"]
        cells = (
            it["name"],
            it["device_class"],
            "open" if it["connected"] else "-",
            _time(it["last_seen_seconds"]),
            ", ".join(f"{each['detector']} {each['state'].replace('_', ' ')}" for each in it["served"]) or "-",
            printable(f"{facts['architecture']}, {facts['cores']} cores") if facts["architecture"] else "-",
            format_size(it["waiting_bytes"]),
            str(it["dropped_reports"]),
        )
        table.add_row(*map(Text, cells))
    return table


def _served_table(served: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("detector", "bundle", "release", "asked", "state", "points", "flagged", "p50 / p99", "why")
    for it in served:
        cells = (
            it["detector"],
            it["bundle"][:12],
            str(it["counter"]),
            str(it["asked_counter"]),
            it["state"].replace("_", " "),
            f"{it['points']:,}",
            f"{it['flagged']:,}",
            f"{duration_text(it['p50_seconds'])} / {duration_text(it['p99_seconds'])}",
            printable(it["reason"]),
        )
        table.add_row(*map(Text, cells))
    return table


def _classes_table(found: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("class", "p99", "p50", "speed-up", "size", "batch", "devices", "connected", "made by")
    for it in found:
        cells = (
            it["name"],
            duration_text(it["p99_seconds"]),
            duration_text(it["p50_seconds"]),
            "-" if it["speedup"] is None else f"{it['speedup']:g}",
            "-" if it["size_bytes"] is None else format_size(it["size_bytes"]),
            str(it["batch"]),
            str(it["devices"]),
            str(it["connected"]),
            "configuration" if it["configured"] else "API",
        )
        table.add_row(*map(Text, cells))
    return table


def _rollouts_table(found: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("id", "detector", "class", "version", "stage", "asked", "serving", "failed", "began", "why")
    for it in found:
        cells = (
            str(it["id"]),
            it["detector"],
            it["device_class"],
            str(it["version"]),
            it["stage"],
            str(it["asked"]),
            str(it["serving"]),
            str(it["failed"]),
            _time(it["created_seconds"]),
            printable(it["reason"]),
        )
        table.add_row(*map(Text, cells))
    return table


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
