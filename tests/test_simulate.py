"""`prunewatch simulate`: a series goes through the real loop, and is judged beside a frozen detector."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_TRAINER
from fits import SMALL, machine
from graphs import ewma_scores
from quick_trainer import FLOOD, REJECT
from sklearn.metrics import average_precision_score

from detectors.errors import PrunewatchError
from server.cli import main
from server.commands import simulate
from server.config import DetectorConfig, Settings
from server.csv_input import Table
from server.simulate import replay
from server.simulate_outcome import Replay
from server.simulate_plot import draw
from server.simulate_quality import average_precision, described, quality, segments, served
from server.store import Store

TRAIN = 150
ROWS = 1050
BEGIN = datetime(2015, 3, 1, tzinfo=UTC)


def series(rows: int = ROWS, *, minutes: int = 5, labels: bool = True, dates: bool = True) -> Table:
    """Two features with noise; one labelled stretch near the end, where both jump."""
    values = np.random.default_rng(5).normal(0.0, 0.1, (rows, 2)).astype(np.float32)
    marked = np.zeros(rows, np.bool_)
    marked[rows - 100 : rows - 90] = True
    values[marked] += 100.0
    times = [BEGIN + timedelta(minutes=minutes * row) for row in range(rows)]
    first = int(BEGIN.timestamp()) * 10**9
    stamps = first + np.arange(rows) * minutes * 60 * 10**9 if dates else np.arange(rows)
    texts = [f"{it:%Y-%m-%dT%H:%M:%SZ}" if dates else str(row) for row, it in enumerate(times)]
    return Table(Path("series.csv"), ["a", "b"], stamps, texts, values, np.arange(rows), marked if labels else None)


async def replayed(
    table: Table, folder: Path, *, dates: bool = True, answered: bool = False, **config: object
) -> Replay:
    """A replay with the quick trainer."""
    detector = DetectorConfig(features=table.features, time="stamp" if dates else "index", **config)
    settings = Settings(
        store=folder / "store", device_classes={"hub": {"speedup": 2, "batch": 256}}, detectors={"pump": detector}
    )
    seconds = None if dates else 1.0
    return await replay(
        table, settings, "pump", train_rows=TRAIN, step_seconds=seconds, answered=answered, trainer=QUICK_TRAINER
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Replay:
    """A replay with a cycle every 300 rows, of whose versions few are kept."""
    folder = tmp_path_factory.mktemp("replay")
    return asyncio.run(replayed(series(), folder, schedule={"prune_every": "300 points"}, versions={"keep": 1}))


@pytest.mark.slow
def test_every_row_is_scored_by_what_serves_and_by_the_first_version(done):
    """Frozen scores are those of version 1 over the whole series; the loop's are the same until its first swap."""
    offline = ewma_scores(series().values)[TRAIN:]
    np.testing.assert_allclose(done.frozen, offline, rtol=1e-5)
    first = done.versions == 1
    assert 0 < np.count_nonzero(first) < len(first)
    np.testing.assert_allclose(done.scores[first], offline[first], rtol=1e-5)
    assert done.first_row == TRAIN
    assert len(done.scores) == len(done.versions) == len(done.labels) == ROWS - TRAIN


@pytest.mark.slow
def test_cycles_begin_after_so_many_rows_and_are_adopted_at_once(done):
    """A schedule by points begins its cycles that far apart, to a request; what they make scores the next row."""
    rows = [it.row for it in done.cycles]
    assert len(rows) >= 2
    assert all(300 <= later - row < 500 for row, later in pairwise(rows))
    assert {it.cycle.trigger for it in done.cycles} == {"schedule"}
    assert {it.cycle.outcome for it in done.cycles} == {"adopted"}
    begins = {it["version"]: it["row"] for it in served(done)}
    for ran in done.cycles:
        assert begins[ran.adoption.version] == ran.row
    assert [it.version for it in done.sizes] == [1, *(it.adoption.version for it in done.cycles)]
    assert all(it.bytes > 0 and it.p50_seconds == 1e-4 for it in done.sizes)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [None, 100])
