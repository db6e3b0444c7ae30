"""Runs of consecutive normal points out of a history, for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from server.history import IMPORT_SERIES
from server.lasting import HALF
from server.reservoir import KEY, read_keyed
from server.segments import VALUE_PREFIX, schema_of, series_codes, series_names
from server.spans import Said, Spans

NOTHING_SAID = Said()


@dataclass(frozen=True)
class Stretch:
    """Consecutive normal points of one series.

    Attributes:
        stamps: [T] int64.
        values: [T, F] float32, finite but for missing values that were kept (NaN).
    """

    stamps: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Points:
    """N points of files, series after series, each in the order of arrival.

    Attributes:
        names: Of series.
        series: [N] into `names`.
        stamps: [N].
        values: [N, F].
        flagged: [N].
        begins: [N]; where a series begins, goes back in time, was silent for too long, or left out points before.
    """

    names: list[str]
    series: NDArray[np.int64]
    stamps: NDArray[np.int64]
    values: NDArray[np.float32]
    flagged: NDArray[np.bool_]
    begins: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.stamps)


def read_points(
    paths: Sequence[Path], features: Sequence[str], *, imported: bool | None = None, max_gap: int | None = None
) -> Points:
    """Points of files; arguments and errors as of `read_stretches`."""
    schema = schema_of(features)
    tables = [schema.empty_table().append_column(KEY, pa.array([], pa.float64()))]
    table = pa.concat_tables([*tables, *(read_keyed(path, schema) for path in paths)])
    if imported is not None:
        came = pc.equal(table["series"], IMPORT_SERIES)
        table = table.filter(came if imported else pc.invert(came))
    table = table.unify_dictionaries().combine_chunks()
    series = series_codes(table)
    order = np.argsort(series, kind="stable")
    series, stamps, key = series[order], table["stamp"].to_numpy()[order], table[KEY].to_numpy()[order]
    steps = np.diff(stamps)
    broken = (series[1:] != series[:-1]) | (steps < 0) | ((key[1:] != key[:-1]) & ~np.isnan(key[:-1]))
    if max_gap is not None:
        broken |= steps > max_gap
    return Points(
        names=series_names(table),
        series=series,
        stamps=stamps,
        values=np.column_stack([table[VALUE_PREFIX + name].to_numpy() for name in features])[order],
        flagged=table["flagged"].to_numpy(zero_copy_only=False)[order],
        begins=np.r_[True, broken] if len(series) else np.zeros(0, np.bool_),
    )


def read_stretches(
    paths: Sequence[Path],
    features: Sequence[str],
    *,
    imported: bool | None = None,
    max_rows: int | None = None,
    guard: int = 0,
    shift: int | None = None,
    max_gap: int | None = None,
    keep_missing: bool = False,
    said: Said = NOTHING_SAID,
    seed: int = 0,
) -> list[Stretch]:
    """Runs of consecutive normal points, series after series, each in the order of arrival.

    A run ends where a point was flagged or is labelled an anomaly (with `guard` points on either side of it), in a
    maintenance window, where a value is missing or infinite, where the stamps of a series go back, and where it was
    silent for longer than `max_gap`. Points that are labelled normal are normal, and so are the neighbours of a flagged
    one among them, but for those of another flag.

    Args:
        paths: Segments and reservoir, oldest first.
        features: Columns to read, in order.
        imported: Only points that came from files (True) or only those that were streamed (False).
        max_rows: Take no more points than this: whole series in a random order, of the last one the newest points.
        guard: Points around a flagged one that are left out too.
        shift: Flags count for nothing where at least half of so many points of a series have one, from the first of
            them to the last; that is a run of its own, so that it is both learned and held out. None: all count.
        max_gap: In the units of stamps; None: no silence is too long.
        keep_missing: Missing values do not end a run; they stay NaN.
        said: Labels and maintenance windows.
        seed: Which series are taken when there are too many.

    Raises:
        PreconditionError: a file can not be read or has other features.
    """
    points = read_points(paths, features, imported=imported, max_gap=max_gap)
    if not len(points):
        return []
    series = points.series
    starts_series = np.flatnonzero(np.r_[True, series[1:] != series[:-1]])
    whole = np.isfinite(points.values) | (np.isnan(points.values) if keep_missing else False)
    lasting = np.zeros(len(series), np.bool_) if shift is None else _lasting(points.flagged, starts_series, shift)
    normal = whole.all(axis=1) & ~_excluded(points, said, starts_series, guard, lasting)
    new_run = points.begins | np.r_[True, ~normal[:-1]] | np.r_[False, lasting[1:] != lasting[:-1]]
    starts = np.flatnonzero(new_run & normal)
    ends = np.r_[np.flatnonzero(new_run | ~normal), len(series)]
    ends = ends[np.searchsorted(ends, starts, side="right")]
    runs = [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    if max_rows is not None:
        runs = _newest(runs, series, max_rows, np.random.default_rng(seed))
    return [Stretch(points.stamps[run], points.values[run]) for run in runs]


def some_of(stretches: Sequence[Stretch], max_rows: int, seed: int) -> list[Stretch]:
    """Stretches drawn at random, `max_rows` points at most, in the order they had."""
    order = np.random.default_rng(seed).permutation(len(stretches))
    rows = np.cumsum([len(stretches[at].stamps) for at in order])
    return [stretches[at] for at in sorted(order[rows <= max_rows].tolist())]


def _excluded(
    points: Points, said: Said, series_starts: NDArray[np.int64], guard: int, lasting: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which points are not learned from, by flags and by what people said."""
    where = (points.names, points.series, points.stamps)
    anomaly, normal = said.labelled(*where)
    near = _around((points.flagged & ~lasting | anomaly) & ~normal, series_starts, guard)
    return (near & ~normal) | Spans(said.windows).cover(*where)


def _lasting(flagged: NDArray[np.bool_], series_starts: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
    """Marks where windows of a series are flagged by half, from the first flag to the last.

    >>> flags = np.array([0, 1, 1, 0, 1, 0, 0, 0, 0, 1], bool)
    >>> _lasting(flags, np.array([0, 9]), 4).astype(int)
    array([0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    """
    change = np.zeros(len(flagged) + 1, np.int64)
    for start, end in pairwise(np.r_[series_starts, len(flagged)].tolist()):
        if end - start < window:
            continue
        total = np.r_[0, np.cumsum(flagged[start:end])]
        first = start + np.flatnonzero(total[window:] - total[:-window] >= HALF * window)
        np.add.at(change, first, 1)
        np.add.at(change, first + window, -1)
    windows = np.cumsum(change[:-1]) > 0
    edges = np.flatnonzero(np.diff(np.r_[False, windows, False].astype(np.int8)))
    marked = np.zeros(len(flagged), np.bool_)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        within = start + np.flatnonzero(flagged[start:end])
        marked[within[0] : within[-1] + 1] = True
    return marked


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
