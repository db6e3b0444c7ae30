"""The command line: help that teaches, scores of a store, and errors that say what to do."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import ewma_bundle, ewma_scores
from ports import free_address
from rich.console import Console
from serving import served

from detectors.archive import unpack_bundle
from detectors.bundle import GRAPH, read_bundle, write_bundle
from detectors.errors import PrunewatchError
from server.cli import PANELS, main
from server.commands.progress import lines, progress
from server.config import DetectorConfig
from server.publish import publish_cycle, publish_fit
from server.store import Store

COMMANDS = sorted(command.__name__.replace("_", "-") for commands in PANELS.values() for command in commands)


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with the detector `pump` in two versions: a fit and a pruned one that serves on the hub."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", DetectorConfig(false_alarm_rate=0.01).model_dump(mode="json"))
        made = []
        for version, device_class in ((1, "parent"), (2, "hub")):
            bundle = ewma_bundle("pump", version, device_class=device_class, gain=float(version))
            write_bundle(bundle, store.bundle_folder(bundle.hash))
            times = {"p50_seconds": 1e-3 / version, "p99_seconds": 2e-3 / version}
            sizes = {"units": {"lstm0": 2}, "parameters": 3, "bytes": bundle.size}
            made.append({"hash": bundle.hash, "version": version, **sizes, **times, "error": 0.5})
        publish_fit(store, "pump", {"parent": made[0], "rows": 10})
        publish_cycle(store, "pump", "hub", {"outcome": "adopted", "parent": made[0], "child": made[1]})
    return root


@pytest.fixture
def points(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A CSV of 40 points with a jump, and their values."""
    values = np.random.default_rng(5).normal(size=(40, 2)).astype(np.float32)
    values[30] = 40
    path = tmp_path / "points.csv"
    rows = [f"2024-01-01T00:00:{i:02d}Z,{a},{b},0" for i, (a, b) in enumerate(values)]
    path.write_text("\n".join(["time,f1,f2,label", *rows]) + "\n")
    return path, values


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_teaches(prunewatch, command: str) -> None:
    """What it does, each option, and for what takes more than a name an example."""
    code, out, _ = prunewatch(command, "--help")

    assert code == 0
    assert f"Usage: prunewatch {command}" in out
    if command not in {"pin", "unpin", "delete", "validate"}:
        assert out.count(f"prunewatch {command}") >= 2
    for line in out.splitlines():  # no option without a word about it
        assert not line.strip(" │").startswith("--") or len(line.strip(" │").split("  ")) > 1


def test_the_program_says_what_it_is(prunewatch) -> None:
    """`--version` and the list of commands."""
    assert prunewatch("--version")[1].startswith("prunewatch 0.")
    assert all(command in prunewatch("--help")[1] for command in COMMANDS)


def test_scores_are_one_row_for_each_row_read(prunewatch, root: Path, points, tmp_path: Path) -> None:
    """Stamps as they were written, no score while warming up, the threshold and who scored in every row."""
    path, values = points
    out = tmp_path / "scores.csv"
    code, _, err = prunewatch("score", "pump", "--data", path, "--out", out, "--store", root)

    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    expected = ewma_scores(values, gain=2.0)
    assert code == 0
    assert header == ["timestamp", "score", "threshold", "is_anomaly", "version"]
    assert [row[0] for row in rows] == [f"2024-01-01T00:00:{i:02d}Z" for i in range(40)]
    assert [row[1] for row in rows[:3]] == ["", "", ""]
    np.testing.assert_allclose([float(row[1]) for row in rows[3:]], expected[3:], rtol=1e-5)
    assert {(row[2], row[4]) for row in rows} == {("2.0", "2")}
    assert [int(row[3]) for row in rows] == [int(score >= 2) for score in np.nan_to_num(expected)]
    assert rows[30][3] == "1"
    assert "37 of 40 rows scored" in err
    assert "3 warming up" in err