async def test_a_level_that_lasts_is_followed_where_that_is_asked_for(tmp_path, shift):
    """With the real trainer: it is flagged to the end, or until it was flagged for so long. An incident still is."""
    table = series(1200)
    table.values[500:] += 5.0
    detector = DetectorConfig(
        features=table.features, triggers={"shift": shift}, network="autoencoder", options=SMALL["autoencoder"]
    )
    settings = Settings(store=tmp_path / "store", detectors={"pump": detector})
    done = await replay(table, settings, "pump", train_rows=400)
    flagged = done.scores >= done.threshold
    level, later, incident = slice(100, 150), slice(500, 690), slice(700, 710)

    assert flagged[level].mean() > 0.9
    assert flagged[incident].mean() > 0.5
    assert (flagged[later].mean() < 0.05) if shift else (flagged[later].mean() > 0.9)
    assert (done.frozen[later] >= done.threshold).mean() > 0.9


@pytest.mark.slow
async def test_a_replay_gives_the_same_scores_again(done, tmp_path):
    """Nothing depends on when it runs or how fast."""
    again = await replayed(series(), tmp_path, schedule={"prune_every": "300 points"})

    np.testing.assert_array_equal(again.scores, done.scores)
    np.testing.assert_array_equal(again.versions, done.versions)
    assert [it.row for it in again.cycles] == [it.row for it in done.cycles]


@pytest.mark.slow
def test_segments_add_up_and_the_picture_shows_them(done, tmp_path):
    """The stretches are the whole; the picture has both sides, the labels, size, latency and the cycles in words."""
    parts, whole = segments(done, 7), described(done)
    assert sum(it.rows for it in parts) == len(done.scores)
    assert sum(it.loop.flagged for it in parts) == whole["loop"]["flagged"] == parts[-1].loop_so_far.flagged
    draw(done, tmp_path / "replay.svg", "svg", dates=True)
    shown = (tmp_path / "replay.svg").read_text()
    for words in ("with the loop", "first version, frozen", "cycle: adopted", "labelled", "p50 of a step"):
        assert words in shown
    draw(done, tmp_path / "replay.png", "png", dates=False)
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
async def test_the_stamps_are_the_clock(tmp_path):
    """A schedule by time counts the time of the series: 900 rows of 5 minutes are three days."""
    done = await replayed(series(), tmp_path, schedule={"prune_every": "1d"})

    assert 2 <= len(done.cycles) <= 4
    days = [(it.cycle.started - BEGIN.timestamp()) / 86_400 for it in done.cycles]
    assert all(0 < day < 4 for day in days)
    assert all(later - day >= 0.8 for day, later in pairwise(days))


@pytest.mark.slow
async def test_a_version_that_floods_with_alarms_goes_back_in_the_replay_too(tmp_path):
    """Probation is the real one: what misbehaves serves a few hundred rows, then the first version again."""
    done = await replayed(series(labels=False), tmp_path, schedule={"prune_every": "300 points"}, seed=FLOOD)

    ran = done.cycles[0]
    assert (ran.cycle.outcome, ran.adoption.state) == ("adopted", "rolled_back")
    assert "alarm flood" in ran.adoption.reason
    assert done.versions[-1] == 1
    assert np.count_nonzero(done.versions != 1) <= 300


async def test_answers_are_labels_of_what_was_flagged(tmp_path):
    """Every flagged row is called what the file calls it, and no other row is called anything."""
    table = series()

    done = await replayed(table, tmp_path, answered=True)

    with Store.open(tmp_path / "store") as store:
        said = store.catalog.labels("pump")
    called = {label: np.zeros(ROWS, np.bool_) for label in ("anomaly", "normal")}
    for it in said:
        called[it.label] |= (table.stamps >= it.first_stamp) & (table.stamps <= it.last_stamp)
    flagged = np.r_[np.zeros(TRAIN, np.bool_), done.scores >= done.threshold]
    assert flagged.sum() > 10
    np.testing.assert_array_equal(called["anomaly"], flagged & table.labels)
    np.testing.assert_array_equal(called["normal"], flagged & ~table.labels)


@pytest.mark.slow
async def test_a_rejected_cycle_changes_nothing_and_says_why(tmp_path):
    """The scores are those of the frozen detector to the end."""
    done = await replayed(series(), tmp_path, schedule={"prune_every": "300 points"}, seed=REJECT)

    assert done.cycles
    assert {it.cycle.outcome for it in done.cycles} == {"rejected"}
    np.testing.assert_array_equal(done.scores, done.frozen)
    assert described(done)["cycles"][0]["reason"]


async def test_a_fit_that_fails_is_said(tmp_path):
    """The trainer's reason reaches whoever asked for the replay."""
    with pytest.raises(PrunewatchError, match="too few points"):
        await replayed(series(), tmp_path, seed=9002)


