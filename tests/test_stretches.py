"""Stretches: only runs of consecutive normal points are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import PreconditionError
from server.history import History
from server.spans import Said, Span
from server.stretches import Stretch, read_stretches, some_of

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


def test_what_stays_flagged_comes_back(tmp_path: Path) -> None:
    """Where half of `shift` points in a row of a series are flagged, as a run of its own; an incident does not."""
    history = History(tmp_path, FEATURES)
    add(history, range(20), flagged=[2, *range(8, 20, 2)])
    add(history, range(5), series="b", flagged=range(5))
    history.flush()

    assert runs(history, shift=6) == [[0, 1], [3, 4, 5, 6, 7], list(range(8, 19)), [19]]
    assert runs(history, shift=6, guard=1) == [[0], [4, 5, 6, 7], list(range(8, 19)), [19]]
    assert runs(history, shift=5)[-1] == list(range(5))
    assert runs(history, shift=13)[:3] == [[0, 1], [3, 4, 5, 6, 7], [9]]


def test_what_people_said_counts_more_than_that_it_stays(tmp_path: Path) -> None:
    """A labelled anomaly stays out however long it lasts, and so does maintenance."""
    history = History(tmp_path, FEATURES)
    add(history, range(12), flagged=range(12))
    history.flush()

    said = Said(labels=((Span("", 4, 5), "anomaly"),), windows=(Span("a", 8, 8),))

    assert runs(history, shift=4, said=said) == [[0, 1, 2, 3], [6, 7], [9, 10, 11]]


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


def test_labelled_anomalies_are_left_out_with_their_neighbours(tmp_path: Path) -> None:
    """Flagged or not; a label without a series is about all of them, imported ones too."""
    history = History(tmp_path, FEATURES)
    history.add_points(np.arange(10), np.zeros((10, 2), np.float32))
    add(history, range(10), series="a")
    add(history, range(10), series="b")
    history.flush()
    everywhere = Said(labels=((Span("", 4, 5), "anomaly"),))
    only_a = Said(labels=((Span("a", 4, 5), "anomaly"),))

    assert runs(history, guard=1, said=everywhere) == [[0, 1, 2], [7, 8, 9]] * 3
    assert runs(history, guard=1, said=only_a) == [list(range(10)), [0, 1, 2], [7, 8, 9], list(range(10))]


def test_points_that_are_normal_after_all_come_back(tmp_path: Path) -> None:
    """With their neighbours, but for those that lie near another flag; the label's own points always do."""
    history = History(tmp_path, FEATURES)
    add(history, range(20), flagged=[5, 12])
    history.flush()

    def learned(*spans: tuple[int, int]) -> list[list[int]]:
        return runs(history, guard=4, said=Said(labels=tuple((Span("", *span), "normal") for span in spans)))

    assert learned() == [[0], [17, 18, 19]]
    assert learned((5, 5)) == [list(range(8)), [17, 18, 19]]
    assert learned((5, 5), (12, 12)) == [list(range(20))]
    assert learned((10, 10)) == [[0], [10], [17, 18, 19]]


def test_the_newest_label_of_a_point_counts(tmp_path: Path) -> None:
    """Somebody may take a second look."""
    history = History(tmp_path, FEATURES)
    add(history, range(6), flagged=[2])
    history.flush()
    normal, anomaly = (Span("", 2, 2), "normal"), (Span("", 2, 3), "anomaly")

    assert runs(history, said=Said(labels=(normal, anomaly))) == [[0, 1], [4, 5]]
    assert runs(history, said=Said(labels=(anomaly, normal))) == [[0, 1, 2], [4, 5]]


def test_maintenance_is_not_learned_from(tmp_path: Path) -> None:
    """Not even what is labelled normal in it."""
    history = History(tmp_path, FEATURES)
    add(history, range(8))
    history.flush()

    said = Said(labels=((Span("", 3, 3), "normal"),), windows=(Span("a", 2, 4),))

    assert runs(history, guard=1, said=said) == [[0, 1], [5, 6, 7]]
    assert runs(history, said=Said(windows=(Span("b", 0, 9),))) == [list(range(8))]
    assert Said.from_json(json.loads(json.dumps(said.to_json()))) == said


LABELS = st.lists(
    st.tuples(
        st.builds(
            lambda s, a, n: Span(s, a, a + n), st.sampled_from(["", "a", "b"]), st.integers(0, 3), st.integers(0, 2)
        ),
        st.sampled_from(["anomaly", "normal"]),
    ),
    max_size=4,
)


@settings(deadline=None)  # files are written
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 4)), min_size=1, max_size=25),
    LABELS,
    LABELS,
    st.integers(0, 2),
)
def test_what_people_said_counts_as_a_plain_loop_says(tmp_path_factory, points, labels, windows, guard: int) -> None:
    """Whatever mix of flags, labels and windows: the same points are learned from as by point-by-point code."""
    history = History(tmp_path_factory.mktemp("drawn"), FEATURES)
    n = len(points)
    names, flagged, stamps = ([point[i] for point in points] for i in range(3))
    values = np.column_stack([np.arange(n), np.zeros(n)]).astype(np.float32)
    history.append(names, np.array(stamps, np.int64), values, np.zeros(n, np.float32), np.array(flagged))
    history.flush()
    said = Said(labels=tuple(labels), windows=tuple(span for span, _ in windows))

    def inside(i: int, span: Span) -> bool:
        return span.series in {"", names[i]} and span.first <= stamps[i] <= span.last

    def label(i: int) -> str | None:
        return next((label for span, label in reversed(labels) if inside(i, span)), None)

    def bad(i: int) -> bool:
        return label(i) == "anomaly" or (flagged[i] and label(i) is None)

    expected = set()
    for name in "ab":
        rows = [i for i in range(n) if names[i] == name]
        for at, i in enumerate(rows):
            near = any(bad(j) for j in rows[max(at - guard, 0) : at + guard + 1])
            muted = any(inside(i, span) for span in said.windows)
            if not muted and (label(i) == "normal" or not near):
                expected.add(i)

    found = read_stretches(history.paths(), FEATURES, guard=guard, said=said)
    assert {int(i) for stretch in found for i in stretch.values[:, 0]} == expected


def test_some_stretches_are_drawn_whole_and_evenly() -> None:
    """No more points than asked for; the same seed draws the same; none is preferred for its place."""
    every = [Stretch(np.full(10, i), np.zeros((10, 1), np.float32)) for i in range(20)]

    drawn = [[int(it.stamps[0]) for it in some_of(every, 55, seed)] for seed in range(200)]

    assert {len(places) for places in drawn} == {5}
    assert drawn[0] == sorted(drawn[0]) == [int(it.stamps[0]) for it in some_of(every, 55, 0)]
    assert np.bincount(np.concatenate(drawn), minlength=20).min() > 25
    assert len(some_of(every, 1000, 0)) == 20


@settings(deadline=None)  # files are written
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