def test_scoring_leaves_no_trace(prunewatch, root: Path, points, tmp_path: Path) -> None:
    """The same file gives the same bytes however often."""
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    for out in (first, second):
        prunewatch("score", "pump", "--data", points[0], "--out", out, "--store", root)

    assert first.read_bytes() == second.read_bytes()


def test_points_that_came_before_warm_up(prunewatch, root: Path, points, tmp_path: Path) -> None:
    """--warm splits a file in two without changing a score of the second part."""
    lines = points[0].read_text().splitlines(keepends=True)
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    before.write_text("".join(lines[:21]))
    after.write_text("".join([lines[0], *lines[21:]]))
    whole, warmed = tmp_path / "whole.csv", tmp_path / "warmed.csv"
    prunewatch("score", "pump", "--data", points[0], "--out", whole, "--store", root)
    prunewatch("score", "pump", "--data", after, "--warm", before, "--out", warmed, "--store", root)

    assert warmed.read_text().splitlines()[1:] == whole.read_text().splitlines()[21:]

    code, _, err = prunewatch("score", "pump", "--data", before, "--warm", after, "--out", warmed, "--store", root)
    assert code == 2
    assert "--warm" in err


def test_rows_that_can_not_be_scored_stay_in_the_output(prunewatch, root: Path, tmp_path: Path) -> None:
    """A missing value and a repeated stamp have no score, and the points after them are scored as if they were not."""
    path, out = tmp_path / "holes.csv", tmp_path / "scores.csv"
    path.write_text("t,f1,f2\n0,1,1\n1,1,1\n2,1,1\n3,,1\n4,1,1\n4,9,9\n5,1,1\n")
    _, _, err = prunewatch("score", "pump", "--data", path, "--out", out, "--store", root)

    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    clean = ewma_scores(np.ones((5, 2)), gain=2.0)
    assert [row[1] == "" for row in rows] == [True, True, True, True, False, True, False]
    np.testing.assert_allclose([float(rows[4][1]), float(rows[6][1])], clean[3:], rtol=1e-5)
    assert "1 invalid" in err
    assert "1 duplicate" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,f1\n0,1\n", "lacks f2"),
        ("time,f1,f2,f3\n0,1,2,3\n", "unknown f3"),
        ("time,f1,f2\n0,1,two\n", "line 2, column 'f2'"),
        ("", "is empty"),
    ],
)
def test_bad_csv_is_one_line_with_the_file(prunewatch, root: Path, tmp_path: Path, text: str, says: str) -> None:
    """Exit code 2, no traceback, and no output file."""
    path, out = tmp_path / "bad.csv", tmp_path / "scores.csv"
    path.write_text(text)
    code, _, err = prunewatch("score", "pump", "--data", path, "--out", out, "--store", root)

    assert code == 2
    assert err.startswith(f"error: {path}: ")
    assert says in err
    assert "Traceback" not in err
    assert not out.exists()


def test_rows_to_learn_from_must_be_in_order(prunewatch, root: Path, tmp_path: Path) -> None:
    """A shuffled file is refused before anything is trained."""
    path = tmp_path / "shuffled.csv"
    path.write_text("t,f1,f2\n1,0,0\n0,0,0\n")

    for command in (("fit", "pump"), ("prune", "pump", "--speedup", "2")):
        code, _, err = prunewatch(*command, "--data", path, "--store", root)
        assert code == 2
        assert "Sort the file" in err


def test_unknown_names_are_told_with_what_there_is(prunewatch, root: Path, points) -> None:
    """A wrong detector, and a store that is not there (and is not made)."""
    for command in (("show", "pum"), ("rollback", "pum"), ("prune", "pum", "--speedup", 4), ("delete", "pum", "--yes")):
        code, _, err = prunewatch(*command, "--store", root)
        assert (code, "There are: pump" in err) == (2, True)
    nowhere = root.with_name("nowhere")
    code, _, err = prunewatch("show", "pump", "--store", nowhere)
    assert (code, "no store here" in err, nowhere.exists()) == (2, True, False)


