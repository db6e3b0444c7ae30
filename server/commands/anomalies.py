"""`prunewatch anomalies`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from detectors.errors import InvalidInputError
from server.commands.options import JsonOption, NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.tables import anomalies_table, console
from server.csv_input import is_integer, stamp_of

DEFAULT_LIMIT = 50


@dataclass(frozen=True)
class Wanted:
    """Which anomalies to show; times as they were written, where they were."""

    name: str
    series: str | None
    since: str | None
    until: str | None
    limit: int

    def range(self, *, index: bool) -> tuple[int | None, int | None]:
        """Start and end as stamps of a detector that counts rows (`index`) or has times.

        Raises:
            InvalidInputError: one is no stamp, or not one of this detector, or the end comes before the start.
        """
        start, end = asked_stamp("--since", self.since, index=index), asked_stamp("--until", self.until, index=index)
        if start is not None and end is not None and end < start:
            raise InvalidInputError(f"{self.until} is before --since {self.since}.", field="--until")
        return start, end


def anomalies(
    name: NameArgument,
    series: Annotated[
        str | None, typer.Option(metavar="SERIES", help="Only of this series.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only points from this time on: ISO-8601 or an integer.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only points before this time.", show_default=False)
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=10**6, help="At most so many, the newest.")
    ] = DEFAULT_LIMIT,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the anomalies that a detector has found in the points streamed to it, newest first.

    Each with the time of the point, its series, its score and the threshold, the version that scored it, and the
    features that contributed most with their share of the error. A server keeps the newest ones, over restarts too;
    what `prunewatch score` flags is in its own output and not here. A time without an offset is UTC; a detector that
    counts rows takes row numbers.

        prunewatch anomalies pump
        prunewatch anomalies pump --series north --since 2024-05-01T12:00:00Z --server 127.0.0.1:8001
        prunewatch anomalies pump --limit 1000 --json | jq .anomalies
    """
    root = store_path(store, server)
    wanted = Wanted(name, series, since, until, limit)
    for option, text in (("--since", since), ("--until", until)):
        asked_stamp(option, text, index=False)  # before anything is asked
    if server is None:
        found = anomalies_in_store(root, wanted)
    else:
        from server.commands import remote

        found = remote.ask(server, lambda client: remote.anomalies(client, wanted))
    more = len(found["anomalies"]) > limit
    found["anomalies"] = found["anomalies"][:limit]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found["anomalies"]:
        typer.echo(f"{name}: no anomalies{_narrowed(wanted)}")
        return
    console().print(anomalies_table(found))
    if more:
        typer.echo(f"The newest {limit}; there are more: --limit {10 * limit}", err=True)


def anomalies_in_store(root: Path, wanted: Wanted) -> dict[str, Any]:
    """The anomalies in a store that nobody else uses, one more than wanted if there are more."""
    require_hub("sqlalchemy", "pyarrow")
    from server.anomaly_keeping import AnomalyQuery
    from server.config import load_detector_config
    from server.store import Store

    with Store.open(root, create=False) as store:
        time = load_detector_config(store.catalog.get_detector(wanted.name).config).time
        start, end = wanted.range(index=time == "index")
        query = AnomalyQuery(wanted.name, wanted.series, start, end, limit=wanted.limit + 1)
        found = [described(it, dict(it.shares), it.found) for it in store.catalog.anomalies(query)]
    return {"detector": wanted.name, "time": time, "anomalies": found}


def described(anomaly: Any, contributions: Mapping[str, float], found_seconds: float) -> dict[str, Any]:
    """An anomaly of the catalog or of the client as `--json` says it."""
    fields = ("series", "stamp", "score", "threshold", "version")
    return {
        **{field: getattr(anomaly, field) for field in fields},
        "contributions": dict(contributions),
        "found_seconds": found_seconds,
    }


def asked_stamp(option: str, text: str | None, *, index: bool) -> int | None:
    """A time of the command line as a stamp of a detector that counts rows (`index`) or has times.

    Raises:
        InvalidInputError: it is none; `option` says where it stood.
    """
    if text is None:
        return None
    if index and not is_integer(text):
        raise InvalidInputError(f"{text!r} is no row number.", field=option, hint="This detector counts rows.")
    try:
        return stamp_of(text)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field=option, hint="Write 2024-05-01T12:00:00Z, for example.") from error


def _narrowed(wanted: Wanted) -> str:
    """What was asked for, where nothing was found."""
    series = f" of series {wanted.series}" if wanted.series else ""
    since = f" since {wanted.since}" if wanted.since else ""
    return f"{series}{since}{f' until {wanted.until}' if wanted.until else ''}"
