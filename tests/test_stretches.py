"""Stretches: only runs of consecutive normal points are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import PreconditionError
from server.history import History
from server.stretches import read_stretches

FEATURES = ["flow", "pressure"]


def add(history: History, stamps, *, series="a", flagged=(), first=0.0) -> None:
    """Appends points whose value is their stamp (plus `first`)."""
    stamps = np.array(stamps, np.int64)
    values = np.column_stack([stamps + first, -stamps - first]).astype(np.float32)
    marks = np.isin(stamps, list(flagged))
    names = [series] * len(stamps) if isinstance(series, str) else series
    history.append(names, stamps, values, np.full(len(stamps), np.nan, np.float32), marks)


def runs(history: History, **options) -> list[list[int]]:
    """Stamps of the stretches."""
    return [stretch.stamps.tolist() for stretch in read_stretches(history.paths(), FEATURES, **options)]


def test_flagged_points_and_their_neighbours_are_left_out(tmp_path: Path) -> None:
    """`guard` points before and after, within the series."""
    history = History(tmp_path, FEATURES)
    add(history, range(10), flagged=[4])
    add(history, range(3), series="b", flagged=[0])
    history.flush()

    assert runs(history, guard=2) == [[0, 1], [7, 8, 9]]
    assert runs(history) == [[0, 1, 2, 3], [5, 6, 7, 8, 9], [1, 2]]


def test_a_missing_value_ends_a_run(tmp_path: Path) -> None:
    """Nothing is trained across a hole."""
    history = History(tmp_path, FEATURES)
    values = np.zeros((5, 2), np.float32)
    values[2, 1] = np.nan
    history.add_points(np.arange(5), values)

    assert runs(history) == [[0, 1], [3, 4]]


def test_going_back_in_time_ends_a_run(tmp_path: Path) -> None:
    """The same file imported twice is two runs, not one."""
    history = History(tmp_path, FEATURES)
    for _ in range(2):
        history.add_points(np.arange(4), np.zeros((4, 2), np.float32))

    assert runs(history) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_too_many_rows_keep_whole_series_and_newest_points(tmp_path: Path) -> None:
    """The same seed takes the same series; the last one taken gives its newest points."""
    history = History(tmp_path, FEATURES)
    for series in "abcdef":
        add(history, range(10), series=series)
    history.flush()

    taken = runs(history, max_rows=25, seed=3)

    assert sorted(map(len, taken)) == [5, 10, 10]
    assert min(taken, key=len) == [5, 6, 7, 8, 9]
    assert runs(history, max_rows=25, seed=3) == taken
    assert runs(history, max_rows=1000) == [list(range(10))] * 6


def test_segments_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    """A torn file or one with other features is an error with its path."""
    torn = tmp_path / "0000000001-0000000001-5.parquet"
    torn.write_bytes(b"PAR1")
    history = History(tmp_path / "other", ["temperature"])
    other = history.add_points(np.arange(2), np.zeros((2, 1), np.float32))

    for path in (torn, other):
        with pytest.raises(PreconditionError, match=path.name):
            read_stretches([path], FEATURES)


def test_points_of_files_and_of_streams_can_be_told_apart(tmp_path: Path) -> None:
    """A file's points were chosen by a person, a stream's were not."""
    history = History(tmp_path, FEATURES)
    history.add_points(np.arange(3), np.zeros((3, 2), np.float32))
    add(history, [7, 8])
    history.flush()

    assert runs(history, imported=True) == [[0, 1, 2]]
    assert runs(history, imported=False) == [[7, 8]]
    assert runs(history) == [[0, 1, 2], [7, 8]]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=30),
    st.integers(0, 3),
)
def test_stretches_are_what_a_plain_loop_finds(tmp_path_factory, points, guard: int) -> None:
    """Whatever mix of series, flags, missing values and stamps: the same runs as point-by-point code."""
    history = History(tmp_path_factory.mktemp("drawn"), FEATURES)
    stamps = np.array([stamp for *_, stamp in points], np.int64)
    values = np.array(
        [[float(i), np.nan if missing else 0.0] for i, (_, _, missing, _) in enumerate(points)], np.float32
    )
    flagged = np.array([flag for _, flag, _, _ in points], np.bool_)
    if len(points):
        scores = np.full(len(points), np.nan, np.float32)
        history.append([name for name, *_ in points], stamps, values.reshape(-1, 2), scores, flagged)
    history.flush()

    expected: list[list[int]] = []
    for name in dict.fromkeys(name for name, *_ in points):
        rows = [i for i, point in enumerate(points) if point[0] == name]
        previous = None
        for at, i in enumerate(rows):
            near = any(flagged[j] for j in rows[max(at - guard, 0) : at + guard + 1])
            if near or np.isnan(values[i]).any():
                previous = None
                continue
            if previous is None or stamps[i] < stamps[previous]:
                expected.append([])
            expected[-1].append(i)
            previous = i
    found = [s.values[:, 0].astype(int).tolist() for s in read_stretches(history.paths(), FEATURES, guard=guard)]
    assert found == expected
