"""The detection benchmark measures what it says, keeps its cells whole, and runs from series to table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
SETS = {"skab/valve1/0": 1.0, "nab/realTraffic/TravelTime_451": 600.0}
"""The series of a quick run, and seconds between two of their rows."""


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark, by name; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import detection
    import detection_cells
    import detection_figures
    import detection_measures
    import detection_ours
    import detection_peers
    import detection_report

    return SimpleNamespace(
        main=detection,
        cells=detection_cells.Cells,
        figures=detection_figures,
        measures=detection_measures,
        ours=detection_ours,
        peers=detection_peers,
        report=detection_report,
    )


def flags(text: str) -> np.ndarray:
    """`.##.` -> false, true, true, false."""
    return np.array([letter == "#" for letter in text])


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, without labelled series unless `environment` names them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PRUNEWATCH_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / "detection.py"), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=170, check=False
    )


def labelled(seed: int, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores, with ties where `rounded`, and labels of a series with a few events, at its ends too."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(int(rng.integers(300, 900)), bool)
    for start in rng.integers(0, len(labels) - 2, rng.integers(1, 6)):
        labels[start : start + int(rng.integers(1, 50))] = True
    labels[0], labels[-1] = seed % 3 == 0, seed % 4 == 0
    scores = rng.normal(size=len(labels)) + rng.uniform(0, 2) * labels
    return (np.round(scores, 1) if rounded else scores), labels


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_vus_pr_is_that_of_the_package(benchmark, seed, rounded):
    """On any scores and labels, with ties and events at the ends, `vus_pr` gives what the package `vus` gives."""
    metricor = pytest.importorskip("vus.utils.metrics").metricor
    scores, labels = labelled(seed, rounded)
    buffer = (0, 1, 7, 20, 33, 60)[seed]

    ours = benchmark.measures.vus_pr(scores, labels, buffer)

    assert ours == pytest.approx(metricor().RangeAUC_volume_opt(labels.astype(int), scores, buffer)[-1], abs=1e-9)


def test_vus_pr_of_perfect_and_of_inverted_scores(benchmark):
    """Without a buffer, scores that rank every anomalous row first reach 1, and the other way round hardly anything."""
    labels = np.zeros(500, bool)
    labels[200:250] = True

    assert benchmark.measures.vus_pr(labels.astype(float), labels, 0) == pytest.approx(1.0)
    assert benchmark.measures.vus_pr(-labels.astype(float), labels, 0) < 0.15


def test_the_reference_of_vus_pr_is_kept_here_too(benchmark):
    """Where the package is not installed, a value that it gave holds the implementation."""
    scores, labels = labelled(5, rounded=False)

    assert benchmark.measures.vus_pr(scores, labels, 60) == pytest.approx(0.3150895749710867, abs=1e-9)


@pytest.mark.parametrize(("period", "noise"), [(24, 0.1), (60, 0.2), (183, 0.1)])
def test_the_buffer_is_the_dominant_period(benchmark, period, noise):
    """A cycle with a little noise gives its length in rows."""
    rng = np.random.default_rng(0)
    rows = np.sin(2 * np.pi * np.arange(3000) / period) + noise * rng.standard_normal(3000)

    assert benchmark.measures.dominant_period(rows) == pytest.approx(period, abs=2)


@pytest.mark.parametrize("rows", [np.zeros(500), np.full(40, 3.7), np.arange(300.0)])
def test_the_buffer_of_rows_without_a_cycle_is_that_of_the_package(benchmark, rows):
    """Constant rows, few rows and trends get the 125 rows that `find_length` falls back to."""
    assert benchmark.measures.dominant_period(rows) == 125


def test_events_delays_and_false_alarms_of_an_example(benchmark):
    """An event is found by any flagged row in it; an alarm is false that begins at a normal row, not one that lasts."""
    labels = flags("...####....##...####...###.")
    raised = flags("#....######.......##..##...")

    assert benchmark.measures.runs(labels) == [(3, 6), (11, 12), (16, 19), (23, 25)]
    assert benchmark.measures.detection_delays(labels, raised) == [2, 2, 0]
    assert benchmark.measures.false_alarms(labels, raised) == 2  # the first row, and the one just before an event


def test_measures_of_a_scored_part(benchmark):
    """Counts come with what they are to be divided by; rows without a score are the least strange."""
    labels = flags("..##......")
    scores = np.array([np.nan, 0.1, 0.9, 0.8, 0.7, 0.1, 0.2, 0.1, -0.5, 0.1])

    found = benchmark.measures.measured(scores, labels, scores > 0.5, buffer=1, period_seconds=86_400 / 4)

    assert found["average_precision"] == pytest.approx(1.0)
    assert found["vus_pr"] == pytest.approx(1.0)
    assert (found["events"], found["delays"], found["false_alarms"]) == (1, [0], 0)
    assert (found["normal_rows"], found["normal_flagged"], found["normal_days"]) == (8, 1, 2.0)
    assert (found["rows"], found["unscored_rows"]) == (10, 1)
    assert benchmark.measures.scored_everywhere(scores)[0] == -1.5


def test_a_window_ends_at_the_row_that_it_scores(benchmark):
    """With the last 49 training rows before them, every test row has a window of its own, and it is the last in it."""
    rows = np.arange(49 + 5, dtype=float)[:, None]

    seen = benchmark.peers.windows(rows)

    assert seen.shape == (5, 50)
    assert seen[:, -1].tolist() == [49, 50, 51, 52, 53]


def test_lstmad_gets_fewer_epochs_on_long_series_alone(benchmark):
    """No series costs more gradient steps than 50 epochs over 2,000 windows, and each gets an epoch."""
    for rows in (100, 700, 2050, 3000, 24_000, 10_000_000):
        epochs = benchmark.peers.lstmad_epochs(rows)
        steps = -(-(rows - 50) // 32)

        assert epochs == 50 if rows <= 2050 else 1 <= epochs < 50
        assert epochs * steps <= 50 * 63 or epochs == 1


def cell(series: str = "nab/a", seed: int = 0, version: str = "1", **figures):
    """A cell with as much in it as a test needs."""
    return {"series": series, "seed": seed, "version": version, **figures}


def test_cells_survive_a_kill_in_the_middle_of_a_line(benchmark, tmp_path):
    """Half a line is no cell, and does no harm to the cells before and after it."""
    kept = benchmark.cells(tmp_path / "cells" / "lstm.jsonl")
    kept.append(cell(seed=0))
    with kept.path.open("ab") as file:
        file.write(b'{"series": "nab/a", "seed": 1, "ver')

    kept.append(cell(seed=2))

    assert [it["seed"] for it in kept.read()] == [0, 2]
    assert kept.of("1").keys() == {("nab/a", 0), ("nab/a", 2)}


def test_cells_of_an_older_version_go_when_a_newer_one_writes(benchmark, tmp_path):
    """A changed method is run again; until it has a cell, the older ones are what there is to show."""
    kept = benchmark.cells(tmp_path / "lstm.jsonl")
    kept.append(cell(seed=0))
    kept.append(cell(seed=1))

    assert kept.of("2") == {}
    assert len(kept.newest()) == 2

    kept.append(cell(seed=0, version="2"))

    assert kept.read() == [cell(seed=0, version="2")]
    assert [path.name for path in tmp_path.iterdir()] == ["lstm.jsonl"]


def test_a_cell_that_is_not_a_number_is_refused(benchmark, tmp_path):
    """Files of cells are plain JSON: NaN is an error where it arises, not where it is read."""
    with pytest.raises(ValueError, match="JSON"):
        benchmark.cells(tmp_path / "lstm.jsonl").append(cell(vus_pr=float("nan")))


def test_the_version_of_a_kind_is_that_of_its_code(benchmark, tmp_path):
    """Every kind has its own, the same each time; comments and docstrings are no part of it."""
    path = tmp_path / "code.py"
    path.write_text('"""Says."""\n\ndef f():\n    """Does."""\n    return 1  # one\n')
    bare = benchmark.ours._bare(path)
    path.write_text("def f():\n    return 1\n")

    versions = {kind: it.version for kind, it in benchmark.ours.ours().items()}

    assert benchmark.ours._bare(path) == bare
    assert versions["lstm"] != versions["autoencoder"]
    assert versions == {kind: benchmark.ours.code_version(kind) for kind in versions}


def frame(**vus_pr) -> pd.DataFrame:
    """Cells of methods, each with VUS-PR by seed and series."""
    rows = [
        {"method": method, "seed": seed, "series": series, "dataset": series.split("/")[0], "vus_pr": value}
        for method, seeds in vus_pr.items()
        for seed, by_series in enumerate(seeds)
        for series, value in by_series.items()
    ]
    return pd.DataFrame(rows).assign(version="1")


def test_means_over_series_and_over_sets_are_told_apart(benchmark):
    """A set of many series counts once in the mean over sets; the spread is that of seeds."""
    cells = frame(lstm=[{"nab/a": 0.2, "nab/b": 0.4, "smd/c": 0.9}, {"nab/a": 0.4, "nab/b": 0.6, "smd/c": 0.9}])
    figures = benchmark.figures.FIGURES

    assert figures["vus_pr"](cells[cells.seed == 0]) == pytest.approx(0.5)
    assert figures["vus_pr_sets"](cells[cells.seed == 0]) == pytest.approx(0.6)
    assert benchmark.figures._over_seeds(cells, figures["vus_pr_sets"]) == {
        "mean": pytest.approx(0.65),
        "spread": pytest.approx(0.1 / np.sqrt(2)),
    }


def test_differences_are_paired_by_series(benchmark):
    """A small gain on every series is certain although the series differ a lot; a gain on some of them is not."""
    names = [f"nab/{i}" for i in range(20)]
    values = np.linspace(0.1, 0.9, 20)
    one, other = dict(zip(names, values + 0.01, strict=True)), dict(zip(names, values, strict=True))
    mixed = dict(zip(names, values + np.where(np.arange(20) % 2, 0.3, -0.28), strict=True))
    cells = frame(lstm=[one], gru=[mixed], LSTMAD=[other])

    steady, uncertain = (benchmark.figures.differences(cells, it, "LSTMAD") for it in ("lstm", "gru"))

    assert steady == {
        **dict.fromkeys(("mean", "low", "high"), pytest.approx(0.01)),
        "better": 20,
        "series": 20,
    }
    assert uncertain["low"] < 0 < uncertain["high"]
    assert uncertain["better"] == 10


def test_only_methods_with_every_series_are_compared(benchmark):
    """A seed that lacks a series is left out, and what was left out or is older is said."""
    every = {"nab/a": 0.2, "smd/c": 0.9}
    cells = frame(lstm=[every, {"nab/a": 0.3}], gru=[{"smd/c": 0.9}], LSTMAD=[every, every])

    good, notes = benchmark.report.whole(cells, {"lstm": "2", "gru": "1", "LSTMAD": "1"})

    assert set(zip(good.method, good.seed, strict=True)) == {("lstm", 0), ("LSTMAD", 0), ("LSTMAD", 1)}
    assert any("yet: gru." in note for note in notes)
    assert any("earlier version" in note and "lstm" in note for note in notes)
    assert any("Fewer seeds" in note and "lstm (1)" in note for note in notes)


def test_the_halves_hold_every_set_once(benchmark):
    """A set was either open to choices or is reported on."""
    from detection_series import REPORTED_HALF, SETS, TUNED_HALF

    assert set(TUNED_HALF) | set(REPORTED_HALF) == set(SETS)
    assert len(SETS) == 8


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two small labelled series in the layout of the real ones, and one without an anomaly."""
    rng = np.random.default_rng(0)
    index = []
    for name, period in {**SETS, "nab/calm": 300.0}.items():
        t = np.arange(460)
        flow = np.sin(t / 5) + 0.1 * rng.standard_normal(len(t))
        labels = np.zeros(len(t), int)
        if name in SETS:
            labels[380:400] = 1
            flow[380:400] += 3
        dataset, rest = name.split("/", 1)
        path = tmp_path / dataset / f"{rest}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"timestamp": t, "flow": flow, "load": np.cos(t / 9), "label": labels}).to_csv(path, index=False)
        index.append(
            {
                "dataset": dataset,
                "name": rest,
                "path": str(path.relative_to(tmp_path)),
                "n_rows": len(t),
                "train_rows": 300,
                "anomaly_rows": labels.sum(),
                "train_anomaly_rows": 0,
                "period_seconds": period,
            }
        )
    pd.DataFrame(index).to_csv(tmp_path / "index.csv", index=False)
    return tmp_path


