"""`prunewatch plot`: what is in the picture, exactly; and that the picture is drawn, the same from store and server."""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import hub_settings
from graphs import ewma_bundle
from hypothesis import given
from hypothesis import strategies as st

from detectors.bundle import write_bundle
from detectors.errors import InvalidInputError
from detectors.stamps import Status
from server import figures
from server.annotations import spread, value_texts
from server.anomaly_keeping import AnomalyQuery
from server.app import Hub
from server.cli import main
from server.commands import plot
from server.config import DetectorConfig
from server.csv_input import Table, read_csv
from server.drawing import WIDTH, draw, height_inches
from server.figures import DOTS
from server.lines import line, thinned
from server.picture import JOIN_ROWS, NAMED_SPANS, PANELS, chosen, picture_of
from server.publish import publish_fit
from server.scores_csv import Scores
from server.store import Store
from server.time_axis import GAP_STEPS, Window, gaps, runs

BEGIN = datetime(2024, 5, 1, 12, tzinfo=UTC)
THRESHOLD = 2.0


def table(values: np.ndarray, *, names=None, minutes=None, labels=None, integers=False) -> Table:
    """Points a minute apart, or at these `minutes`."""
    minutes = list(range(len(values))) if minutes is None else minutes
    texts = [str(it) if integers else f"{BEGIN + timedelta(minutes=it):%Y-%m-%dT%H:%M:%SZ}" for it in minutes]
    stamps = np.array(minutes if integers else [1_714_564_800 * 10**9 + it * 60 * 10**9 for it in minutes], np.int64)
    names = names or [f"f{i + 1}" for i in range(values.shape[1])]
    return Table(Path("points.csv"), names, stamps, texts, values.astype(np.float32), np.arange(len(values)), labels)


def scores(score, shares=None, *, features=("f1", "f2"), status=None, version=1) -> Scores:
    """Scores as given, NaN while warming up; `shares` of the flagged rows in order, all of the first feature if not."""
    score = np.array(score, np.float32)
    status = np.where(np.isnan(score), Status.WARMING_UP, Status.OK) if status is None else np.array(status)
    flagged = np.flatnonzero(score >= THRESHOLD)
    shares = np.eye(len(features))[[0] * len(flagged)] if shares is None else np.array(shares)
    contributions = dict(zip(flagged.tolist(), shares.astype(np.float32), strict=True))
    versions = np.full(len(score), version, np.int64) if np.isscalar(version) else np.array(version)
    return Scores(status.astype(np.uint8), score, np.float32(THRESHOLD), versions, list(features), contributions)


def flat(n: int, flagged: dict[int, float] | None = None) -> np.ndarray:
    """Scores of 1, but for these rows."""
    found = np.ones(n)
    for row, score in (flagged or {}).items():
        found[row] = score
    return found


# what is drawn


def test_flagged_rows_near_each_other_are_one_span() -> None:
    """Up to `JOIN_ROWS` others between two flagged rows belong to the span, one more ends it."""
    n, apart = 60, JOIN_ROWS + 1
    score = flat(n, {10: 3, 10 + apart: 5, 30: 4, 30 + apart + 1: 4})
    shares = [[1.0, 0.0], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]]
    picture = picture_of("pump", table(np.zeros((n, 2))), scores(score, shares))

    assert [span.rows for span in picture.spans] == [(10, 10 + apart), (30, 30), (31 + apart, 31 + apart)]
    first = picture.spans[0]
    assert (first.points, first.peak) == (2, 5.0)
    assert (first.start, first.end) == ("2024-05-01T12:10:00Z", "2024-05-01T12:16:00Z")
    assert first.features == (("f1", 0.75), ("f2", 0.25))
    assert picture.spans[2].features == (("f2", 1.0),)
    minute = 60e9
    assert first.extent == (9.5 * minute, 16.5 * minute)
    assert picture.title == "pump · version 1 · 3 flagged spans"
    assert picture.subtitle.startswith("4 of 60 points at or above the threshold 2 (one normal point in 100)")


def test_a_gap_ends_a_span() -> None:
    """Rows on both sides of a gap in time are two spans, however near they stand in the file."""
    minutes = [*range(20), *range(200, 220)]
    picture = picture_of("p", table(np.zeros((40, 2)), minutes=minutes), scores(flat(40, {19: 3, 20: 3})))

    assert [span.rows for span in picture.spans] == [(19, 19), (20, 20)]
    assert np.isnan(picture.score.values).sum() == 1


