"""Files of a history: Parquet, each there whole or not at all.

Columns: `series` (dictionary), `stamp` int64, `value.<feature>` float32, `score` float32 (NaN: none), `flagged` bool.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detectors.bundle import fsync_folder
from detectors.errors import PreconditionError
from detectors.failpoints import failpoint

VALUE_PREFIX = "value."
PARTIAL = ".partial"
ARRIVED = b"arrived"


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


@dataclass(frozen=True)
class Arrival:
    """When points of a file came, in seconds since the epoch."""

    first: float
    last: float


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


def write_segment(path: Path, table: pa.Table, arrival: Arrival) -> None:
    """Writes a file beside its place, makes it durable and renames it; its folder is made where there is none."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        fsync_folder(path.parent.parent)
    table = table.unify_dictionaries().replace_schema_metadata({ARRIVED: f"{arrival.first!r} {arrival.last!r}"})
    partial = path.with_suffix(PARTIAL)
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file, **_encoding(table.schema))
            file.flush()
            failpoint("history.before_fsync")
            os.fsync(file.fileno())
        failpoint("history.before_rename")
        partial.rename(path)
        failpoint("history.renamed")
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise
    fsync_folder(path.parent)
    failpoint("history.durable")


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """How columns are written: dictionaries only where values repeat. Of measurements they are slow to make."""
    floats = [field.name for field in schema if pa.types.is_float32(field.type)]
    return {"compression": "zstd", "use_dictionary": ["series", "stamp"], "use_byte_stream_split": floats}


def arrival_of(path: Path) -> Arrival:
    """When the points of a file came; for one that does not say so, when it was written."""
    try:
        written = (pq.read_schema(path).metadata or {}).get(ARRIVED, b"")
    except (OSError, pa.ArrowException):
        written = b""
    if written:
        return Arrival(*map(float, written.split()))
    seconds = path.stat().st_mtime
    return Arrival(seconds, seconds)


def series_codes(table: pa.Table) -> NDArray[np.int64]:
    """[N] numbers of the series of a table of one chunk."""
    column: Any = table["series"].chunk(0) if table["series"].num_chunks else None
    return np.zeros(0, np.int64) if column is None else column.indices.to_numpy().astype(np.int64)


def series_names(table: pa.Table) -> list[str]:
    """What those numbers mean."""
    return list(table["series"].chunk(0).dictionary.to_pylist()) if table["series"].num_chunks else []
