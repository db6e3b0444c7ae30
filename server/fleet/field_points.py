"""Points that devices send, on their way into the history: once each, whatever comes twice and whenever a process dies.

A report's points are put into the catalog (`field_inbox`) in the transaction that counts the report as kept. From there
they go into the history, which is made of files; then they leave the inbox. Where a process dies in between, the next
one looks which of them the history has already.

Runs of a series that do not follow each other are set apart in the history by a row of infinities, which ends every
stretch that is learned from (`server.stretches`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, func, select

from detectors.failpoints import failpoint
from server import schema
from server.catalog import Catalog
from server.fleet.reports import FieldRun
from server.host import Host
from server.hosted import HostedDetector
from server.keeping import Kept
from server.segments import VALUE_PREFIX

SPANS_KEPT = 500
"""Of a series, the newest: what comes again from before them is known by its report's number alone."""
RUNS_AT_ONCE = 200
logger = logging.getLogger("prunewatch.fleet.field_points")


@dataclass(frozen=True)
class InboxRow:
    """A run that is not in the history yet."""

    id: int
    series: str
    stamps: NDArray[np.int64]
    values: NDArray[np.float32]
    scores: NDArray[np.float32]
    flagged: NDArray[np.bool_]

    def only(self, rows: NDArray[np.bool_]) -> InboxRow:
        """Some of its points."""
        return InboxRow(
            self.id, self.series, self.stamps[rows], self.values[rows], self.scores[rows], self.flagged[rows]
        )


