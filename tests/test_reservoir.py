"""The reservoir: an even sample of old stretches outlives the retention, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.history import KEEP_REPLACED_SECONDS, History
from server.reservoir import MINIMUM_ROWS, STRETCH_ROWS, is_reservoir
from server.spans import Said, Span, Spans
from server.stretches import read_stretches

FEATURES = ["flow", "pressure"]
SEGMENT = 2 * STRETCH_ROWS


def opened(folder: Path, rows: int = 4 * STRETCH_ROWS, seed: int = 0, **options) -> History:
    """A history that keeps two segments of `SEGMENT` points and a reservoir."""
    rng = np.random.default_rng(seed)
    return History(folder, FEATURES, max_rows=2 * SEGMENT, reservoir_rows=rows, rng=rng, **options)


def import_segment(history: History, start: int, n: int = SEGMENT) -> None:
    """A segment of its own whose values are the stamps."""
    stamps = np.arange(start, start + n)
    history.add_points(stamps, np.column_stack([stamps, -stamps]).astype(np.float32))


def old(history: History, **options) -> list:
    """Stretches of the reservoir."""
    paths = [path for path in history.paths() if is_reservoir(path)]
    return read_stretches(paths, FEATURES, **options)


def test_stretches_of_what_was_let_go_are_kept(tmp_path: Path) -> None:
    """Whole, with the points as they were, and never run together with their neighbours."""
    history = opened(tmp_path)
    for i in range(10):
        import_segment(history, i * SEGMENT)

    kept = old(history)

    assert history.rows == 2 * SEGMENT
    assert [len(stretch.stamps) for stretch in kept] == [STRETCH_ROWS] * 4
    for stretch in kept:
        first = int(stretch.stamps[0])
        assert first % STRETCH_ROWS == 0
        assert first < 8 * SEGMENT
        assert stretch.stamps.tolist() == list(range(first, first + STRETCH_ROWS))
        assert stretch.values[:, 0].tolist() == stretch.stamps.tolist()
    assert len({int(stretch.stamps[0]) for stretch in kept}) == 4


def test_every_time_has_the_same_chance(tmp_path: Path) -> None:
    """Old and recent stretches alike, over many reservoirs: none of 16 is kept much more often than another."""
    seen = np.zeros(16)
    for seed in range(60):
        history = opened(tmp_path / str(seed), seed=seed)
        for i in range(10):
            import_segment(history, i * SEGMENT)
        for stretch in old(history):
            seen[int(stretch.stamps[0]) // STRETCH_ROWS] += 1

    assert seen.sum() == 60 * 4
    assert seen.min() >= 4  # 15 on average, deviation 3.4
    assert seen.max() <= 28
    assert abs(seen[:8].sum() - seen[8:].sum()) < 60


def test_flags_and_labels_count_in_the_reservoir_too(tmp_path: Path) -> None:
    """A point that was flagged is kept with its flag: it is left out, or learned from once it is called normal."""
    history = opened(tmp_path)
    n = SEGMENT
    values, scores = np.zeros((n, 2), np.float32), np.full(n, 7, np.float32)
    flagged = np.arange(n) == 100
    history.append(["a"] * n, np.arange(n), values, scores, flagged)
    history.flush()
    import_segment(history, 0)
    import_segment(history, 0)

    assert [len(it.stamps) for it in old(history, imported=False)] == [100, STRETCH_ROWS - 101, STRETCH_ROWS]
    normal = Said(labels=((Span("a", 100, 100), "normal"),))
    assert [len(it.stamps) for it in old(history, imported=False, said=normal)] == [STRETCH_ROWS] * 2


def test_what_is_mostly_flagged_or_short_is_not_worth_its_room(tmp_path: Path) -> None:
    """An alarm flood and series with few points leave nothing."""
    history = opened(tmp_path)
    n = SEGMENT
    names = ["a"] * (n - MINIMUM_ROWS + 1) + ["b"] * (MINIMUM_ROWS - 1)
    history.append(names, np.arange(n), np.zeros((n, 2), np.float32), np.zeros(n, np.float32), np.arange(n) % 40 == 0)
    history.flush()
    import_segment(history, 0)
    import_segment(history, 0)

    assert old(history) == []


def test_labelled_anomalies_stay_as_far_as_there_is_room(tmp_path: Path) -> None:
    """For half of the room at most, whatever was flagged around them; the rest is the even sample as ever."""
    said: list[Span] = [Span("import", 700, 710)]
    history = opened(tmp_path, rows=8 * STRETCH_ROWS, labelled=lambda: Spans(said))
    for i in range(20):
        import_segment(history, i * SEGMENT)
    kept = {int(it.stamps[0]) // STRETCH_ROWS for it in old(history)}
    assert len(kept) == 8
    assert 1 in kept

    said.append(Span("", 20 * SEGMENT, 30 * SEGMENT))
    for i in range(20, 40):
        import_segment(history, i * SEGMENT)
    kept = {int(it.stamps[0]) // STRETCH_ROWS for it in old(history)}
    assert len(kept) == 8
    assert len({place for place in kept if place == 1 or 40 <= place <= 60}) == 4


@pytest.mark.parametrize("removed", [False, True])
def test_a_crash_while_points_are_let_go_keeps_each_once(tmp_path: Path, removed: bool) -> None:
    """The reservoir's name says what it was offered: files that were let go are gone after a restart."""
    history = opened(tmp_path, rows=100 * SEGMENT)
    for i in range(6):
        import_segment(history, i * SEGMENT)
        if removed:
            history = opened(tmp_path, rows=100 * SEGMENT)
    history.flush()  # what was let go is still there: a process that ends here removes nothing

    again = opened(tmp_path, rows=100 * SEGMENT)
    import_segment(again, 6 * SEGMENT)
    stamps = np.concatenate([it.stamps for it in read_stretches(again.paths(), FEATURES)])

    assert sorted(stamps.tolist()) == list(range(7 * SEGMENT))
    assert len([path for path in tmp_path.iterdir() if is_reservoir(path)]) <= 2
    assert len(list(tmp_path.glob("*.partial"))) == 0


