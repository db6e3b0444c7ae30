"""The search for settings: what it may change, what it is judged by, and that it can be stopped and gone on with."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from fits import FOUR, SMALL, fitted, machine, untrained

from detectors.errors import InvalidInputError, PreconditionError
from detectors.training.fit import HELD_OUT, FitOptions, fit
from detectors.training.fitted import ErrorOptions, warm_up
from detectors.training.networks import network_class
from detectors.training.stretches import Stretches
from pruning.attempt import TuneOptions
from pruning.exam import AFTERMATH, Exam
from pruning.outcome import Budget
from pruning.space import HALF_LIVES, LEARNING_RATE, Choice, Space
from pruning.study import ask, opened
from pruning.tuning import tune
from server.cli import main
from server.commands.tuned import as_yaml, suggested
from server.config import DetectorConfig, NetworkKind, load_detector_config, load_settings

KINDS = get_args(NetworkKind)
DATA = Stretches.of([machine(500)])
SHORT = FitOptions(updates=20)


def search(folder: Path, kind: str = "lstm", trials: int = 1, **changed):
    """A few short trials around the small network of `fits.SMALL`."""
    how = TuneOptions(trials=trials, budget=changed.pop("budget", None), seed=changed.pop("seed", 0))
    given = {"data": DATA, "options": SMALL[kind], "learn": SHORT, "how": how, **changed}
    return tune(kind, given.pop("data"), FOUR, folder / "study.db", **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """What one run of four trials found, and its study. Shared: copy the study before going on with it."""
    folder = tmp_path_factory.mktemp("whole")
    return search(folder, trials=4), folder / "study.db"


def outcomes(tuned):
    """What was tried and found; times differ from run to run."""
    return [(trial.number, trial.state, trial.settings, trial.average_precision) for trial in tuned.trials]


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_begins_with_what_the_detector_has(kind: str) -> None:
    """The start lies in the space and makes the very network that its options make, defaults included."""
    for options in ({}, SMALL[kind]):
        space = Space.of(kind, 4, DATA, options, ErrorOptions(3.3), 0.007)
        choice = space.choice(space.start)
        made, meant = (network_class(kind).dense(4, each) for each in (choice.options, options))

        assert (made.units, made.options) == (meant.units, meant.options)
        assert choice.half_life == 3.3
        assert choice.learning_rate == (None if kind == "isolation_forest" else 0.007)
        assert all(each.low <= each.start <= each.high for each in space.dimensions)
        assert Space.of_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize("kind", KINDS)
def test_every_corner_of_a_space_is_a_detector(kind: str) -> None:
    """Options are checked as those of users are, and no detector needs more points to warm up than the longest."""
    space = Space.of(kind, 4, DATA, SMALL[kind], ErrorOptions(), 3e-3)
    longest = space.longest_warm_up(ErrorOptions())
    for corner in (
        {each.name: each.low for each in space.dimensions},
        {each.name: each.high for each in space.dimensions},
    ):
        choice = space.choice(corner)
        network_class(kind).checked_options(choice.options)

        network = network_class(kind).dense(4, choice.options)
        assert warm_up(network, ErrorOptions(choice.half_life)) <= longest
    assert longest <= max(len(DATA) // 4, 50)


def test_a_space_keeps_what_says_what_is_wanted() -> None:
    """A stride is not searched; a width beyond the default widens the space; too few points narrow it."""
    space = Space.of("autoencoder", 4, DATA, {"stride": 5, "width": 512}, ErrorOptions(), 3e-3)
    by_name = {each.name: each for each in space.dimensions}
    assert space.fixed == {"stride": 5}
    assert by_name["width"].high == 512
    assert by_name["window"].low >= 5

    short = Space.of("autoencoder", 4, Stretches.of([machine(150)]), {}, ErrorOptions(), 3e-3)
    assert {each.name: each.high for each in short.dimensions}["window"] == short.start["window"]
    assert {each.name: each.high for each in short.dimensions}[HALF_LIVES] == 5


def test_drawn_sizes_lie_on_the_grid() -> None:
    """Widths are multiples of eight, rates and half-lives have three digits; the start stays as it is."""
    space = Space.of("lstm", 4, DATA, {"width": 20}, ErrorOptions(), 1 / 300)

    assert space.choice({"width": 33}).options["width"] == 40
    assert space.choice({HALF_LIVES: 1.23456, LEARNING_RATE: 0.00123456}) == Choice(
        {"layers": 2, "width": 20}, 1.23, 0.00123
    )
    assert space.choice(space.start).learning_rate == 1 / 300


def test_an_exam_asks_everybody_the_same() -> None:
    """The same seed draws the same events, out of points that no fit trains on, and asks only where all are warm."""
    exam, again, other = (Exam.of(DATA, 60, seed) for seed in (0, 0, 1))
    held_out = DATA.split(HELD_OUT, context=60)[1].rows

    assert (exam.events.points == again.events.points).all()
    assert not (exam.events.points == other.events.points).all()
    known = {row.tobytes() for row in held_out}
    assert all(row.tobytes() in known for row in exam.events.points[~exam.events.labels])
    assert not exam.counted[:, :60].any()
    for label, asked in zip(exam.events.labels, exam.counted, strict=True):
        last = np.flatnonzero(label)[-1]
        assert asked[np.flatnonzero(label)].all()
        assert not asked[last + 1 : last + 1 + AFTERMATH].any()


def test_an_exam_rewards_learning_and_not_silence() -> None:
    """A fitted detector finds more than an untrained one; one without scores finds nothing that chance would not."""
    exam = Exam.of(DATA, 60, 0)
    learned = fitted("lstm", updates=120)
    blank = untrained("lstm", 4)
    blank = replace(learned, network=blank.network).recalibrated(DATA)
    broken = replace(learned, scaler=replace(learned.scaler, scale=np.full(4, np.nan, np.float32)))
    chance = exam.events.labels[exam.counted].mean()

    assert exam.average_precision(learned) > exam.average_precision(blank) + 0.1
    assert exam.average_precision(learned, every=3) == pytest.approx(exam.average_precision(learned), abs=0.1)
    assert exam.average_precision(broken) < chance + 0.1


def test_a_search_finds_better_settings_than_a_bad_start(tmp_path: Path) -> None:
    """The first trial is what the detector has; a rate that learns nothing is left behind."""
    tuned = search(tmp_path, trials=4, learn=FitOptions(20, learning_rate=1e-5), error=ErrorOptions(20.0))

    assert tuned.start is not None
    assert tuned.best is not None
    assert tuned.start.number == 0
    assert tuned.best.average_precision > tuned.start.average_precision + 0.1
    assert tuned.best.average_precision == max(
        trial.average_precision for trial in tuned.trials if trial.state == "done"
    )
    assert tuned.best.error > 0
    assert tuned.best.p50_seconds > 0
    assert sum(tuned.importance.values()) == pytest.approx(1) or not tuned.importance


def test_a_trial_is_the_fit_that_its_settings_make(whole) -> None:
    """The value in the table is that of the detector that `fit` makes, to the bit."""
    space = Space.of("lstm", 4, DATA, SMALL["lstm"], ErrorOptions(), SHORT.learning_rate)
    exam = Exam.of(DATA, space.longest_warm_up(ErrorOptions()), 0)
    for trial in whole[0].trials[:2]:
        settings = trial.settings
        how, error = replace(SHORT, learning_rate=settings.learning_rate), ErrorOptions(settings.half_life)
        made = fit("lstm", DATA, FOUR, seed=0, options=settings.options, how=how, error=error)

        assert exam.average_precision(made) == trial.average_precision


def test_what_misses_the_budget_is_measured_and_not_trained(tmp_path: Path) -> None:
    """It has a time and a size, no value, and never wins; the smallest network is the second trial."""
    tuned = search(tmp_path, trials=4, budget=Budget(size_bytes=14_000))
    start, smallest, *_ = tuned.trials

    assert (start.state, start.average_precision, start.seconds, start.within_budget) == (
        "over_budget",
        None,
        None,
        False,
    )
    assert start.bytes > 14_000
    assert start.p50_seconds > 0
    assert (smallest.state, smallest.within_budget) == ("done", True)
    assert (smallest.settings.options["layers"], smallest.settings.options["width"]) == (1, 8)
    assert tuned.best.bytes <= 14_000
    assert all((trial.bytes <= 14_000) == (trial.state == "done") for trial in tuned.trials)


def test_a_budget_that_nothing_meets_is_told_before_anything_is_fitted(tmp_path: Path) -> None:
    """With what the smallest network takes; the same file may be begun with a better budget."""
    told = []
    with pytest.raises(InvalidInputError, match=r"even the smallest lstm .* p50 is \d+ us") as refused:
        search(tmp_path, budget=Budget(p50_seconds=1e-8), progress=lambda *it: told.append(it))
    assert refused.value.field == "budget"
    assert not told

    with pytest.raises(PreconditionError, match=r"none of 1 trials meets .* smallest p50 seen is \d+ us"):
        search(tmp_path, budget=Budget(size_bytes=14_000))
    assert search(tmp_path, budget=Budget(size_bytes=14_000)).best.number == 1


def test_a_search_goes_on_where_it_was(whole, tmp_path: Path) -> None:
    """Two runs of two trials are one run of four."""
    half = search(tmp_path, trials=2)
    rest = search(tmp_path, trials=2)

    assert outcomes(half) == outcomes(whole[0])[:2]
    assert outcomes(rest) == outcomes(whole[0])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data": Stretches.of([machine(500, seed=1)])}, "another set of points"),
        ({"seed": 1}, "another seed: 0, not 1"),
        ({"budget": Budget(size_bytes=50_000)}, "another budget: none, not size 50000 bytes"),
        ({"learn": FitOptions(21)}, "another length of training"),
        ({"kind": "gru"}, "another network: lstm, not gru"),
    ],
)
def test_a_study_of_something_else_is_refused(whole, tmp_path: Path, changed: dict, says: str) -> None:
    """Values of other points, networks or budgets can not be compared; the study stays as it was."""
    file = tmp_path / "study.db"
    shutil.copy(whole[1], file)
    with pytest.raises(InvalidInputError, match=says) as refused:
        search(tmp_path, **changed)

    assert "--study" in refused.value.hint
    assert file.read_bytes() == whole[1].read_bytes()


def test_a_file_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    """Text, another database, and somebody else's study: refused, and not a byte is changed."""
    file = tmp_path / "study.db"
    file.write_text("time,flow\n0,1\n")
    for _ in range(2):
        before = file.read_bytes()
        with pytest.raises(InvalidInputError, match="is not a study that `prunewatch tune` wrote"):
            search(tmp_path)
        assert file.read_bytes() == before
        file.unlink()
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE studies (study_id INTEGER, study_name TEXT)")
            database.execute("INSERT INTO studies VALUES (1, 'theirs')")
            database.commit()