def test_a_store_in_use_points_to_the_server(prunewatch, root: Path) -> None:
    """The lock keeps the command line off a store that a server holds."""
    with Store.open(root):
        code, _, err = prunewatch("show", "pump", "--store", root)

    assert code == 2
    assert "--server" in err


def test_a_newer_store_asks_for_an_upgrade(prunewatch, root: Path) -> None:
    """It is refused, not misread."""
    connection = sqlite3.connect(root / "catalog.db")
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    code, _, err = prunewatch("show", "pump", "--store", root)

    assert code == 2
    assert "Upgrade prunewatch" in err


def test_a_corrupt_bundle_is_not_scored_with(prunewatch, root: Path, points, tmp_path: Path) -> None:
    """The file is named, and going back to the version before helps."""
    with Store.open(root) as store:
        graph = store.bundle_folder(store.catalog.serving("pump", "hub").bundle_hash) / GRAPH
    graph.write_bytes(graph.read_bytes()[:-1])
    score = ("score", "pump", "--data", points[0], "--out", tmp_path / "scores.csv", "--store", root)
    code, _, err = prunewatch(*score)
    assert (code, str(graph) in err, "Roll back" in err) == (2, True, True)

    assert prunewatch("rollback", "pump", "--store", root)[0] == 0
    assert prunewatch(*score)[0] == 0


def test_show_says_what_serves_and_where_it_came_from(prunewatch, root: Path) -> None:
    """As a table for people and as JSON for programs."""
    _, table, _ = prunewatch("show", "pump", "--store", root)
    code, out, _ = prunewatch("show", "pump", "--store", root, "--json")
    described = json.loads(out)

    assert code == 0
    for word in ("pump: lstm, ready", "hub: version 2, before it 1", "parent", "1ms / 2ms (hub 256)", "serves hub"):
        assert word in table
    assert [version["version"] for version in described["versions"]] == [1, 2]
    assert described["versions"][1]["children"]["hub"]["parameters"] == 3
    assert described["threshold"] == 2.0


def test_pointers_move_and_stay(prunewatch, root: Path) -> None:
    """Rollback, pin, unpin."""
    assert "version 1 serves on hub" in prunewatch("rollback", "pump", "--store", root)[1]
    assert "version 1 is pinned" in prunewatch("pin", "pump", "--store", root)[1]
    code, _, err = prunewatch("rollback", "pump", "--store", root)
    assert (code, "Unpin it first" in err) == (2, True)
    code, _, err = prunewatch("prune", "pump", "--speedup", "4", "--store", root)
    assert (code, "pinned" in err) == (2, True)
    assert prunewatch("unpin", "pump", "--store", root)[0] == 0
    assert "nothing begins by itself" in prunewatch("freeze", "pump", "--store", root)[1]
    assert "ready, frozen" in prunewatch("show", "pump", "--store", root)[1]
    assert "begin by themselves again" in prunewatch("unfreeze", "pump", "--store", root)[1]
    assert "version 2 serves" in prunewatch("rollback", "pump", "--to", "2", "--store", root)[1]