def test_a_reservoir_that_was_handed_out_stays_readable_for_a_while(tmp_path: Path) -> None:
    """The trainer may read what it was told although a newer one has replaced it."""
    now = [0.0]
    history = opened(tmp_path, clock=lambda: now[0])
    for i in range(3):
        import_segment(history, i * SEGMENT)
    handed_out = history.paths()
    import_segment(history, 3 * SEGMENT)

    assert history.paths()[0] != handed_out[0]
    assert len(read_stretches(handed_out, FEATURES)) >= 2
    now[0] += KEEP_REPLACED_SECONDS
    history.flush()
    assert not handed_out[0].exists()


def test_a_damaged_reservoir_does_not_stop_new_points(tmp_path: Path) -> None:
    """It is left for a person, and the retention goes on; once it was moved away a new one begins."""
    history = opened(tmp_path)
    for i in range(3):
        import_segment(history, i * SEGMENT)
    (damaged,) = (path for path in history.paths() if is_reservoir(path))
    damaged.write_bytes(b"PAR1")
    import_segment(history, 3 * SEGMENT)
    assert history.rows == 2 * SEGMENT

    damaged.unlink()
    import_segment(history, 4 * SEGMENT)
    assert [int(it.stamps[0]) // SEGMENT for it in old(history)] == [2, 2]


def test_none_is_none(tmp_path: Path) -> None:
    """`reservoir_rows: 0` keeps no file at all; a smaller setting shrinks what there is."""
    history = opened(tmp_path / "none", rows=0)
    for i in range(5):
        import_segment(history, i * SEGMENT)
    assert not any(map(is_reservoir, (tmp_path / "none").iterdir()))

    history = opened(tmp_path / "some")
    for i in range(5):
        import_segment(history, i * SEGMENT)
    smaller = opened(tmp_path / "some", rows=STRETCH_ROWS)
    import_segment(smaller, 5 * SEGMENT)
    assert [len(it.stamps) for it in old(smaller)] == [STRETCH_ROWS]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 900)), min_size=1, max_size=12), st.integers(0, 3000))
def test_whatever_comes_is_kept_as_it_was(tmp_path_factory, parts, rows: int) -> None:
    """Any mix of series and lengths: a bounded part of what was let go, each point once and with its own values."""
    folder = tmp_path_factory.mktemp("drawn")
    history = History(folder, FEATURES, max_rows=600, reservoir_rows=rows, rng=np.random.default_rng(1))
    stamp = 0
    for name, n in parts:
        stamps = np.arange(stamp, stamp + n)
        stamp += n
        values = np.column_stack([stamps, np.full(n, ord(name))]).astype(np.float32)
        history.append([name] * n, stamps, values, np.zeros(n, np.float32), np.zeros(n, np.bool_))
        history.flush()
    owner = np.concatenate([np.full(n, ord(name)) for name, n in parts])

    kept = old(History(folder, FEATURES, max_rows=600, reservoir_rows=rows))

    stamps = np.concatenate([np.zeros(0, np.int64), *(it.stamps for it in kept)])
    assert len(stamps) == len(set(stamps.tolist())) <= rows
    assert all(MINIMUM_ROWS <= len(it.stamps) <= STRETCH_ROWS for it in kept)
    for stretch in kept:
        assert (stretch.values[:, 0] == stretch.stamps).all()
        assert (stretch.values[:, 1] == owner[stretch.stamps]).all()