def test_too_few_rows_are_told_before_a_study_is_made(tmp_path: Path) -> None:
    """As `fit` does it."""
    with pytest.raises(InvalidInputError, match="too few for a lstm detector"):
        search(tmp_path, data=Stretches.of([machine(90)]))
    assert not (tmp_path / "study.db").exists()


def test_an_interrupted_search_has_a_best_and_repeats_what_was_cut_off(whole, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a fit: what was finished stands, and the next run begins with the same settings."""
    told = count()

    def pressed(_stage: str, _done: float, message: str) -> None:
        if "trial 2 of 3" in message and "loss" in message and next(told) == 7:
            raise KeyboardInterrupt

    cut = search(tmp_path, trials=3, progress=pressed)
    assert cut.interrupted
    assert outcomes(cut) == outcomes(whole[0])[:1]
    assert cut.best == cut.trials[0]

    rest = search(tmp_path, trials=1)
    assert not rest.interrupted
    assert [it.settings for it in rest.trials] == [it.settings for it in whole[0].trials[:2]]
    assert rest.trials[1].average_precision == whole[0].trials[1].average_precision


def test_a_trial_whose_process_died_is_repeated_once(tmp_path: Path) -> None:
    """A kill leaves a trial that runs for ever. It is tried again, but only once: it may be what ends the process."""
    tried = []
    for _ in range(3):
        with opened(tmp_path / "study.db", {"network": "lstm"}, {}) as study:
            tried.append(ask(study, 0).suggest_float("rate", 0, 1))  # and never told

    assert tried[0] == tried[1] != tried[2]


def test_two_processes_can_not_work_on_one_study(tmp_path: Path) -> None:
    """The second is told so."""

    def again(*_progress: object) -> None:
        with pytest.raises(PreconditionError, match="another process works on this study"):
            search(tmp_path)

    assert search(tmp_path, progress=again).best is not None


def test_no_trial_begins_after_the_timeout(tmp_path: Path) -> None:
    """The one that runs is finished."""
    clock = count(step=10)
    how = TuneOptions(trials=5, timeout_seconds=35)
    tuned = search(tmp_path, how=how, clock=lambda: next(clock))

    assert 1 <= len(tuned.trials) < 5


def test_a_trial_that_falls_behind_is_stopped(tmp_path: Path) -> None:
    """It has no value, and never wins; every trial was compared by what half-trained networks find."""
    tuned = search(tmp_path, trials=8, learn=FitOptions(40))
    stopped = [trial for trial in tuned.trials if trial.state == "stopped"]

    assert stopped
    assert all(trial.average_precision is None and trial.seconds is None for trial in stopped)
    assert all(0 < trial.stopped_at < 1 for trial in stopped)
    assert tuned.best.state == "done"


def test_a_diverging_trial_is_no_end_of_the_search(tmp_path: Path) -> None:
    """It failed, with the reason; the sampler keeps away from there."""
    wild = Stretches.of([machine(500)])
    tuned = search(tmp_path, trials=2, data=wild, learn=FitOptions(20, learning_rate=1e20))

    first = tuned.trials[0]
    assert first.state in {"failed", "done"}
    assert tuned.best is not None


def test_a_change_has_to_pay(whole) -> None:
    """What the detector has is kept where the best is no better than another draw would be."""
    tuned, _ = whole
    good = replace(tuned.trials[1], average_precision=0.6)
    for value, proposed in ((0.59, "start"), (0.5, "best")):
        start = replace(tuned.trials[0], average_precision=value)
        assert replace(tuned, start=start, best=good).proposed == {"start": start, "best": good}[proposed]
    over = replace(tuned.trials[0], state="over_budget", average_precision=None)
    assert replace(tuned, start=over, best=good).proposed == good


def test_settings_are_proposed_as_the_configuration_has_them() -> None:
    """What is printed can be pasted: it is valid, and a fit with it uses what was tried."""
    config = DetectorConfig(error={"aggregate": "mean"}, false_alarm_rate=0.01)
    proposed = suggested(Choice({"layers": 1, "width": 24}, 1.5, 0.004), config)
    pasted = yaml.safe_load(as_yaml("pump", proposed))["detectors"]["pump"]
    loaded = load_detector_config(pasted)

    assert pasted == proposed
    assert loaded.options == {"layers": 1, "width": 24}
    assert (loaded.error.half_life, loaded.error.aggregate) == (1.5, "mean")
    assert loaded.learning_rate == 0.004


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs `prunewatch tune pump` on 300 rows of the machine; gives exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = np.column_stack([np.arange(300), machine(300)])
    np.savetxt(tmp_path / "train.csv", rows, "%.6g", delimiter=",", header="t," + ",".join(FOUR), comments="")
    (tmp_path / "small.yaml").write_text("detectors: {pump: {network: autoencoder, options: {window: 8, width: 8}}}")

    def run(*arguments: object) -> tuple[int, str, str]:
        given = ("tune", "pump", "--data", tmp_path / "train.csv", "--store", tmp_path / "store", *arguments)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in given])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_the_command_prints_draws_and_fits(prunewatch, tmp_path: Path) -> None:
    """JSON for programs; a table and YAML for people; a picture; and with --fit a version with the best settings."""
    small, picture = tmp_path / "small.yaml", tmp_path / "tuned.png"
    code, out, err = prunewatch("--config", small, "--trials", 2, "--json", "--plot", picture)
    found = json.loads(out)
    assert code == 0, err
    assert [trial["number"] for trial in found["trials"]] == [0, 1]
    assert found["trials"][0]["settings"]["options"]["width"] == 8
    assert load_detector_config(found["config"]).network == "autoencoder"
    assert found["proposed"]["settings"]["options"] == found["config"]["options"]
    assert found["fitted"] is None
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "store-studies" / "pump-autoencoder.db").exists()
    assert not (tmp_path / "store").exists()
    assert "trial 1 of 2" in err

    code, out, err = prunewatch("--config", small, "--trials", 1, "--fit")
    assert code == 0, err
    pasted = out[out.index("detectors:") : out.index("pump version 1 fitted on 300 points")]
    (tmp_path / "pasted.yaml").write_text(pasted)
    best = load_settings(tmp_path / "pasted.yaml").detectors["pump"]
    assert "average precision" in out
    assert "0  (start)" in out

    code, out, err = prunewatch("--trials", 1, "--json")  # the detector's settings are in the store now
    assert code == 0, err
    assert len(json.loads(out)["trials"]) == 4
    assert best.options in [trial["settings"]["options"] for trial in json.loads(out)["trials"]]


def test_what_the_command_can_not_do_is_told_at_once(prunewatch, tmp_path: Path) -> None:
    """Exit code 2, one line, nothing fitted."""
    for arguments, says in (
        (("--p50", "1ns", "--network", "gru"), "even the smallest gru"),
        (("--plot", tmp_path / "nowhere" / "a.png"), "there is no such folder"),
        (("--plot", tmp_path / "a.txt"), "a picture can not be"),
        (("--batch", "70000"), "batch"),
        (("--study", tmp_path / "train.csv"), "is not a study"),
        (("--study", tmp_path / "nowhere" / "study.db"), "No such file or directory"),
    ):
        code, _, err = prunewatch("--trials", 1, *arguments)
        assert (code, says in err, "Traceback" in err) == (2, True, False), err
