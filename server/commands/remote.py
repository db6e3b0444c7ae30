"""The commands when a server does the work: `--server HOST:PORT`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from detectors.errors import AlreadyExistsError, InvalidInputError, PreconditionError, PrunewatchError
from prunewatch.client import Batch, Client, ServiceError
from server.commands.anomalies import Wanted, described
from server.commands.credentials import credentials
from server.commands.feedback import Remark, shown
from server.commands.frontier import Sought
from server.commands.progress import Report
from server.commands.prune import Asked
from server.config import load_detector_config, split_address
from server.csv_input import Table, joined
from server.loop_settings import Every
from server.quantities import parse_duration
from server.reports import choose, reported
from server.scores_csv import Scores

STREAM_ROWS = 512  # points a message
Answer = TypeVar("Answer")
CONFIGURABLE = {
    "network",
    "options",
    "features",
    "device_classes",
    "false_alarm_rate",
    "seed",
    "fit_after",
    "time",
    "missing",
}
SECTIONS = {"duplicate", "schedule", "error", "max_gap"}


def ask(server: str, work: Callable[[Client], Awaitable[Answer]]) -> Answer:
    """Does `work` with a connection to a server.

    Raises:
        InvalidInputError: `server` is not an address.
        PrunewatchError: what the server answered, or that it can not be reached.
    """
    try:
        split_address(server)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--server") from error

    shown = credentials()

    async def connected() -> Answer:
        async with Client(server, credentials=shown) as client:
            return await work(client)

    try:
        return asyncio.run(connected())
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--server") from error
    except ServiceError as error:
        raise PrunewatchError(error.problem, field=error.field, hint=error.hint) from error


async def fit(
    client: Client, name: str, table: Table, wanted: Mapping[str, Any], report: Report, start: str | None = None
) -> dict[str, Any]:
    """Sends the points and waits for the new version; a detector that does not exist is created as `wanted`.

    Args:
        client: The connection.
        name: The detector.
        table: Normal points.
        wanted: Its configuration.
        report: Told of progress.
        start: The detector whose parent's weights to begin with.
    """
    known = {it["name"]: it for it in await client.list()}.get(name)
    if known is None:
        config = api_config(wanted)
    else:
        require_same(known, wanted)
        table, config = table.in_order_of(known["features"] or table.features), None
    operation = await client.fit_upload(
        name,
        features=table.features,
        stamps=table.stamps,
        values=table.values,
        config=config,
        seed=wanted.get("seed"),
        start_from=start,
    )
    return await _wait(client, operation, report)


async def _wait(client: Client, operation: str, report: Report) -> dict[str, Any]:
    """Waits for the end; Ctrl-C cancels the operation instead of leaving it behind."""
    try:
        return await client.wait_operation(operation, report)
    except asyncio.CancelledError:
        with suppress(ServiceError):
            await client.cancel_operation(operation)
        raise


def require_same(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to fit an existing detector as something else: its configuration is the server's.

    Raises:
        AlreadyExistsError: names the first setting that differs.
    """
    for key in sorted(wanted.keys() & known.keys() - {"features"}):
        if wanted[key] != known[key]:
            raise AlreadyExistsError(
                f"{known['name']!r} exists with {key} {known[key]!r}, not {wanted[key]!r}.",
                field=f"--{key}",
                hint="Choose another name, or delete it first.",
            )