def test_rows_that_are_not_due_are_no_hole() -> None:
    """A detector that scores every fourth point has an unbroken line, and spans over the points between."""
    score = np.full(40, np.nan)
    score[3::4] = 1
    score[[11, 15, 19]] = 3
    status = np.where(np.isnan(score), Status.NOT_DUE, Status.OK)
    status[:3] = Status.WARMING_UP
    labels = np.arange(40) // 5 == 2
    picture = picture_of("p", table(np.zeros((40, 2)), labels=labels, integers=True), scores(score, status=status))

    assert [(span.rows, span.points) for span in picture.spans] == [((11, 19), 3)]
    assert np.isfinite(picture.score.values).all()
    assert picture.warming.tolist() == [[-0.5, 2.5]]
    assert len(picture.unscored) == 0
    assert picture.labelled.tolist() == [[9.5, 14.5]]


def test_the_highest_spans_are_named_in_the_order_of_time() -> None:
    """`NAMED_SPANS` of them; a note counts the others."""
    peaks = {10 * i: 3 + (i * 7 % 15) for i in range(15)}
    picture = picture_of("p", table(np.zeros((150, 2))), scores(flat(150, peaks)))

    highest = sorted(sorted(peaks, key=lambda row: -peaks[row])[:NAMED_SPANS])
    assert len(picture.spans) == 15
    assert [span.rows[0] for span in picture.named] == highest
    assert "5 more spans with lower peaks not listed." in picture.notes


def test_panels_are_the_features_that_contributed_most() -> None:
    """At most `PANELS`, the largest mean share of flagged points first; the others are named."""
    names = [f"s{i}" for i in range(9)]
    share = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8]) / 36
    picture = picture_of("p", table(np.zeros((30, 9)), names=names), scores(flat(30, {5: 3}), [share], features=names))

    assert [panel.name for panel in picture.panels] == ["s8", "s7", "s6", "s5", "s4", "s3"]
    assert picture.panels[0].share == pytest.approx(8 / 36)
    assert picture.spans[0].features == (("s8", 0.222222), ("s7", 0.194444), ("s6", 0.166667))
    assert [len(panel.leads) for panel in picture.panels] == [1, 1, 1, 0, 0, 0]
    assert "3 features not drawn (--features): s0, s1, s2." in picture.notes


def test_without_a_flagged_point_panels_are_the_first_features() -> None:
    """There is nothing to rank by, and no share to name."""
    names = [f"s{i}" for i in range(PANELS + 1)]
    picture = picture_of("p", table(np.zeros((9, len(names))), names=names), scores(flat(9), features=names))

    assert [(panel.name, panel.share) for panel in picture.panels] == [(name, None) for name in names[:PANELS]]
    assert picture.title.endswith("0 flagged spans")


def test_features_can_be_asked_for() -> None:
    """In this order, each once, more than `PANELS` too; an unknown one is told what there is."""
    names = [f"s{i}" for i in range(9)]
    points, found = table(np.zeros((9, 9)), names=names), scores(flat(9), features=names)

    picture = picture_of("p", points, found, wanted=["s3", *names, "s3"])
    assert [panel.name for panel in picture.panels] == ["s3", "s0", "s1", "s2", *names[4:]]
    with pytest.raises(InvalidInputError, match=r"no feature 'x'. There are: s0, s1"):
        picture_of("p", points, found, wanted=["s1", "x"])
    with pytest.raises(InvalidInputError, match="no feature is named"):
        chosen(names, [])


def test_columns_in_another_order_are_those_of_the_detector() -> None:
    """Shares come in the order of the detector, columns in that of the file."""
    points = table(np.array([[1.0, 2.0]] * 9), names=["f2", "f1"])
    picture = picture_of("p", points, scores(flat(9, {4: 3}), [[1.0, 0.0]]))

    assert [(panel.name, panel.share) for panel in picture.panels] == [("f1", 1.0), ("f2", 0.0)]
    assert picture.panels[0].line.values.tolist() == [2.0] * 9


