"""Points kept for training: Parquet segments in one folder for each detector.

A segment is written beside its place, made durable and renamed, so it is there whole or not at all. Its name says which
flushes it holds: `<first>-<last>-<rows>.parquet`. Small segments are merged as new ones arrive (a merged segment covers
the numbers of those it replaces), so that a week of flushes every few seconds is a handful of files; what has been
replaced stays readable for a while, because the trainer may have been told its path. Of what the retention lets go some
stretches go into the reservoir, for good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.errors import PreconditionError, PrunewatchError
from server.reservoir import Reservoir
from server.segments import PARTIAL, Arrival, Segment, arrival_of, read_segment, schema_of, write_segment
from server.spans import Spans

IMPORT_SERIES = "import"
"""The series of points that came from a file."""
SEGMENT_ROWS = 65_536  # segments of so many rows are not merged any further
KEEP_REPLACED_SECONDS = 900.0
AGE_STEPS = 8  # segments span at most this part of `max_age`, so that points go about when they should
logger = logging.getLogger("prunewatch.history")


class History:
    """The points of one detector. One object, one thread at a time.

    Args:
        folder: Where its segments lie; made on the first flush.
        features: Column names of the values.
        max_rows: Oldest segments go while more points are kept, but never the newest one.
        max_bytes: The same for bytes.
        max_age: Segments go when all of their points arrived more than so many seconds ago, as new ones arrive; but
            never the newest one. None: at any age.
        reservoir_rows: Points of old stretches kept beside; 0: none.
        clock: Seconds, for how long replaced segments stay.
        now: Seconds since the epoch, for the age of points.
        rng: Which stretches go into the reservoir.
        labelled: Says which points are labelled anomalies; those stay in the reservoir, as far as there is room.
    """

    def __init__(
        self,
        folder: Path,
        features: Sequence[str],
        *,
        max_rows: int = 200_000,
        max_bytes: int = 256 << 20,
        max_age: float | None = None,
        reservoir_rows: int = 0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        rng: np.random.Generator | None = None,
        labelled: Callable[[], Spans] = Spans,
    ) -> None:
        self.folder = folder
        self.features = list(features)
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.max_age = max_age
        self._clock = clock
        self._now = now
        self._schema = schema_of(self.features)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_since = 0.0
        self._replaced: list[tuple[float, Path]] = []
        self._arrivals: dict[Segment, Arrival] = {}
        self._reservoir = Reservoir.recovered(
            folder, self._schema, reservoir_rows, rng or np.random.default_rng(), labelled
        )
        self._segments = self._recover()

    @property
    def rows(self) -> int:
        """Points kept, flushed or not; without those of the reservoir."""
        return sum(segment.rows for segment in self._segments) + sum(int(batch.num_rows) for batch in self._waiting)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths())

    def paths(self) -> list[Path]:
        """The files that make up the history now, oldest first. They stay readable for 15 minutes at least."""
        reservoir = self._reservoir.path
        return [*([reservoir] if reservoir else ()), *map(self._path, self._segments)]

    def _path(self, segment: Segment) -> Path:
        return self.folder / segment.file_name

    def append(
        self,
        series: Sequence[str],
        stamps: NDArray[np.int64],
        values: NDArray[np.float32],
        scores: NDArray[np.float32],
        flagged: NDArray[np.bool_],
    ) -> None:
        """Takes N accepted points in the order of arrival; they are durable after the next `flush`.

        Args:
            series: [N] names.
            stamps: [N].
            values: [N, F].
            scores: [N]; NaN where there is none.
            flagged: [N]; whether the point was called an anomaly.
        """
        if not self._waiting:
            self._waiting_since = self._now()
        self._waiting.append(self._batch(series, stamps, values, scores, flagged))

    def flush(self) -> Path | None:
        """Makes what has been appended durable; returns the segment that holds it, None if there was nothing.

        On a full disk the points go on waiting for the next flush.
        """
        self._remove_replaced()
        if not self._waiting:
            return None
        path = self._seal(pa.Table.from_batches(self._waiting, self._schema), self._waiting_since, merge=True)
        self._waiting.clear()
        self._retain()
        return path

    def add_points(self, stamps: NDArray[np.int64], values: NDArray[np.float32]) -> Path:
        """Keeps points that came from a file as a segment of their own, durably; returns its path."""
        self.flush()
        n = len(stamps)
        unscored, unflagged = np.full(n, np.nan, np.float32), np.zeros(n, np.bool_)
        batch = self._batch([IMPORT_SERIES] * n, stamps, values, unscored, unflagged)
        path = self._seal(pa.Table.from_batches([batch], self._schema), self._now(), merge=False)
        self._retain()
        return path

    def _batch(
        self,
        series: Sequence[str],
        stamps: NDArray[np.int64],
        values: NDArray[np.float32],
        scores: NDArray[np.float32],
        flagged: NDArray[np.bool_],
    ) -> pa.RecordBatch:
        columns = [
            pa.array(series, pa.string()).dictionary_encode(),
            pa.array(stamps, pa.int64()),
            *(pa.array(np.ascontiguousarray(column), pa.float32()) for column in values.T),
            pa.array(scores, pa.float32()),
            pa.array(flagged, pa.bool_()),
        ]
        return pa.record_batch(columns, schema=self._schema)

    def _seal(self, table: pa.Table, since: float, *, merge: bool) -> Path:
        """Writes points that came since then as a segment, together with older segments that are not much longer."""
        number = max(self._segments[-1].last if self._segments else 0, self._reservoir.seen) + 1
        segment = Segment(number, number, table.num_rows)
        arrival = Arrival(since, self._now())
        kept = len(self._segments)
        while merge and kept and self._merges(self._segments[kept - 1], segment, arrival):
            older = self._segments[kept - 1]
            try:
                table = pa.concat_tables([read_segment(self._path(older), self._schema), table])
            except PreconditionError:  # damaged: whoever reads it is told, new points must not suffer
                break
            kept -= 1
            segment = Segment(older.first, segment.last, older.rows + segment.rows)
            arrival = Arrival(min(self._arrival(older).first, arrival.first), arrival.last)
        write_segment(self._path(segment), table, arrival)
        self._drop(self._segments[kept:])
        self._segments.append(segment)
        self._arrivals[segment] = arrival
        return self._path(segment)

    def _merges(self, older: Segment, segment: Segment, arrival: Arrival) -> bool:
        # A factor of two between neighbours: every point is rewritten O(log n) times.
        if older.rows > min(2 * segment.rows, SEGMENT_ROWS - segment.rows):
            return False
        return self.max_age is None or arrival.last - self._arrival(older).first <= self.max_age / AGE_STEPS

    def _arrival(self, segment: Segment) -> Arrival:
        if segment not in self._arrivals:
            self._arrivals[segment] = arrival_of(self._path(segment))
        return self._arrivals[segment]

    def _retain(self) -> None:
        """Lets the oldest segments go."""
        sizes = [self._path(segment).stat().st_size for segment in self._segments]
        rows, size, oldest = sum(segment.rows for segment in self._segments), sum(sizes), 0
        while oldest < len(sizes) - 1 and (
            rows > self.max_rows or size > self.max_bytes or self._is_too_old(self._segments[oldest])
        ):
            rows, size = rows - self._segments[oldest].rows, size - sizes[oldest]
            oldest += 1
        if oldest:
            self._let_go(self._segments[:oldest])

    def _is_too_old(self, segment: Segment) -> bool:
        return self.max_age is not None and self._now() - self._arrival(segment).last > self.max_age

    def _let_go(self, segments: Sequence[Segment]) -> None:
        """Drops the oldest segments, but for some of their stretches."""
        if self._reservoir.max_rows:
            arrival = Arrival(self._arrival(segments[0]).first, self._arrival(segments[-1]).last)
            try:
                replaced = self._reservoir.offer(self._readable(segments), segments[-1].last, arrival)
            except (OSError, PrunewatchError):  # a full disk needs the room
                logger.exception("no stretches of old points of %s could be kept", self.folder.name)
            else:
                self._replaced += [(self._clock(), replaced)] if replaced else []
        self._drop(segments)

    def _readable(self, segments: Sequence[Segment]) -> list[pa.Table]:
        tables = []
        for segment in segments:
            try:
                tables.append(read_segment(self._path(segment), self._schema))
            except PreconditionError:  # damaged
                logger.exception("points of %s are lost", self.folder.name)
        return tables

    def _drop(self, segments: Sequence[Segment]) -> None:
        """Takes segments out of the history; their files stay for a while."""
        self._segments = [segment for segment in self._segments if segment not in segments]
        self._replaced += [(self._clock(), self._path(segment)) for segment in segments]
        for segment in segments:
            self._arrivals.pop(segment, None)

    def _remove_replaced(self) -> None:
        now = self._clock()
        while self._replaced and now - self._replaced[0][0] >= KEEP_REPLACED_SECONDS:
            self._replaced.pop(0)[1].unlink(missing_ok=True)

    def _recover(self) -> list[Segment]:
        """Lists the segments; removes those half-written, those replaced, and those that were let go."""
        if not self.folder.is_dir():
            return []
        for partial in self.folder.glob(f"*{PARTIAL}"):
            partial.unlink()
        found = sorted(segment for path in self.folder.iterdir() if (segment := Segment.named(path)) is not None)
        kept = [
            segment
            for segment in found
            if segment.last > self._reservoir.seen and not any(other.covers(segment) for other in found)
        ]
        for segment in set(found) - set(kept):
            self._path(segment).unlink()
        return kept