def take_run(connection: Connection, run: FieldRun, series: str, flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Puts what is new of a run into the inbox.

    Args:
        connection: A transaction that writes.
        run: Verified.
        series: Its name here.
        flagged: [N].

    Returns:
        [N]; which of its points are new.
    """
    table = schema.field_spans
    mine = (table.c.detector == run.detector, table.c.series == series)
    first, last = int(run.stamps[0]), int(run.stamps[-1])
    query = select(table.c.first_stamp, table.c.last_stamp).where(
        *mine, table.c.first_stamp <= last, table.c.last_stamp >= first
    )
    spans = list(connection.execute(query))
    new = np.ones(len(run.stamps), np.bool_)
    for begin, end in spans:
        new &= (run.stamps < begin) | (run.stamps > end)
    if not new.any():
        return new
    for part in _runs(new):
        connection.execute(
            schema.field_inbox.insert().values(
                detector=run.detector,
                series=series,
                stamps=run.stamps[part].astype("<i8").tobytes(),
                packed_values=run.values[part].astype("<f4").tobytes(),
                scores=run.scores[part].astype("<f4").tobytes(),
                flagged=flagged[part].tobytes(),
            )
        )
    merged = (min([first, *(begin for begin, _ in spans)]), max([last, *(end for _, end in spans)]))
    connection.execute(delete(table).where(*mine, table.c.first_stamp.in_([begin for begin, _ in spans])))
    row = {"detector": run.detector, "series": series, "first_stamp": merged[0], "last_stamp": merged[1]}
    connection.execute(table.insert().values(row))
    newest = select(table.c.first_stamp).where(*mine).order_by(table.c.first_stamp.desc()).limit(SPANS_KEPT)
    connection.execute(delete(table).where(*mine, table.c.first_stamp.not_in(newest)))
    return new


def field_series(connection: Connection, detector: str) -> set[str]:
    """Names of the series that devices have sent points of: no live series here go on from them."""
    table = schema.field_spans
    return set(connection.execute(select(table.c.series).where(table.c.detector == detector).distinct()).scalars())


class FieldPoints:
    """Takes points out of the inbox into the histories.

    Args:
        catalog: Has the inbox.
        host: Has the histories.
    """

    def __init__(self, catalog: Catalog, host: Host) -> None:
        self._catalog = catalog
        self._host = host
        self._left: int | None = None
        """Rows up to this one were left by an earlier process, and may be in the history already."""
        self._draining = asyncio.Lock()
        self._given: dict[str, list[InboxRow]] = {}
        """What a history has been given and could not make durable."""

    async def drain(self) -> bool:
        """Makes what waits part of the histories; returns whether some has to wait on."""
        if self._left is None:
            self._left = await asyncio.to_thread(self._last)
        left = False
        for name in await asyncio.to_thread(self._waiting):
            if name in self._host:
                # A caller who goes away must not leave a write behind of which nobody knows how it ended.
                left |= await asyncio.shield(self._drain(self._host.get(name)))
        return left

    async def _drain(self, hosted: HostedDetector) -> bool:
        """Some of one detector's; whether there may be more."""
        async with self._draining:  # what two take at once would be there twice
            return await self._moved(hosted)

    async def _moved(self, hosted: HostedDetector) -> bool:
        if hosted.history is None or hosted.features is None:
            return True
        given = self._given.get(hosted.name)
        rows = given if given is not None else await asyncio.to_thread(self._read, hosted.name, len(hosted.features))
        if given is None and self._left and any(row.id <= self._left for row in rows):
            rows = await self._not_there_yet(hosted, rows)
        parts = [part for row in rows if len(row.stamps) for part in _parts(row)]
        if parts and not await hosted.keep_field(parts, again=given is not None):
            self._given[hosted.name] = rows
            return True
        failpoint("field.kept")
        self._given.pop(hosted.name, None)
        await asyncio.to_thread(self._forget, [row.id for row in rows])
        return len(rows) == RUNS_AT_ONCE

    async def _not_there_yet(self, hosted: HostedDetector, rows: Sequence[InboxRow]) -> list[InboxRow]:
        paths = await hosted.history_paths()
        there = await asyncio.to_thread(stamps_in, paths, {row.series for row in rows}, (hosted.features or ("",))[0])
        return [row.only(~np.isin(row.stamps, there.get(row.series, np.empty(0, np.int64)))) for row in rows]

    def _last(self) -> int:
        with self._catalog.reading() as connection:
            return connection.execute(select(func.max(schema.field_inbox.c.id))).scalar() or 0

    def _waiting(self) -> list[str]:
        with self._catalog.reading() as connection:
            return list(connection.execute(select(schema.field_inbox.c.detector).distinct()).scalars())

    def _read(self, name: str, width: int) -> list[InboxRow]:
        table = schema.field_inbox
        query = select(table).where(table.c.detector == name).order_by(table.c.id).limit(RUNS_AT_ONCE)
        with self._catalog.reading() as connection:
            return [
                InboxRow(
                    row.id,
                    row.series,
                    np.frombuffer(row.stamps, "<i8").astype(np.int64),
                    np.frombuffer(row.packed_values, "<f4").astype(np.float32).reshape(-1, width),
                    np.frombuffer(row.scores, "<f4").astype(np.float32),
                    np.frombuffer(row.flagged, np.bool_),
                )
                for row in connection.execute(query)
            ]

    def _forget(self, ids: Collection[int]) -> None:
        with self._catalog.writing() as connection:
            connection.execute(delete(schema.field_inbox).where(schema.field_inbox.c.id.in_(ids)))


def stamps_in(paths: Sequence[Path], series: Collection[str], feature: str) -> dict[str, NDArray[np.int64]]:
    """Stamps of points of some series in files of a history; `feature` is one of it."""
    value = VALUE_PREFIX + feature
    found: dict[str, list[NDArray[np.int64]]] = {}
    for path in paths:
        table = pq.read_table(path, columns=["series", "stamp", value], partitioning=None)
        table = table.filter(pc.invert(pc.is_inf(table[value])))  # what sets runs apart is no point
        for name in series:
            stamps = table.filter(pc.equal(table["series"], name))["stamp"].to_numpy()
            if len(stamps):
                found.setdefault(name, []).append(stamps)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _parts(row: InboxRow) -> list[Kept]:
    """A row of infinities, then the points."""
    apart = Kept(
        [row.series],
        np.zeros(1, np.int64),
        row.stamps[:1] - 1,
        np.full((1, row.values.shape[1]), np.inf, np.float32),
        np.full(1, np.nan, np.float32),
        np.zeros(1, np.bool_),
    )
    index = np.zeros(len(row.stamps), np.int64)
    return [apart, Kept([row.series], index, row.stamps, row.values, row.scores, row.flagged)]


def _runs(marked: NDArray[np.bool_]) -> Iterator[slice]:
    """Where marks follow each other.

    >>> list(_runs(np.array([True, True, False, True])))
    [slice(0, 2, None), slice(3, 4, None)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield slice(start, end)