def test_rows_without_a_score_are_shown_as_such() -> None:
    """Warming up and invalid apart, nothing for stamps that repeat; the line of scores breaks at the first two."""
    score = flat(20)
    score[:3] = score[[8, 9, 14]] = np.nan
    status = np.where(np.isnan(score), Status.WARMING_UP, Status.OK)
    status[[8, 9]], status[14] = Status.INVALID, Status.DUPLICATE
    minutes = [*range(14), 13, *range(14, 19)]
    picture = picture_of("p", table(np.zeros((20, 2)), minutes=minutes), scores(score, status=status))

    minute = 60e9
    assert picture.warming.tolist() == [[-0.5 * minute, 2.5 * minute]]
    assert picture.unscored.tolist() == [[7.5 * minute, 9.5 * minute]]
    assert np.flatnonzero(np.isnan(picture.score.values)).tolist() == [5]
    assert "Rows that were not taken: 1 duplicate, 2 invalid." in picture.notes


def test_labels_are_a_band_where_there_are_any() -> None:
    """Stretches of labelled rows; None without the column."""
    labels = np.zeros(10, bool)
    labels[[0, 1, 2, 9]] = True
    points = table(np.zeros((10, 2)), labels=labels, integers=True)

    assert picture_of("p", points, scores(flat(10))).labelled.tolist() == [[-0.5, 2.5], [8.5, 9.5]]
    assert picture_of("p", table(np.zeros((10, 2))), scores(flat(10))).labelled is None


def test_labels_are_read_however_they_are_written(tmp_path: Path) -> None:
    """Zero, nothing and words for normal are not labelled, everything else is; a label can be no error."""
    cells = ["1", "0", "0.0", "", "leak", "Normal", "true", "false", "nan", "2"]
    path = tmp_path / "points.csv"
    path.write_text("t,Label,f1\n" + "\n".join(f"{i},{cell},1" for i, cell in enumerate(cells)))

    read = read_csv(path)
    assert read.features == ["f1"]
    assert read.labels.tolist() == [True, False, False, False, True, False, True, False, False, True]
    assert read.in_time_order()[0].labels.tolist() == read.labels.tolist()
    path.write_text("t,f1\n0,1\n")
    assert read_csv(path).labels is None


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        (Window(), (0, 9)),
        (Window(from_row=3), (3, 9)),
        (Window(from_row=3, to_row=5), (3, 4)),
        (Window(since="2024-05-01T12:03:00Z"), (3, 9)),
        (Window(since="2024-05-01T14:03+02:00", until="2024-05-01T12:05"), (3, 4)),
    ],
)
def test_a_window_is_rows_or_times(window: Window, rows: tuple[int, int]) -> None:
    """From the first row or time on, up to before the last."""
    found = window.rows(table(np.zeros((10, 1))))

    assert (found[0], found[-1]) == rows


def test_a_window_changes_what_is_drawn_and_no_score() -> None:
    """Counts, spans and shares are those of the window; rows keep their numbers."""
    picture = picture_of(
        "p", table(np.zeros((50, 2))), scores(flat(50, {5: 9, 40: 3}), [[1, 0], [0, 1]]), Window(from_row=20, to_row=45)
    )

    assert [span.rows for span in picture.spans] == [(40, 40)]
    assert picture.panels[0].name == "f2"
    assert picture.subtitle.startswith("1 of 25 points")
    assert "25 of 50 rows of the file are drawn; all were scored." in picture.notes


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (Window(from_row=10), "It has rows 0 to 9, from 2024-05-01T12:00:00Z to 2024-05-01T12:09:00Z"),
        (Window(since="5"), "Write 2024-05-01T12:00:00Z"),
        (Window(until="2024-13-01"), "neither an ISO-8601 time"),
    ],
)
def test_an_impossible_window_is_told_what_there_is(window: Window, says: str) -> None:
    """No rows inside, a number where there are dates, no date."""
    with pytest.raises(InvalidInputError) as refused:
        window.rows(table(np.zeros((10, 1))))

    assert says in str(refused.value)


def test_every_version_that_scored_is_named() -> None:
    """A server may have swapped while it scored."""
    picture = picture_of("p", table(np.zeros((4, 2))), scores(flat(4), version=[2, 2, 3, 3]))

    assert picture.title == "p · versions 2, 3 · 0 flagged spans"