async def learn_from_stream(client: Client, name: str, points: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Creates a detector that fits itself once it has seen so many points."""
    return await client.create(name, {**api_config(wanted), "fit_after": points})


def api_config(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `DetectorConfig` as the API takes them.

    Raises:
        InvalidInputError: a setting can only stand in the server's own file.

    >>> api_config({"network": "lstm", "schedule": {"prune_every": {"points": 5}}, "duplicate": "score"})
    {'network': 'lstm', 'score_duplicates': True, 'prune_every': '5 points'}
    """
    load_detector_config(dict(wanted))
    fields = {key: value for key, value in wanted.items() if key in CONFIGURABLE}
    if "time" in fields:
        fields["time"] = f"TIME_KIND_{fields['time'].upper()}"
    if wanted.get("duplicate") == "score":
        fields["score_duplicates"] = True
    schedule = {key: Every.model_validate(value) for key, value in wanted.get("schedule", {}).items() if value}
    fields.update({key: str(every) for key, every in schedule.items()})
    fields.update(wanted.get("error", {}))
    if wanted.get("max_gap") is not None:
        fields["max_gap"] = f"{parse_duration(wanted['max_gap']):g}s"
    if left := sorted(wanted.keys() - CONFIGURABLE - SECTIONS):
        raise InvalidInputError(
            f"a client can not set {', '.join(left)}.",
            field="--config",
            hint="Put the detector into the configuration file of the server.",
        )
    return fields


async def score(
    client: Client,
    name: str,
    table: Table,
    warmer: Table | None,
    report: Report,
    *,
    contributions: bool = False,
) -> Scores:
    """Scores over one stream from a fresh state, with the same rounds as the local command."""
    detector = await client.get(name)
    if not detector["served"]:
        raise PreconditionError(f"{name!r} is still learning.", field="name", hint="Fit it first.")
    stamps, values, warm_rows = joined(table, warmer, detector["features"], index=detector["time"] == "index")

    async def batches() -> AsyncIterator[Batch]:
        for start in range(0, len(stamps), STREAM_ROWS):
            rows = slice(start, start + STREAM_ROWS)
            yield Batch(values[rows], stamps[rows], series=() if start else (name,))

    replies = []
    shares: dict[int, NDArray[np.float32]] = {}
    rows = 0
    async for reply in client.score_stream(name, batches(), ephemeral=True, contributions=contributions):
        replies.append(reply)
        shares |= {rows - warm_rows + index: each for index, each in reply.contributions.items()}
        rows += len(reply.statuses)
        report("scoring", rows / len(stamps), f"{rows} of {len(stamps)} points")

    def column(key: str) -> NDArray[Any]:
        return np.concatenate([getattr(reply, key) for reply in replies])[warm_rows:]

    return Scores(
        status=column("statuses"),
        score=column("scores"),
        threshold=np.float32(replies[-1].threshold),
        version=column("point_versions"),
        features=detector["features"],
        contributions={row: each for row, each in shares.items() if row >= 0},
    )


async def anomalies(client: Client, wanted: Wanted) -> dict[str, Any]:
    """Anomalies that the server has kept, one more than wanted if there are more."""
    time = (await client.get(wanted.name))["time"]
    start, end = wanted.range(index=time == "index")
    found = client.anomalies(wanted.name, series=wanted.series, start=start, end=end, limit=wanted.limit + 1)
    return {
        "detector": wanted.name,
        "time": time,
        "anomalies": [described(it, it.contributions, it.found_seconds) async for it in found],
    }


async def series(client: Client, name: str, limit: int) -> dict[str, Any]:
    """Series by name, so many at most."""
    try:
        time = (await client.get(name))["time"]
    except ServiceError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        time = "stamp"  # a device has series, and tells nothing else of its detector
    return {"detector": name, "time": time, "series": [asdict(it) async for it in client.series(name, limit=limit)]}


async def say(client: Client, remark: Remark) -> dict[str, Any]:
    """Says something of points, takes it back or lists what was said; see `server.commands.feedback`."""
    name, series, note = remark.name, remark.series, remark.note
    time, rows = (await client.get(name))["time"], []
    if remark.delete is not None:
        await (client.delete_label if remark.label else client.delete_window)(name, remark.delete)
    elif remark.times is None:
        rows = await (client.labels if remark.label else client.windows)(name)
    elif remark.label is not None:
        first, last = remark.stamps(index=time == "index")
        rows = [await client.add_label(name, remark.label, first, last, series=series, note=note)]
    else:
        first, last = remark.stamps(index=time == "index")
        rows = [await client.add_window(name, first, last, series=series, note=note)]
    return shown(remark, time, rows)


async def prune(client: Client, asked: Asked, batch: int | None, report: Report) -> dict[str, Any]:
    """Runs a cycle there and waits for it; without a table on the points that the server has seen.

    Args:
        client: The connection.
        asked: The cycle.
        batch: Points a step; None: what the server says of the device class.
        report: Told of progress.
    """
    limits: dict[str, Any] = {**asked.budget.for_trainer(), "batch": batch}
    points: dict[str, Any] = {}
    if (table := asked.table) is not None:
        points = {"features": table.features, "stamps": table.stamps, "values": table.values}
    operation = await client.prune(
        asked.name,
        **limits,
        **points,
        device_class=asked.device_class,
        dry_run=asked.dry_run,
        fresh=asked.fresh,
        seed=asked.seed,
    )
    return await _wait(client, operation, report)


async def report(client: Client, name: str, device_class: str, cycle: int | None) -> dict[str, Any]:
    """The report of a cycle that the server has in its book; see `server.commands.report.report_in_store`."""
    time = (await client.get(name))["time"]
    return reported(name, time, choose(name, await client.cycles(name), device_class, cycle), {})


async def frontier(client: Client, sought: Sought, report: Report) -> dict[str, Any]:
    """The frontier that the server has, or the one that it builds when it has none."""
    if not sought.rebuild:
        try:
            shown = await client.frontier(sought.name, device_class=sought.device_class, batch=sought.batch)
        except ServiceError as error:
            if error.code != "NOT_FOUND":
                raise
        else:
            sought.require_shown()
            return shown
    operation = await client.build_frontier(
        sought.name,
        device_class=sought.device_class,
        batch=sought.batch,
        points=sought.points,
        seed=sought.seed,
    )
    return await _wait(client, operation, report)


def served(detector: Mapping[str, Any], device_class: str) -> int:
    """The version that serves on a device class."""
    return int(next(it["version"] for it in detector["served"] if it["device_class"] == device_class))
