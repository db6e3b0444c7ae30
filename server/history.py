"""Points kept for training: Parquet segments in one folder for each detector.

A segment is written beside its place, made durable and renamed, so it is there whole or not at all. Its name says which
flushes it holds: `<first>-<last>-<rows>.parquet`. Small segments are merged as new ones arrive (a merged segment covers
the numbers of those it replaces), so that a week of flushes every few seconds is a handful of files; what has been
replaced stays readable for a while, because the trainer may have been told its path.

Columns: `series` (dictionary), `stamp` int64, `value.<feature>` float32, `score` float32 (NaN: none), `flagged` bool.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detectors.bundle import fsync_folder
from detectors.errors import PreconditionError

IMPORT_SERIES = "import"
"""The series of points that came from a file."""
SEGMENT_ROWS = 65_536  # segments of so many rows are not merged any further
KEEP_REPLACED_SECONDS = 900.0
VALUE_PREFIX = "value."
PARTIAL = ".partial"


@dataclass(frozen=True, order=True)
class Segment:
    """One file of a history: flushes `first` to `last`."""

    first: int
    last: int
    rows: int

    @property
    def file_name(self) -> str:
        """Its name; sorts by age."""
        return f"{self.first:010d}-{self.last:010d}-{self.rows}.parquet"

    @classmethod
    def named(cls, path: Path) -> Self | None:
        """The segment that a file is; None for anything else."""
        parts = path.stem.split("-")
        if path.suffix != ".parquet" or len(parts) != 3 or not all(part.isdecimal() for part in parts):
            return None
        return cls(*map(int, parts))

    def covers(self, other: Segment) -> bool:
        """Whether it holds everything that `other` holds."""
        return self != other and self.first <= other.first and other.last <= self.last


class History:
    """The points of one detector. One object, one thread at a time.

    Args:
        folder: Where its segments lie; made on the first flush.
        features: Column names of the values.
        max_rows: Oldest segments go while more points are kept, but never the newest one.
        max_bytes: The same for bytes.
        clock: Seconds, for how long replaced segments stay.
    """

    def __init__(
        self,
        folder: Path,
        features: Sequence[str],
        *,
        max_rows: int = 200_000,
        max_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.features = list(features)
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self._clock = clock
        self._schema = schema_of(self.features)
        self._waiting: list[pa.RecordBatch] = []
        self._replaced: list[tuple[float, Path]] = []
        self._segments = self._recover()

    @property
    def rows(self) -> int:
        """Points kept, flushed or not."""
        return sum(segment.rows for segment in self._segments) + sum(int(batch.num_rows) for batch in self._waiting)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths())

    def paths(self) -> list[Path]:
        """The segments that make up the history now, oldest first. They stay readable for 15 minutes at least."""
        return [self.folder / segment.file_name for segment in self._segments]

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
        self._waiting.append(self._batch(series, stamps, values, scores, flagged))

    def flush(self) -> Path | None:
        """Makes what has been appended durable; returns the segment that holds it, None if there was nothing.

        On a full disk the points go on waiting for the next flush.
        """
        self._remove_replaced()
        if not self._waiting:
            return None
        path = self._seal(pa.Table.from_batches(self._waiting, self._schema), merge=True)
        self._waiting.clear()
        return path

    def add_points(self, stamps: NDArray[np.int64], values: NDArray[np.float32]) -> Path:
        """Keeps points that came from a file as a segment of their own, durably; returns its path."""
        self.flush()
        n = len(stamps)
        unscored, unflagged = np.full(n, np.nan, np.float32), np.zeros(n, np.bool_)
        batch = self._batch([IMPORT_SERIES] * n, stamps, values, unscored, unflagged)
        return self._seal(pa.Table.from_batches([batch], self._schema), merge=False)

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

    def _seal(self, table: pa.Table, *, merge: bool) -> Path:
        """Writes points as a segment, together with older segments that are not much longer."""
        number = self._segments[-1].last + 1 if self._segments else 1
        segment = Segment(number, number, table.num_rows)
        kept = len(self._segments)
        # A factor of two between neighbours: every point is rewritten O(log n) times.
        while merge and kept and self._segments[kept - 1].rows <= min(2 * segment.rows, SEGMENT_ROWS - segment.rows):
            older = self._segments[kept - 1]
            try:
                table = pa.concat_tables([read_segment(self.folder / older.file_name, self._schema), table])
            except PreconditionError:  # damaged: whoever reads it is told, new points must not suffer
                break
            kept -= 1
            segment = Segment(older.first, segment.last, older.rows + segment.rows)
        path = self._write(segment, table)
        self._drop(self._segments[kept:])
        self._segments.append(segment)
        self._retain()
        return path

    def _write(self, segment: Segment, table: pa.Table) -> Path:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            fsync_folder(self.folder.parent)
        path = self.folder / segment.file_name
        partial = path.with_suffix(PARTIAL)
        try:
            with partial.open("wb") as file:
                pq.write_table(table.unify_dictionaries(), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk needs the room
            raise
        fsync_folder(self.folder)
        return path

    def _retain(self) -> None:
        """Lets the oldest segments go."""
        sizes = [path.stat().st_size for path in self.paths()]
        rows, size, oldest = sum(segment.rows for segment in self._segments), sum(sizes), 0
        while oldest < len(sizes) - 1 and (rows > self.max_rows or size > self.max_bytes):
            rows, size = rows - self._segments[oldest].rows, size - sizes[oldest]
            oldest += 1
        self._drop(self._segments[:oldest])

    def _drop(self, segments: Sequence[Segment]) -> None:
        """Takes segments out of the history; their files stay for a while."""
        self._segments = [segment for segment in self._segments if segment not in segments]
        self._replaced += [(self._clock(), self.folder / segment.file_name) for segment in segments]

    def _remove_replaced(self) -> None:
        now = self._clock()
        while self._replaced and now - self._replaced[0][0] >= KEEP_REPLACED_SECONDS:
            self._replaced.pop(0)[1].unlink(missing_ok=True)

    def _recover(self) -> list[Segment]:
        """Lists the segments; removes half-written and replaced ones."""
        if not self.folder.is_dir():
            return []
        for partial in self.folder.glob(f"*{PARTIAL}"):
            partial.unlink()
        found = sorted(segment for path in self.folder.iterdir() if (segment := Segment.named(path)) is not None)
        kept = [segment for segment in found if not any(other.covers(segment) for other in found)]
        for segment in set(found) - set(kept):
            (self.folder / segment.file_name).unlink()
        return kept


def schema_of(features: Sequence[str]) -> pa.Schema:
    """Columns of a segment."""
    return pa.schema(
        [
            ("series", pa.dictionary(pa.int32(), pa.string())),
            ("stamp", pa.int64()),
            *((VALUE_PREFIX + name, pa.float32()) for name in features),
            ("score", pa.float32()),
            ("flagged", pa.bool_()),
        ]
    )


def read_segment(path: Path, schema: pa.Schema) -> pa.Table:
    """One segment whole; PreconditionError, naming the file, if it can not be read or has other features."""
    try:
        return pq.read_table(path, partitioning=None).select(schema.names).cast(schema)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise PreconditionError(
            "is not a readable segment with these features.",
            field=str(path),
            hint="Move it out of the history folder.",
        ) from error
