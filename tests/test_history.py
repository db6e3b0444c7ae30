"""The history: points come back as they went in, survive a crash, and stay few files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from server.history import KEEP_REPLACED_SECONDS, History
from server.segments import Arrival, Segment, arrival_of, read_segment, schema_of
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


def test_points_come_back_by_series_in_order_of_arrival(tmp_path: Path) -> None:
    """Series that arrive interleaved, over several flushes, are whole again."""
    history = History(tmp_path, FEATURES)
    add(history, [1, 1, 2], series=["a", "b", "a"])
    history.flush()
    add(history, [2, 3], series=["b", "a"])
    history.flush()

    stretches = read_stretches(history.paths(), FEATURES)

    assert [stretch.stamps.tolist() for stretch in stretches] == [[1, 2, 3], [1, 2]]
    assert stretches[0].values.tolist() == [[1, -1], [2, -2], [3, -3]]
    assert stretches[0].values.dtype == np.float32


def test_nothing_appended_is_nothing_written(tmp_path: Path) -> None:
    """An idle detector makes no files, not even a folder."""
    history = History(tmp_path / "idle", FEATURES)

    assert history.flush() is None
    assert not history.folder.exists()
    assert read_stretches([], FEATURES) == []


def test_what_was_flushed_is_there_after_reopening(tmp_path: Path) -> None:
    """Only points that were not flushed are lost."""
    history = History(tmp_path, FEATURES)
    add(history, range(10))
    history.flush()
    add(history, range(10, 15))

    assert history.rows == 15
    again = History(tmp_path, FEATURES)
    assert again.rows == 10
    assert runs(again) == [list(range(10))]


def test_many_small_flushes_are_few_files(tmp_path: Path) -> None:
    """A flush every few seconds for a long time leaves O(log n) segments, and every point in order."""
    now = [0.0]
    history = History(tmp_path, FEATURES, clock=lambda: now[0])
    for i in range(200):
        now[0] += 60
        add(history, [i])
        history.flush()

    assert len(history.paths()) <= 8
    assert runs(history) == [list(range(200))]
    assert len(list(tmp_path.iterdir())) <= 8 + 2 * KEEP_REPLACED_SECONDS / 60


def test_paths_that_were_handed_out_stay_readable_for_a_while(tmp_path: Path) -> None:
    """The trainer may read what it was told although newer segments have replaced it."""
    now = [0.0]
    history = History(tmp_path, FEATURES, clock=lambda: now[0])
    add(history, [0])
    history.flush()
    handed_out = history.paths()
    add(history, [1])
    history.flush()

    assert history.paths() != handed_out
    assert [stretch.stamps.tolist() for stretch in read_stretches(handed_out, FEATURES)] == [[0]]

    now[0] += KEEP_REPLACED_SECONDS
    history.flush()
    assert not handed_out[0].exists()


def test_a_crash_between_merging_and_removing_counts_no_point_twice(tmp_path: Path) -> None:
    """A segment that another one covers is not part of the history, and goes on opening."""
    history = History(tmp_path, FEATURES)
    add(history, [0])
    history.flush()
    add(history, [1])
    history.flush()  # the first segment's file is still there: its removal was never reached
    (tmp_path / "0000000009-0000000009-3.partial").write_bytes(b"torn")

    again = History(tmp_path, FEATURES)

    assert len(list(tmp_path.iterdir())) == 1
    assert runs(again) == [[0, 1]]


def test_the_oldest_points_go_first(tmp_path: Path) -> None:
    """Retention keeps the newest segments, and always the newest one."""
    history = History(tmp_path, FEATURES, max_rows=50)
    for start in (0, 40, 80):
        history.add_points(np.arange(start, start + 40), np.zeros((40, 2), np.float32))

    assert history.rows == 40
    assert runs(history) == [list(range(80, 120))]

    small = History(tmp_path / "small", FEATURES, max_bytes=1)
    small.add_points(np.arange(5), np.zeros((5, 2), np.float32))
    assert small.rows == 5


def test_points_go_when_they_are_too_old(tmp_path: Path) -> None:
    """By when they arrived, whatever their stamps, give or take an eighth of the age; also after reopening."""
    now = [1e9]
    history = History(tmp_path, FEATURES, max_age=800, now=lambda: now[0])
    for i in range(300):
        now[0] += 10
        add(history, [i])
        history.flush()

    (kept,) = runs(history)
    assert kept[-1] == 299
    assert 80 <= len(kept) <= 80 + 11

    again = History(tmp_path, FEATURES, max_age=800, now=lambda: now[0] + 400)
    add(again, [300])
    again.flush()
    (kept,) = runs(again)
    assert kept[-1] == 300
    assert 40 <= len(kept) <= 40 + 12


def test_age_never_takes_the_newest_points(tmp_path: Path) -> None:
    """A detector that nobody streamed to for a year still has what it was last fitted on."""
    now = [1e9]
    history = History(tmp_path, FEATURES, max_age=60, now=lambda: now[0])
    history.add_points(np.arange(5), np.zeros((5, 2), np.float32))
    now[0] += 1e7
    assert History(tmp_path, FEATURES, max_age=60, now=lambda: now[0]).rows == 5

    add(history, [7])
    history.flush()
    assert runs(history) == [[7]]


def test_the_age_of_a_segment_survives_a_copy(tmp_path: Path) -> None:
    """A restored backup has new file times; when points arrived stands in the file. Without that, its time counts."""
    history = History(tmp_path, FEATURES, now=lambda: 1e9)
    add(history, [0])
    path = history.flush()
    assert arrival_of(path) == Arrival(1e9, 1e9)

    pq.write_table(read_segment(path, schema_of(FEATURES)), path)
    os.utime(path, (5, 5))
    assert arrival_of(path) == Arrival(5, 5)


def test_points_of_a_file_are_one_segment(tmp_path: Path) -> None:
    """An import is not merged with what was there, so that its path is exactly the file's points."""
    history = History(tmp_path, FEATURES)
    add(history, [1, 2])
    path = history.add_points(np.arange(3), np.zeros((3, 2), np.float32))

    assert [stretch.stamps.tolist() for stretch in read_stretches([path], FEATURES)] == [[0, 1, 2]]
    assert history.rows == 5


def test_a_damaged_segment_does_not_stop_new_points(tmp_path: Path) -> None:
    """It is left where it is for a person; what comes after is kept beside it."""
    history = History(tmp_path, FEATURES)
    add(history, [0])
    damaged = history.flush()
    damaged.write_bytes(b"PAR1")
    add(history, [1, 2])
    path = history.flush()

    assert history.paths() == [damaged, path]
    assert [stretch.stamps.tolist() for stretch in read_stretches([path], FEATURES)] == [[1, 2]]


def test_points_that_could_not_be_written_wait_for_the_next_flush(tmp_path: Path) -> None:
    """A disk that is full for a while costs nothing and leaves no half-written file."""
    folder = tmp_path / "history"
    history = History(folder, FEATURES)
    folder.write_text("in the way")
    add(history, [0, 1])
    with pytest.raises(OSError, match="exists"):
        history.flush()
    folder.unlink()
    add(history, [2])
    history.flush()

    assert runs(history) == [[0, 1, 2]]


def test_only_segments_are_read_from_the_folder(tmp_path: Path) -> None:
    """Other files are left alone."""
    (tmp_path / "notes.txt").write_text("mine")

    assert History(tmp_path, FEATURES).paths() == []
    assert Segment.named(Path("1-2-x.parquet")) is None
    assert Segment.named(Path(Segment(1, 2, 3).file_name)) == Segment(1, 2, 3)
