"""`prunewatch feedback` and `prunewatch maintenance`: what people know of points."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from detectors.errors import InvalidInputError
from server.commands.anomalies import asked_stamp
from server.commands.options import JsonOption, NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.tables import console, printable, stamp_text
from server.records import Label

SeriesOption = Annotated[
    str, typer.Option(metavar="SERIES", help="Only the points of this series (default: of all).", show_default=False)
]
NoteOption = Annotated[str, typer.Option(metavar="TEXT", help="Why, or who says so.", show_default=False)]
ListOption = Annotated[bool, typer.Option("--list", help="List what there is, newest first.")]


@dataclass(frozen=True)
class Remark:
    """What is asked: to say something of points, to take it back, or to list what was said.

    Attributes:
        name: The detector.
        label: `anomaly` or `normal`; None: a maintenance window.
        times: First and last point, as they were written; None: nothing is added.
        options: How the times are called on the command line.
        delete: The number of what is taken back.
        series: Empty: all.
        note: Why.
    """

    name: str
    label: Label | None
    times: tuple[str, str] | None
    options: str
    delete: int | None
    series: str
    note: str

    def stamps(self, *, index: bool) -> tuple[int, int]:
        """First and last stamp for a detector that counts rows (`index`) or has times.

        Raises:
            InvalidInputError: one is no stamp, or not one of this detector, or the last comes before the first.
        """
        assert self.times is not None
        first, last = (asked_stamp(self.options, text, index=index) or 0 for text in self.times)
        if last < first:
            raise InvalidInputError(f"{self.times[1]} is before {self.times[0]}.", field=self.options)
        return first, last


def feedback(
    name: NameArgument,
    anomaly: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="FROM TO", help="These points are anomalies, flagged or not; both are included.", show_default=False
        ),
    ] = None,
    normal: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FROM TO", help="These points are normal, flagged or not.", show_default=False),
    ] = None,
    series: SeriesOption = "",
    note: NoteOption = "",
    listed: ListOption = False,
    delete: Annotated[
        int | None, typer.Option(metavar="ID", min=1, help="Take this label back.", show_default=False)
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what points were, or list what was said.

    Anomalies are never learned from, nor are the points around them, and a pruned detector that does not find those
    that its parent finds is not adopted. Points that are normal after all are learned from, although they were flagged.
    The newest label of a point counts. What serves does not change before the next fit or cycle. A time without an
    offset is UTC; a detector that counts rows takes row numbers.

        prunewatch feedback pump --anomaly 2024-05-01T12:00:00Z 2024-05-01T12:20:00Z --note "bearing 3 ran hot"
        prunewatch feedback pump --normal 2024-05-02T08:00:00Z 2024-05-02T09:00:00Z --series north
        prunewatch feedback pump --list --json | jq .labels
        prunewatch feedback pump --delete 12
    """
    _require_one(anomaly=anomaly, normal=normal, list=listed or None, delete=delete)
    label: Label = "anomaly" if anomaly else "normal"
    times = anomaly or normal
    remark = Remark(name, label, times, f"--{label}", delete, series, note)
    _done(remark, store, server, as_json)


def maintenance(
    name: NameArgument,
    first: Annotated[str | None, typer.Argument(metavar="FROM", help="The first point.", show_default=False)] = None,
    last: Annotated[str | None, typer.Argument(metavar="TO", help="The last point.", show_default=False)] = None,
    series: SeriesOption = "",
    note: NoteOption = "",
    listed: ListOption = False,
    delete: Annotated[
        int | None, typer.Option(metavar="ID", min=1, help="Take this window back.", show_default=False)
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan or note a maintenance window: its points are scored, but raise no alarm and are not learned from.

    It takes effect at once, also for points that are still to come, until it is taken back. Anomalies that were found
    before stay in the list. A time without an offset is UTC; a detector that counts rows takes row numbers.

        prunewatch maintenance pump 2024-05-01T12:00:00Z 2024-05-01T18:00:00Z --note "new bearing"
        prunewatch maintenance pump --list
        prunewatch maintenance pump --delete 3
    """
    if (first is None) != (last is None):
        raise InvalidInputError("the last point is missing.", field="TO", hint="Give both, FROM and TO.")
    times = None if first is None or last is None else (first, last)
    _require_one(times=times, list=listed or None, delete=delete)
    _done(Remark(name, None, times, "FROM TO", delete, series, note), store, server, as_json)


def _require_one(**asked: object) -> None:
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InvalidInputError("these do not go together.", field=", ".join(given).replace("--times", "FROM TO"))


def _done(remark: Remark, store: Path | None, server: str | None, as_json: bool) -> None:
    """Does it in a store or on a server, and prints what is there or what is new."""
    root = store_path(store, server)
    if remark.times is not None:
        remark.stamps(index=False)  # before anything is asked
    if server is None:
        found = said_in_store(root, remark)
    else:
        from server.commands import remote

        found = remote.ask(server, lambda client: remote.say(client, remark))
    if as_json:
        typer.echo(json.dumps(found))
    elif remark.delete is not None:
        typer.echo(f"{remark.name}: took {remark.delete} back")
    elif not (rows := found["labels" if remark.label else "windows"]):
        typer.echo(f"{remark.name}: no {'labels' if remark.label else 'maintenance windows'}")
    else:
        console().print(_table(rows, index=found["time"] == "index"))


def said_in_store(root: Path, remark: Remark) -> dict[str, Any]:
    """Does what is asked in a store that nobody else uses; what `--json` prints."""
    require_hub("sqlalchemy", "pyarrow")
    from server.config import load_detector_config
    from server.store import Store

    with Store.open(root, create=False) as store:
        catalog, name = store.catalog, remark.name
        time = load_detector_config(catalog.get_detector(name).config).time
        series, note = remark.series, remark.note
        rows: list[Any] = []
        if remark.delete is not None:
            (catalog.delete_label if remark.label else catalog.delete_window)(name, remark.delete)
        elif remark.times is None:
            rows += catalog.labels(name) if remark.label else catalog.windows(name)
        elif remark.label is not None:
            first, last = remark.stamps(index=time == "index")
            rows.append(catalog.add_label(name, remark.label, first, last, series=series, note=note))
        else:
            first, last = remark.stamps(index=time == "index")
            rows.append(catalog.add_window(name, first, last, series=series, note=note))
    return shown(remark, time, map(_described, rows))


def shown(remark: Remark, time: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What `--json` prints: the rows that there are, the one that is new, or none where one was taken back."""
    return {"detector": remark.name, "time": time, "labels" if remark.label else "windows": list(rows)}


def _described(row: Any) -> dict[str, Any]:
    fields = dict(vars(row))
    del fields["detector"]
    return {**fields, "created_seconds": fields.pop("created")}


def _table(rows: Iterable[Mapping[str, Any]], *, index: bool) -> Table:
    text = str if index else stamp_text
    table = Table("id", "from", "to", "series", "label", "note")
    for it in rows:
        cells = (
            str(it["id"]),
            text(it["first_stamp"]),
            text(it["last_stamp"]),
            printable(it["series"]) or "all",
            it.get("label", "maintenance"),
            printable(it["note"]),
        )
        table.add_row(*map(Text, cells))  # names and notes are not ours: nothing in them is markup
    return table