def test_deleting_asks_first(prunewatch, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a yes nothing happens."""
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert prunewatch("delete", "pump", "--store", root)[0] == 1
    assert prunewatch("delete", "pump", "--store", root, "--yes")[0] == 0
    code, _, err = prunewatch("show", "pump", "--store", root)
    assert (code, "no detector 'pump'" in err) == (2, True)


def test_a_budget_is_needed_and_has_units(prunewatch, root: Path) -> None:
    """No budget, a duration without sense, a speedup that slows down."""
    code, _, err = prunewatch("prune", "pump", "--store", root)
    assert (code, "no budget is given" in err) == (2, True)
    code, _, err = prunewatch("prune", "pump", "--p99", "2 parsecs", "--store", root)
    assert (code, "unknown unit" in err) == (2, True)
    for option, value in (("--speedup", "0.5"), ("--speedup", "nan"), ("--batch", "0"), ("--batch", "70000")):
        code, _, err = prunewatch("prune", "pump", "--p99", "1ms", option, value, "--store", root)
        assert (code, option[2:] in err, "Traceback" in err) == (2, True, False)


def test_what_can_not_be_a_name_is_refused_before_any_work(prunewatch, root: Path, points) -> None:
    """A name becomes a folder and a label."""
    for name in ("Pump", "../pump"):
        code, _, err = prunewatch("fit", name, "--data", points[0], "--store", root)
        assert (code, "is not a name" in err) == (2, True)


def test_a_file_that_can_not_be_written_is_named(prunewatch, root: Path, points, tmp_path: Path) -> None:
    """Like every other mistake: one line."""
    out = tmp_path / "nowhere" / "scores.csv"
    code, _, err = prunewatch("score", "pump", "--data", points[0], "--out", out, "--store", root)
    assert (code, "No such file or directory" in err, "Traceback" in err) == (2, True, False)


def test_a_place_is_named_once(prunewatch, root: Path) -> None:
    """Either a store or a server; either a file or a stream."""
    code, _, err = prunewatch("show", "pump", "--store", root, "--server", "127.0.0.1:1")
    assert (code, "either a store or a server" in err) == (2, True)
    code, _, err = prunewatch("fit", "pump", "--store", root)
    assert (code, "--data, --from-stream" in err) == (2, True)
    code, _, err = prunewatch("fit", "pump", "--from-stream", "5", "--store", root)
    assert (code, "--server" in err) == (2, True)


def made_of(hash_: str) -> dict:
    """What the trainer says of a fit."""
    sizes = {"units": {"lstm0": 2}, "parameters": 3, "bytes": 900, "p50_seconds": 1e-3, "p99_seconds": 2e-3}
    return {"outcome": "adopted", "parent": {"hash": hash_, "version": 1, **sizes, "error": 0.5}, "rows": 40}


def test_a_fit_that_can_not_be_published_leaves_no_trace(
    prunewatch, points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No detector and no points, so that those are not there twice when it is tried again."""
    store, bundle = tmp_path / "new", ewma_bundle("wave")
    fit = ("fit", "wave", "--data", points[0], "--store", store)
    monkeypatch.setattr("server.trainer.run_job", lambda _job, _report: made_of(bundle.hash))

    assert prunewatch(*fit)[0] == 2  # its bundle is not there
    assert "there is no detector 'wave'" in prunewatch("show", "wave", "--store", store)[2]
    assert list((store / "history").iterdir()) == []

    write_bundle(bundle, store / "bundles" / bundle.hash)
    code, _, err = prunewatch(*fit)
    assert code == 0, err
    assert json.loads(prunewatch("show", "wave", "--json", "--store", store)[1])["history_points"] == 40


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), PrunewatchError("it can not.")], ids=repr
)
def test_a_cycle_that_ends_early_is_in_the_book(
    prunewatch, root: Path, points, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """As failed, with the reason, whatever ended it; not as running until the store is opened again."""

    def run(_job: object, _report: object) -> None:
        raise error

    monkeypatch.setattr("server.trainer.run_job", run)
    assert prunewatch("prune", "pump", "--speedup", 4, "--data", points[0], "--store", root)[0] != 0

    book = sqlite3.connect(root / "catalog.db")
    assert book.execute("select outcome, reason from cycles").fetchall() == [
        ("failed", str(error) or "it was interrupted.")
    ]
    book.close()


def test_settings_are_checked_without_starting(prunewatch, tmp_path: Path) -> None:
    """`validate` says what is in the file, or what is wrong with it."""
    path = tmp_path / "prunewatch.yaml"
    path.write_text("detectors: {pump: {}}")
    assert "1 detectors" in prunewatch("validate", path)[1]

    path.write_text("detectors: {pump: {netwrk: lstm}}")
    code, _, err = prunewatch("validate", path)
    assert (code, "detectors.pump.netwrk" in err) == (2, True)


def test_a_detector_leaves_for_a_device_as_one_file(prunewatch, root: Path, tmp_path: Path) -> None:
    """What was exported is the bundle that serves; a class without a version has nothing to export."""
    out, folder = tmp_path / "pump.tar", tmp_path / "unpacked"
    folder.mkdir()
    assert prunewatch("export", "pump", "--out", out, "--store", root)[0] == 0
    unpack_bundle(out, folder)
    assert read_bundle(folder).manifest.version == 2

    code, _, err = prunewatch("export", "pump", "--device-class", "pi4", "--out", out, "--store", root)
    assert (code, "--device-class pi4" in err) == (2, True)


@pytest.fixture
def server(root: Path, tmp_path: Path):
    """The address of `prunewatch serve` on the store, in a process of its own."""
    with served(root, tmp_path / "server.log") as address:
        yield address


@pytest.mark.slow
def test_a_server_answers_as_the_store_does(prunewatch, root: Path, points, tmp_path: Path, request) -> None:
    """The same scores byte for byte, the same description, the same errors."""
    path, _ = points
    holes = tmp_path / "holes.csv"
    holes.write_text("t,f2,f1\n0,1,1\n1,1,1\n2,1,1\n3,,1\n4,1,2\n4,9,9\n5,1,3\n")
    before = tmp_path / "before.csv"
    before.write_text("".join(path.read_text().splitlines(keepends=True)[:21]).replace("2024", "2023"))
    scored = [
        ("--data", path),
        ("--data", holes),
        ("--data", path, "--warm", before),
    ]
    for i, arguments in enumerate(scored):
        assert prunewatch("score", "pump", *arguments, "--out", tmp_path / f"local{i}.csv", "--store", root)[0] == 0
    described = json.loads(prunewatch("show", "pump", "--json", "--store", root)[1])

    server = request.getfixturevalue("server")

    for i, arguments in enumerate(scored):
        code, _, err = prunewatch("score", "pump", *arguments, "--out", tmp_path / f"far{i}.csv", "--server", server)
        assert code == 0, err
        assert (tmp_path / f"far{i}.csv").read_bytes() == (tmp_path / f"local{i}.csv").read_bytes()
    assert json.loads(prunewatch("show", "pump", "--json", "--server", server)[1]) == described
    assert "serves hub" in prunewatch("show", "pump", "--server", server)[1]
    code, _, err = prunewatch("show", "pump", "--store", root)
    assert (code, "--server" in err) == (2, True)


@pytest.mark.slow
def test_a_server_moves_pointers(prunewatch, server: str) -> None:
    """Rollback, pin, unpin and delete over gRPC, with the errors of the service."""
    assert "version 1 serves on hub" in prunewatch("rollback", "pump", "--server", server)[1]
    assert "version 1 is pinned" in prunewatch("pin", "pump", "--server", server)[1]
    code, _, err = prunewatch("rollback", "pump", "--to", 2, "--server", server)
    assert (code, "Unpin it first" in err) == (2, True)
    assert prunewatch("unpin", "pump", "--server", server)[0] == 0
    assert "nothing begins by itself" in prunewatch("freeze", "pump", "--server", server)[1]
    assert "ready, frozen" in prunewatch("show", "pump", "--server", server)[1]
    assert prunewatch("unfreeze", "pump", "--server", server)[0] == 0
    assert "frozen" not in prunewatch("show", "pump", "--server", server)[1]
    for command in (("show", "pum"), ("rollback", "pum"), ("prune", "pum", "--speedup", 4)):
        code, _, err = prunewatch(*command, "--server", server)
        assert (code, "There are: pump" in err) == (2, True)
    code, _, err = prunewatch("prune", "pump", "--speedup", 4, "--server", server)
    assert (code, "seen no points" in err) == (2, True)
    assert prunewatch("delete", "pump", "--yes", "--server", server)[0] == 0
    assert prunewatch("show", "pump", "--server", server)[0] == 2


@pytest.mark.slow
def test_a_detector_can_learn_from_the_stream(prunewatch, server: str, tmp_path: Path) -> None:
    """`--from-stream` creates it; a name that exists is told so."""
    config = tmp_path / "prunewatch.yaml"
    config.write_text("detectors: {valve: {false_alarm_rate: 0.05, schedule: {prune_every: 500 points}}}")
    fit = ("fit", "valve", "--from-stream", 100, "--network", "autoencoder", "--server", server)
    code, out, err = prunewatch(*fit, "--config", config)
    described = json.loads(prunewatch("show", "valve", "--json", "--server", server)[1])

    assert (code, "100 points" in out) == (0, True), err
    assert (described["state"], described["network"]) == ("learning", "autoencoder")
    assert described["false_alarm_rate"] == 0.05
    assert prunewatch(*fit)[0] == 2

    config.write_text("detectors: {other: {gate: {error_ratio: 2}}}")
    code, _, err = prunewatch("fit", "other", "--from-stream", 5, "--config", config, "--server", server)
    assert (code, "a client can not set gate" in err) == (2, True)


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    """A CSV of 800 points of three noisy waves."""
    rng, t = np.random.default_rng(0), np.arange(800)
    values = np.column_stack([np.sin(t / 9), np.cos(t / 15), np.sin(t / 9) * np.cos(t / 15)])
    values += rng.normal(scale=0.1, size=values.shape)
    path = tmp_path / "waves.csv"
    rows = [f"{i}," + ",".join(f"{value:.5f}" for value in row) for i, row in enumerate(values)]
    path.write_text("\n".join(["t,a,b,c", *rows]) + "\n")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Settings with a small network and a gate that everything passes."""
    path = tmp_path / "small.yaml"
    path.write_text("""
detectors:
  wave:
    options: {width: 16, layers: 1}
    gate: {error_ratio: 100, alarm_jaccard: 0, injected_drop: 1}
""")
    return path


@pytest.mark.slow
def test_fit_prune_and_refit_on_a_store(prunewatch, tmp_path: Path, waves: Path, small: Path) -> None:
    """The main job without a server: every step is a version, and a rejected or planned cycle changes nothing."""
    store = tmp_path / "new"
    fit = ("fit", "wave", "--data", waves, "--store", store)
    prune = ("prune", "wave", "--store", store)
    code, out, err = prunewatch(*fit, "--config", small)
    assert (code, "wave version 1 fitted on 800 points" in out) == (0, True), err

    code, out, _ = prunewatch(*prune, "--size", "6KiB", "--dry-run", "--json")
    planned = json.loads(out)
    assert (code, planned["outcome"], planned["child"]["hash"]) == (0, "planned", None)

    code, out, _ = prunewatch(*prune, "--size", "6KiB", "--json")
    adopted = json.loads(out)
    assert (code, adopted["outcome"]) == (0, "adopted")
    assert adopted["child"]["bytes"] <= 6 << 10 < adopted["parent"]["bytes"]
    assert adopted["child"].keys() >= {"version", "units", "parameters", "bytes", "p50_seconds", "p99_seconds", "error"}

    code, out, _ = prunewatch(*prune, "--speedup", 500)
    assert (code, "wave: rejected" in out, "Best reachable" in out) == (3, True, True)

    assert prunewatch(*fit)[0] == 0
    described = json.loads(prunewatch("show", "wave", "--json", "--store", store)[1])
    assert [(it["version"], it["cause"]) for it in described["versions"]] == [(1, "fit"), (2, "prune"), (3, "fit")]
    assert described["served"][0]["version"] == 3
    assert described["history_points"] == 1600
    assert described["versions"][1]["children"]["hub"]["derived_from"] == described["versions"][0]["parent"]["hash"]

    scores = tmp_path / "scores.csv"
    assert prunewatch("score", "wave", "--data", waves, "--out", scores, "--store", store)[0] == 0
    assert sum(line.split(",")[3] == "1" for line in scores.read_text().splitlines()[1:]) < 40


@pytest.mark.slow
def test_a_fit_that_fails_leaves_no_trace(prunewatch, tmp_path: Path) -> None:
    """Too few points: the error says so, and the name is still free."""
    path, store = tmp_path / "short.csv", tmp_path / "new"
    path.write_text("t,a\n0,1\n1,2\n")
    code, _, err = prunewatch("fit", "wave", "--data", path, "--store", store)
    assert (code, "too few" in err) == (2, True)
    code, _, err = prunewatch("show", "wave", "--store", store)
    assert (code, "there is no detector 'wave'" in err) == (2, True)


@pytest.mark.slow
def test_fit_and_prune_on_a_server(prunewatch, server: str, waves: Path, tmp_path: Path) -> None:
    """The same job sent to a server: the answers have the same form."""
    config = tmp_path / "small.yaml"
    config.write_text("detectors: {wave: {options: {width: 16, layers: 1}}}")
    fit = ("fit", "wave", "--data", waves, "--server", server)
    code, out, err = prunewatch(*fit, "--config", config)
    assert (code, "wave version 1 fitted on 800 points" in out) == (0, True), err
    code, out, _ = prunewatch("prune", "wave", "--size", "6KiB", "--dry-run", "--json", "--server", server)
    assert (code, json.loads(out)["outcome"]) == (0, "planned")
    code, out, _ = prunewatch("prune", "wave", "--speedup", 500, "--data", waves, "--json", "--server", server)
    assert (code, json.loads(out)["outcome"]) == (3, "rejected")
    assert json.loads(out)["best_reachable"]["units"]

    code, _, err = prunewatch(*fit, "--network", "autoencoder")
    assert (code, "exists with network 'lstm'" in err) == (2, True)


def test_a_server_that_is_not_there_is_told(prunewatch) -> None:
    """With how to start one; and an address that is none."""
    code, _, err = prunewatch("show", "pump", "--server", free_address())
    assert (code, "prunewatch serve" in err) == (2, True)
    code, _, err = prunewatch("show", "pump", "--server", "here")
    assert (code, "HOST:PORT" in err) == (2, True)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal() -> None:
    """One line for each stage and one every five seconds, so that a log stays readable."""
    now = [0.0]
    written = io.StringIO()
    report = lines(Console(file=written), clock=lambda: now[0])
    for i in range(101):
        report("fit", i / 100, f"epoch {i}")
        now[0] += 0.125
    report("export", 0.0, "")

    assert written.getvalue().splitlines() == [
        "fit   0%  epoch 0",
        "fit  40%  epoch 40",
        "fit  80%  epoch 80",
        "export   0%",
    ]


def test_progress_on_a_terminal_is_bars() -> None:
    """Every stage has its bar, and stages that are over are full."""
    written = io.StringIO()
    with progress(Console(file=written, force_terminal=True, width=100)) as report:
        report("fit", 0.5, "epoch 1")
        report("export", 0.2, "")

    assert "fit" in written.getvalue()
    assert "export" in written.getvalue()


def test_scoring_loads_no_training_framework() -> None:
    """`score` on a store needs the catalog and the history, not torch, pandas or onnx."""
    _run_without(
        "torch", "pandas", "onnx", "pyod", program="import server.publish, server.describe, server.commands.score"
    )


def test_the_base_install_talks_to_servers_and_says_what_it_lacks() -> None:
    """Without the hub extra every help text works, `--server` works, and a store asks for the extra."""
    program = (
        "import server.commands.remote, server.edge\n"
        "from server.cli import main\n"
        "main(['show', 'pump', '--store', '.'])\n"
    )
    without = ("torch", "pandas", "onnx", "pyod", "sqlalchemy", "pyarrow", "safetensors")
    run = _run_without(*without, program=program, code=2)

    assert "pip install 'prunewatch[hub]'" in run.stderr
    assert "sqlalchemy, pyarrow" in run.stderr


def _run_without(*modules: str, program: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs Python code where some modules can not be found."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    run = subprocess.run([sys.executable, "-c", hidden + program], capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    return run
