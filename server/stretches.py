"""Runs of consecutive normal points out of a history, for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from server.history import IMPORT_SERIES, VALUE_PREFIX, read_segment, schema_of


@dataclass(frozen=True)
class Stretch:
    """Consecutive normal points of one series.

    Attributes:
        stamps: [T] int64.
        values: [T, F] float32, finite but for missing values that were kept (NaN).
    """

    stamps: NDArray[np.int64]
    values: NDArray[np.float32]


def read_stretches(
    paths: Sequence[Path],
    features: Sequence[str],
    *,
    imported: bool | None = None,
    max_rows: int | None = None,
    guard: int = 0,
    max_gap: int | None = None,
    keep_missing: bool = False,
    seed: int = 0,
) -> list[Stretch]:
    """Runs of consecutive normal points, series after series, each in the order of arrival.

    A run ends where a point was flagged (with `guard` points on either side of it), where a value is missing or
    infinite, where the stamps of a series go back, and where it was silent for longer than `max_gap`.

    Args:
        paths: Segments, oldest first.
        features: Columns to read, in order.
        imported: Only points that came from files (True) or only those that were streamed (False).
        max_rows: Take no more points than this: whole series in a random order, of the last one the newest points.
        guard: Points around a flagged one that are left out too.
        max_gap: In the units of stamps; None: no silence is too long.
        keep_missing: Missing values do not end a run; they stay NaN.
        seed: Which series are taken when there are too many.

    Raises:
        PreconditionError: a segment can not be read or has other features.
    """
    if not paths:
        return []
    schema = schema_of(features)
    table = pa.concat_tables([read_segment(path, schema) for path in paths]).unify_dictionaries().combine_chunks()
    if imported is not None:
        came = pc.equal(table["series"], IMPORT_SERIES)
        table = table.filter(came if imported else pc.invert(came)).combine_chunks()
    if not table.num_rows:
        return []
    series = _series_codes(table)
    order = np.argsort(series, kind="stable")
    series, stamps = series[order], table["stamp"].to_numpy()[order]
    values = np.column_stack([table[VALUE_PREFIX + name].to_numpy() for name in features])[order]
    flagged = table["flagged"].to_numpy(zero_copy_only=False)[order]

    new_series = np.r_[True, series[1:] != series[:-1]]
    whole = np.isfinite(values) | (np.isnan(values) if keep_missing else False)
    normal = whole.all(axis=1) & ~_around(flagged, np.flatnonzero(new_series), guard)
    steps = np.diff(stamps)
    broken = steps < 0 if max_gap is None else (steps < 0) | (steps > max_gap)
    new_run = new_series | np.r_[True, broken] | np.r_[True, ~normal[:-1]]
    starts = np.flatnonzero(new_run & normal)
    ends = np.r_[np.flatnonzero(new_run | ~normal), len(series)]
    ends = ends[np.searchsorted(ends, starts, side="right")]
    runs = [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    if max_rows is not None:
        runs = _newest(runs, series, max_rows, np.random.default_rng(seed))
    return [Stretch(stamps[run], values[run]) for run in runs]


def _around(flagged: NDArray[np.bool_], series_starts: NDArray[np.int64], guard: int) -> NDArray[np.bool_]:
    """Marks flagged points and `guard` points before and after them in the same series."""
    at = np.flatnonzero(flagged)
    limits = np.r_[series_starts, len(flagged)]
    home = np.searchsorted(limits, at, side="right")
    change = np.zeros(len(flagged) + 1, np.int64)
    np.add.at(change, np.maximum(at - guard, limits[home - 1]), 1)
    np.add.at(change, np.minimum(at + guard + 1, limits[home]), -1)
    marked: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
    return marked


def _newest(runs: Sequence[slice], series: NDArray[np.int64], max_rows: int, rng: np.random.Generator) -> list[slice]:
    """At most `max_rows` rows: whole series in a random order, of the last one its newest rows."""
    by_series: dict[int, list[slice]] = {}
    for run in runs:
        by_series.setdefault(int(series[run.start]), []).append(run)
    taken: list[slice] = []
    for key in rng.permutation(list(by_series)):
        for run in reversed(by_series[key]):
            rows = min(run.stop - run.start, max_rows)
            if rows:
                taken.append(slice(run.stop - rows, run.stop))
            max_rows -= rows
    return sorted(taken, key=lambda run: int(run.start))


def _series_codes(table: pa.Table) -> NDArray[np.int64]:
    column: Any = table["series"].chunk(0) if table["series"].num_chunks else None
    return np.zeros(0, np.int64) if column is None else column.indices.to_numpy().astype(np.int64)