def test_the_axis_is_what_the_stamps_are() -> None:
    """Dates, integers as they are, and row numbers where the stamps are no time; large integers keep every digit."""

    def axis(points: Table):
        return picture_of("p", points, scores(flat(len(points)), features=["f1"])).axis

    one = np.zeros((30, 1))
    assert axis(table(one)).kind == "dates"
    assert (axis(table(one, integers=True)).kind, axis(table(one, integers=True)).origin) == ("numbers", 0)
    assert axis(table(one, minutes=[i // 3 for i in range(30)], integers=True)).kind == "rows"
    large = axis(table(one, minutes=[10**18 + 1 + i for i in range(30)], integers=True))
    assert (large.kind, large.origin, large.limits) == ("numbers", 10**18 + 1, (-0.5, 29.5))


def test_one_row_is_a_picture_too() -> None:
    """It has a width on the axis, and is seen although it makes no line."""
    picture = picture_of("p", table(np.ones((1, 2))), scores([3.0]))

    assert picture.axis.limits == (-0.5e9, 0.5e9)
    assert picture.score.alone.tolist() == [True]


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 4))
def test_runs_hold_every_marked_row_once(marked: list[bool], join: int) -> None:
    """In order, ends are marked, and between two runs there is more than `join`."""
    mask = np.array(marked, bool)
    found = runs(mask, np.ones_like(mask), np.zeros_like(mask), join)

    assert sum(int(mask[first : last + 1].sum()) for first, last in found) == mask.sum()
    assert all(mask[first] and mask[last] for first, last in found)
    assert all(later - last > join + 1 for (_, last), (later, _) in pairwise(found))


# lines


@given(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=400),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
)
def test_thinning_loses_no_extreme(values: list[float], places: int, seed: int) -> None:
    """First, last, lowest and highest of every place stay; rows stay in order; at most four a place."""
    steps = np.random.default_rng(seed).integers(1, 9, len(values))
    at, drawn = np.cumsum(steps).astype(float), np.array(values, np.float32)
    rows = thinned(at, drawn, places)

    place = np.minimum(((at - at[0]) / max(at[-1] - at[0], 1) * places).astype(int), places - 1)
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= max(4 * places, 1) or len(rows) == len(values) <= 4 * places
    for each in np.unique(place):
        inside, kept = np.flatnonzero(place == each), rows[place[rows] == each]
        assert {inside[0], inside[-1]} <= set(kept.tolist())
        assert (drawn[kept].min(), drawn[kept].max()) == (drawn[inside].min(), drawn[inside].max())


def test_few_rows_are_all_drawn_and_many_are_said_to_be_thinned() -> None:
    """50,000 rows become a few thousand with the spike of one row among them, and a note says so."""
    values = np.zeros((50_000, 1))
    values[31_415] = 7
    picture = picture_of("p", table(values, integers=True), scores(flat(50_000, {777: 9}), features=["f1"]))

    drawn = picture.panels[0].line
    assert drawn.thinned
    assert len(drawn.at) <= 4800
    assert drawn.at[drawn.values == 7].tolist() == [31_415]
    assert picture.score.values.max() == 9
    assert any("no spike is lost" in note for note in picture.notes)
    assert not picture_of("p", table(values[:4800], integers=True), scores(flat(4800), features=["f1"])).notes


def test_lines_break_where_a_value_is_missing_and_at_gaps() -> None:
    """A value between two breaks stands alone, so that it can be drawn as a point."""
    values = np.array([1, 2, np.nan, 3, np.nan, 4, 5], np.float32)
    drawn = line(np.arange(7.0), values, np.array([0, 0, 0, 0, 0, 0, 1], bool))

    np.testing.assert_array_equal(drawn.values, [1, 2, np.nan, 3, np.nan, 4, np.nan, 5])
    assert (np.diff(drawn.at) >= 0).all()
    assert np.flatnonzero(drawn.alone).tolist() == [3, 5, 7]


def test_a_gap_is_many_times_the_usual_step() -> None:
    """Steps up to `GAP_STEPS` medians are none, so that irregular stamps do not tear the line."""
    at = np.cumsum([0, 1, 1, 1, GAP_STEPS, 1, 1, GAP_STEPS + 1, 1])

    assert np.flatnonzero(gaps(at)).tolist() == [7]


