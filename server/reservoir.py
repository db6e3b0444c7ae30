"""Old stretches that outlive the retention of a history: an even sample of all that was ever let go.

So a detector does not forget a season. Every stretch gets a random key when it is let go, and those with the lowest
keys stay: each had the same chance, whenever it came. They lie in one file, `reservoir-<last>.parquet`, whose name says
up to which flush everything has been offered; it has the columns of a segment, and `key` to tell stretches apart.

Stretches with a labelled anomaly get keys below all others, so that the gate can go on asking about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from server.segments import Arrival, read_segment, series_codes, series_names, write_segment
from server.spans import Spans

KEY = "key"
STRETCH_ROWS = 512  # points of a stretch: many windows of any network
MINIMUM_ROWS = 128  # shorter ones teach nothing
GUARD_POINTS = 25  # either side of a flagged point: anomalies begin before they are seen
NORMAL_SHARE = 0.5  # of a stretch that is worth its room
LABELLED_KEYS = 1e-3  # keys below are those of stretches with a labelled anomaly ...
LABELLED_SHARE = 0.5  # ... which take this part of the room at most
_NAME = re.compile(r"reservoir-(\d{10,})\.parquet")


class Reservoir:
    """The reservoir of one history.

    Args:
        folder: Where its file lies.
        schema: Columns of a segment.
        max_rows: Points kept at most; 0: none.
        rng: Draws the keys.
        labelled: Says which points are labelled anomalies.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        max_rows: int,
        rng: np.random.Generator,
        labelled: Callable[[], Spans] = Spans,
    ) -> None:
        self.max_rows = max_rows
        self.seen = 0
        """Everything up to this flush has been offered."""
        self._folder = folder
        self._schema = schema
        self._keyed = _with_key(schema)
        self._rng = rng
        self._labelled = labelled

    @classmethod
    def recovered(
        cls,
        folder: Path,
        schema: pa.Schema,
        max_rows: int,
        rng: np.random.Generator,
        labelled: Callable[[], Spans] = Spans,
    ) -> Self:
        """The reservoir of a folder, without files that a crash has left; arguments as of the class."""
        reservoir = cls(folder, schema, max_rows, rng, labelled)
        found = sorted(path for path in folder.iterdir() if is_reservoir(path)) if folder.is_dir() else []
        for path in found[:-1]:
            path.unlink()
        if found:
            match = _NAME.fullmatch(found[-1].name)
            reservoir.seen = int(match[1]) if match else 0
        return reservoir

    @property
    def path(self) -> Path | None:
        """Its file; None before anything was offered, and where a person has moved it away."""
        path = self._folder / f"reservoir-{self.seen:010d}.parquet"
        return path if self.seen and path.is_file() else None

    def offer(self, let_go: Sequence[pa.Table], last: int, arrival: Arrival) -> Path | None:
        """Keeps some of the stretches of points that are let go, durably; returns the file that this replaces.

        Args:
            let_go: What can be read of the segments, oldest first.
            last: The last flush among them.
            arrival: Of these points.

        Raises:
            OSError: it can not be written; nothing has changed.
            PreconditionError: the file that there is can not be read; nothing has changed.
        """
        before = self.path
        kept = [read_segment(before, self._keyed)] if before else []
        table = _lowest(pa.concat_tables([*kept, self._stretches(let_go)]), self.max_rows)
        write_segment(self._folder / f"reservoir-{last:010d}.parquet", table, arrival)
        self.seen = last
        return before

    def _stretches(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The stretches among points, series after series, each with a key."""
        table = pa.concat_tables([self._schema.empty_table(), *tables]).unify_dictionaries().combine_chunks()
        series = series_codes(table)
        order = np.argsort(series, kind="stable")
        stamps = table["stamp"].to_numpy()[order]
        flagged = table["flagged"].to_numpy(zero_copy_only=False)[order]
        labelled = self._labelled().cover(series_names(table), series[order], stamps)
        pieces = [
            piece
            for piece in _pieces(series[order], stamps)
            if piece.stop - piece.start >= MINIMUM_ROWS and (labelled[piece].any() or _is_normal(flagged[piece]))
        ]
        rows = np.concatenate([np.zeros(0, np.int64), *(order[piece] for piece in pieces)])
        drawn = self._rng.random(len(pieces))
        first = np.array([labelled[piece].any() for piece in pieces], np.bool_)
        keys = np.where(first, LABELLED_KEYS * drawn, LABELLED_KEYS + (1 - LABELLED_KEYS) * drawn)
        keys = np.repeat(keys, [piece.stop - piece.start for piece in pieces])
        return table.take(pa.array(rows)).append_column(self._keyed.field(KEY), pa.array(keys, pa.float64()))


def read_keyed(path: Path, schema: pa.Schema) -> pa.Table:
    """A segment or a reservoir with the column `key`, which is NaN in a segment; errors as of `read_segment`."""
    if is_reservoir(path):
        return read_segment(path, _with_key(schema))
    table = read_segment(path, schema)
    return table.append_column(KEY, pa.array(np.full(table.num_rows, np.nan)))


def _with_key(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(KEY, pa.float64()))


def is_reservoir(path: Path) -> bool:
    """Whether a file of a history is its reservoir."""
    return _NAME.fullmatch(path.name) is not None


def _pieces(series: NDArray[np.int64], stamps: NDArray[np.int64]) -> list[slice]:
    """Runs of consecutive points of a series, cut to `STRETCH_ROWS`."""
    if not len(series):
        return []
    new = np.r_[True, (series[1:] != series[:-1]) | (stamps[1:] < stamps[:-1])]
    edges = np.r_[np.flatnonzero(new), len(series)].tolist()
    return [
        slice(first, min(first + STRETCH_ROWS, stop))
        for start, stop in pairwise(edges)
        for first in range(start, stop, STRETCH_ROWS)
    ]


def _is_normal(flagged: NDArray[np.bool_]) -> bool:
    near = np.convolve(flagged, np.ones(2 * GUARD_POINTS + 1), "same") > 0.5
    return float(near.mean()) <= 1 - NORMAL_SHARE


def _lowest(table: pa.Table, max_rows: int) -> pa.Table:
    """The stretches with the lowest keys, `max_rows` points at most."""
    keys, rows = np.unique(table[KEY].to_numpy(), return_counts=True)
    others = int(np.searchsorted(keys, LABELLED_KEYS))
    labelled = int(np.count_nonzero(np.cumsum(rows[:others]) <= LABELLED_SHARE * max_rows))
    room = max_rows - int(rows[:labelled].sum())
    taken = np.r_[keys[:labelled], keys[others:][np.cumsum(rows[others:]) <= room]]
    return table.filter(pc.is_in(table[KEY], value_set=pa.array(taken, pa.float64())))