@pytest.mark.slow
def test_from_series_to_table_and_on_from_there(folder, tmp_path):
    """A run makes the cells of every series with an anomaly, the next makes none, and --report needs no series."""
    document, cells, record = tmp_path / "benchmarks.md", tmp_path / "cells", tmp_path / "record.json"
    document.write_text("# Title\n<!-- detection:begin -->\n<!-- detection:end -->\n")
    common = ("--cells", str(cells), "--docs", str(document), "--json", str(record))

    first = run("--methods", "autoencoder,PCA,IForest", "--seeds", "0", *common, PRUNEWATCH_DATA=str(folder))
    written = {path.name: path.read_text() for path in cells.glob("*.jsonl")}
    table = document.read_text()

    assert first.returncode == 0, first.stderr
    assert written.keys() == {"autoencoder.jsonl", "PCA.jsonl", "IForest.jsonl"}
    assert all(text.count("\n") == len(SETS) for text in written.values())
    assert "| `autoencoder` |" in table
    figures = json.loads(record.read_text())["figures"]["standings"]["All sets"]
    assert all(0.05 < figures[name]["vus_pr"]["mean"] <= 1 for name in figures)

    again = run("--methods", "autoencoder,PCA,IForest", "--seeds", "0", *common, PRUNEWATCH_DATA=str(folder))
    report = run("--report", *common)

    assert again.returncode == report.returncode == 0, report.stderr
    assert " of " not in again.stderr
    assert {path.name: path.read_text() for path in cells.glob("*.jsonl")} == written
    assert document.read_text() == table


def test_without_labelled_data_it_says_that_it_is_skipped(tmp_path):
    """A benchmark that can not run here says so, succeeds, and leaves the document alone."""
    record, before = tmp_path / "record.json", DOCUMENT.read_text()

    done = run("--json", str(record))

    assert done.returncode == 0, done.stderr
    assert "SKIPPED detection" in done.stderr
    assert "PRUNEWATCH_DATA" in json.loads(record.read_text())["skipped"]
    assert DOCUMENT.read_text() == before


def test_help_and_document_know_it(help_of):
    """--help shows how to run it, and the document has one place for its tables."""
    printed = help_of("detection")

    assert "python benchmarks/detection.py --report" in printed
    assert {"--methods", "--seeds", "--fresh", "--remeasure", "--quick"} <= set(printed.split())
    assert DOCUMENT.read_text().count("<!-- detection:begin -->") == 1
    assert DOCUMENT.read_text().count("<!-- detection:end -->") == 1