# on paper


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=10))
def test_numbers_never_overlap(middles: list[float]) -> None:
    """They stay in order, a width apart, and on the sheet; those with room stay where they are."""
    width = 0.05
    middles = sorted(middles)
    places = spread(middles, width)

    assert all(b - a >= width - 1e-6 for a, b in pairwise(places))
    assert width / 2 - 1e-6 <= places[0]
    assert places[-1] <= 1 - width / 2 + 1e-6
    if all(b - a >= width for a, b in pairwise(middles)):
        np.testing.assert_allclose(places, np.clip(middles, width / 2, 1 - width / 2), atol=width * len(middles))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([5.0], ["5"]),
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([1e6, 1.5e6], ["1,000,000", "1,500,000"]),
        ([0.0, 1e-9], ["0", "1e-09"]),
        ([-1e30, 0.0, 1e30], ["-1e+30", "0", "1e+30"]),
    ],
)
def test_values_have_as_many_digits_as_they_need(values: list[float], texts: list[str]) -> None:
    """No exponent where a person would write none."""
    assert value_texts(values) == texts


def png_size(path: Path) -> tuple[int, int]:
    """Width and height as the file says."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


@pytest.mark.parametrize("n", [1, 2, 50, 5000])
@pytest.mark.parametrize("n_features", [1, 8, 55])
def test_pictures_of_any_size_are_drawn(tmp_path: Path, n: int, n_features: int) -> None:
    """From one row of one feature to many of 55, all asked for; the size is what the content needs."""
    rng = np.random.default_rng(n)
    names = [f"a sensor with quite a long name {i}" for i in range(n_features)]
    score = rng.exponential(size=n)
    shares = rng.dirichlet(np.ones(n_features), int((score.astype(np.float32) >= THRESHOLD).sum()))
    points = table(rng.normal(size=(n, n_features)), names=names, labels=rng.random(n) < 0.1)
    picture = picture_of("p", points, scores(score, shares, features=names), wanted=names)
    out = tmp_path / "p.png"

    draw(picture, out, "png")

    assert png_size(out) == pytest.approx((WIDTH * DOTS, height_inches(picture) * DOTS), abs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_names_can_be_anything(tmp_path: Path) -> None:
    """Dollars are no formula, other scripts and control characters no error, markup no markup."""
    names = ["$x^2$", "流量 <b>&", "bell\x07", "_"]
    shares = [[0.25, 0.25, 0.25, 0.25]]
    picture = picture_of("p", table(np.zeros((9, 4)), names=names), scores(flat(9, {4: 3}), shares, features=names))

    for kind in ("svg", "png", "pdf"):
        draw(picture, tmp_path / f"p.{kind}", kind)

    text = (tmp_path / "p.svg").read_text()
    assert "$x^2$ 25%" in text
    assert "流量 &lt;b&gt;&amp;" in text


# the command


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line; gives its exit code and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store that serves `pump` with two features."""
    with Store.open(tmp_path / "store") as store:
        store.catalog.create_detector("pump", DetectorConfig(false_alarm_rate=0.01).model_dump(mode="json"))
        bundle = ewma_bundle("pump")
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        made = {"hash": bundle.hash, "version": 1, "units": {"lstm0": 2}, "parameters": 3, "bytes": bundle.size}
        times = {"p50_seconds": 1e-3, "p99_seconds": 2e-3, "error": 0.5}
        publish_fit(store, "pump", {"parent": {**made, **times}})
    return tmp_path / "store"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """600 points, in two of which f2 jumps, and labels around the first; the columns in another order."""
    values = np.random.default_rng(5).normal(scale=0.2, size=(600, 2))
    values[[300, 500], 1] = 30
    path = tmp_path / "points.csv"
    rows = [
        f"{BEGIN + timedelta(minutes=i):%Y-%m-%dT%H:%M:%SZ},{b},{a},{int(290 <= i < 310)}"
        for i, (a, b) in enumerate(values)
    ]
    path.write_text("\n".join(["time,f2,f1,label", *rows]) + "\n")
    return path


def split(points: Path, row: int) -> tuple[Path, Path]:
    """The rows before this one and the others, as two files."""
    header, *rows = points.read_text().splitlines(keepends=True)
    before, after = points.with_name("before.csv"), points.with_name("after.csv")
    before.write_text("".join([header, *rows[:row]]))
    after.write_text("".join([header, *rows[row:]]))
    return before, after