@pytest.mark.slow
async def test_rows_without_times_count_seconds(tmp_path):
    """Integers are row numbers; the clock goes on by a step each."""
    done = await replayed(series(dates=False), tmp_path, dates=False, schedule={"prune_every": "400s"})

    assert len(done.cycles) >= 1
    assert all(0 <= it.cycle.started < ROWS for it in done.cycles)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_scikit_learn(seed):
    """With ties, with rows that have no score."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.exponential(1, 300), 1).astype(np.float32)
    scores[:20] = np.nan
    labels = rng.random(300) < 0.1

    expected = average_precision_score(labels, np.where(np.isnan(scores), -1, scores))
    assert average_precision(scores, labels) == pytest.approx(expected)


def test_the_quality_of_an_example():
    """Alarms that begin at a normal row are false; a stretch is found by any row of it; unlabelled rows are normal."""
    scores = np.array([5, 0, 0, 5, 5, 5, 0, np.nan, 0, 5], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 0, 0, 1, 1, 0], bool)

    judged, unjudged = quality(scores, 3.0, labels), quality(scores, 3.0, None)

    assert (judged.rows, judged.flagged, judged.normal_rows, judged.normal_flagged) == (10, 5, 6, 3)
    assert (judged.false_alarms, judged.events, judged.events_found) == (2, 2, 1)
    assert judged.flagged_per_thousand == 500
    assert (unjudged.normal_flagged, unjudged.false_alarms, unjudged.average_precision) == (5, None, None)
    assert unjudged.mean_score == pytest.approx(25 / 9)


@pytest.mark.slow
def test_the_tables_show_both_sides_and_every_cycle(done, capsys, monkeypatch):
    """What is printed has the measures of both, the cycles with what became of them, and what versions cost."""
    monkeypatch.setenv("COLUMNS", "200")

    simulate._print(described(done))

    shown = capsys.readouterr().out
    assert "pump: 900 rows replayed" in shown
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert rows["labelled stretches found"].count("1 of 1") == 2
    for ran in done.cycles:
        assert "adopted" in rows[f"{ran.row:,}"]
        assert "100us" in rows[str(ran.adoption.version)]


def written(path: Path, rows: int, *, dates: bool) -> Path:
    """A CSV of the machine of the other tests, with labels."""
    values = machine(rows)
    lines = ["time,flow,pressure,load,heat,label"]
    for row, it in enumerate(values.tolist()):
        label = rows - 60 <= row < rows - 50
        shown = [f"{value + 50 * label:.4f}" for value in it]
        time = f"{BEGIN + timedelta(minutes=row):%Y-%m-%dT%H:%M:%SZ}" if dates else str(row)
        lines.append(",".join([time, *shown, str(int(label))]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train-rows", "500"], "no rows are left to stream"),
        (["--every", "now and then"], "is no period"),
        (["--step", "1s"], "has times of its own"),
        (["--plot", "replay.gif"], "can not be '.gif'"),
    ],
)
def test_what_can_not_be_simulated_is_said_before_anything_is_fitted(arguments, said, tmp_path, capsys):
    """Wrong options end in one line that says what to do."""
    data = written(tmp_path / "series.csv", 500, dates=True)

    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--data", str(data), *arguments])

    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_simulate_fits_streams_prunes_and_draws(tmp_path, capsys):
    """From a CSV to a table's worth of JSON and a picture, with the real trainer on a small network."""
    data = written(tmp_path / "series.csv", 1000, dates=False)
    options = "".join(f"      {key}: {value}\n" for key, value in SMALL["autoencoder"].items())
    config = tmp_path / "prunewatch.yaml"
    config.write_text(
        f"device_classes:\n  hub: {{size: 6KiB}}\ndetectors:\n  pump:\n    network: autoencoder\n    options:\n"
        f'{options}    schedule: {{prune_every: "400 points"}}\n'
    )

    with pytest.raises(SystemExit) as ended:
        main(f"simulate pump --data {data} --train-rows 450 --config {config} --plot {tmp_path}/it.png --json".split())

    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    found = json.loads(captured.out)
    assert found["loop"]["rows"] == found["frozen"]["rows"] == 550
    assert found["frozen"]["events_found"] == 1
    assert [it["trigger"] for it in found["cycles"]] == ["schedule"]
    assert found["cycles"][0]["outcome"] in {"adopted", "rejected"}
    assert found["versions"][0]["version"] == 1
    assert (tmp_path / "it.png").stat().st_size > 10_000