def test_a_picture_names_what_was_found(prunewatch, root: Path, points: Path, tmp_path: Path) -> None:
    """The SVG says detector, version, spans with their times, and the feature to blame with its share."""
    out = tmp_path / "pump.svg"
    code, err = prunewatch("plot", "pump", "--data", points, "--out", out, "--store", root)

    text = out.read_text()
    assert code == 0, err
    assert "597 of 600 rows scored, 2 anomalies, 3 warming up, 2 flagged spans drawn" in err
    for words in (
        "pump · version 1 · 2 flagged spans",
        "2 of 600 points at or above the threshold 2 (one normal point in 100)",
        "2024-05-01T17:00:00Z",
        "2024-05-01T20:20:00Z",
        "of flagged error",
        "labelled",
        "warming up",
        "contributed most to the error",
    ):
        assert words in text, words
    assert len(re.findall(r">f2 (9\d|100)%<", text)) == 2


def test_a_picture_leaves_no_trace(prunewatch, root: Path, points: Path, tmp_path: Path) -> None:
    """The store is as it was, byte for byte, and drawing once more gives the same bytes."""

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    before = files()
    for out in ("1.png", "2.png"):
        assert prunewatch("plot", "pump", "--data", points, "--out", tmp_path / out, "--store", root)[0] == 0

    assert files() == before
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_says_what_it_becomes(prunewatch, root: Path, points, tmp_path: Path, suffix: str, begins) -> None:
    """Three kinds, in small or large letters."""
    out = tmp_path / f"pump.{suffix}"
    assert prunewatch("plot", "pump", "--data", points, "--out", out, "--store", root)[0] == 0

    assert out.read_bytes().startswith(begins)


def test_what_can_be_asked_for_can_be_drawn() -> None:
    """The command, which must not import matplotlib, knows the formats of the drawing."""
    assert set(plot.FORMATS) == set(figures.FORMATS)


def test_points_that_came_before_warm_up(prunewatch, root: Path, points: Path, tmp_path: Path) -> None:
    """With --warm there is no hatching, and they are not drawn."""
    (before, after), out = split(points, 200), tmp_path / "pump.svg"
    code, _ = prunewatch("plot", "pump", "--data", after, "--warm", before, "--out", out, "--store", root)

    assert code == 0
    assert "warming up" not in out.read_text()
    assert "2 of 400 points" in out.read_text()
    assert len(re.findall(r">f2 (9\d|100)%<", out.read_text())) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "pump.gif"), "a picture can not be '.gif'. Name a file that ends in .png, .svg or .pdf."),
        (("--out", "pump"), "has no suffix"),
        (("--out", "nowhere/pump.png"), "no such folder"),
        (("--out", "pump.png", "--features", "f1,f9"), "no feature 'f9'. There are: f2, f1"),
        (("--out", "pump.png", "--from-row", "600"), "rows 0 to 599"),
        (("--out", "pump.png", "--since", "yesterday"), "--since"),
    ],
)
def test_mistakes_are_one_line(prunewatch, root: Path, points, tmp_path, monkeypatch, arguments, says: str) -> None:
    """Exit code 2 and what to do; no file is written."""
    monkeypatch.chdir(tmp_path)
    code, err = prunewatch("plot", "pump", "--data", points, "--store", root, *arguments)

    assert (code, says in err, "Traceback" in err) == (2, True, False), err
    assert not list(tmp_path.glob("*pump*"))


@pytest.mark.slow
async def test_a_server_gives_the_same_picture(prunewatch, root: Path, points: Path, tmp_path: Path) -> None:
    """Byte for byte, warmed up or not; nothing of it is kept as an anomaly."""
    before, after = split(points, 309)  # an anomaly before it, and no whole message
    asked = {"cold": ("--data", points), "warm": ("--data", after, "--warm", before)}
    for name, arguments in asked.items():
        assert prunewatch("plot", "pump", *arguments, "--out", tmp_path / f"{name}.svg", "--store", root)[0] == 0
    shutil.copytree(root, tmp_path / "served" / "store")
    hub = Hub(hub_settings(tmp_path / "served"))
    await hub.start()

    try:
        server = f"127.0.0.1:{hub.listener.port}"
        for name, arguments in asked.items():
            far = tmp_path / f"{name}-far.svg"
            command = ("plot", "pump", *arguments, "--out", far, "--server", server)
            code, err = await asyncio.to_thread(prunewatch, *command)
            assert code == 0, err
            assert far.read_bytes() == (tmp_path / f"{name}.svg").read_bytes()
    finally:
        await hub.stop()
    with Store.open(tmp_path / "served" / "store") as store:
        assert list(store.catalog.anomalies(AnomalyQuery("pump", None, None, None, limit=10))) == []
