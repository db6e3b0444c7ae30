"""The explanation benchmark reads what experts said, measures rankings exactly, and runs from series to table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import detection_cells
    import explain
    import explain_figures
    import explain_report

    return SimpleNamespace(main=explain, cells=detection_cells.Cells, figures=explain_figures, report=explain_report)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, without labelled series unless `environment` names them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PRUNEWATCH_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / "explain.py"), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=170, check=False
    )


def test_the_end_of_an_anomaly_is_part_of_it_or_not(benchmark):
    """The set asd includes it, smd does not; features are counted from 1; a file may end without a line break."""
    text = "3-5:1,3\n\n10-11:2"

    closed = benchmark.figures.interpretation(text, 3, closed=True)
    half_open = benchmark.figures.interpretation(text, 3, closed=False)

    assert [(it.rows.start, it.rows.stop) for it in closed] == [(3, 6), (10, 12)]
    assert [(it.rows.start, it.rows.stop) for it in half_open] == [(3, 5), (10, 11)]
    assert [it.causes.tolist() for it in closed] == [[True, False, True], [False, True, False]]


@pytest.mark.data
@pytest.mark.parametrize("server", ["smd/machine-2-1", "asd/omi-4", "asd/omi-9"])
def test_the_files_say_what_the_labels_say(benchmark, server):
    """Every row of an anomaly is labelled, and those next to it are not: rows and ends are read as they are meant."""
    pd = pytest.importorskip("pandas")
    import harness

    try:
        path, train_rows = harness.labelled_series(server)
    except harness.Skip as reason:
        pytest.skip(str(reason))
    labels = pd.read_csv(path)["label"].to_numpy()[train_rows:]

    for it in benchmark.main.read_server(server).anomalies:
        assert labels[it.rows].all()
        assert not labels[it.rows.start - 1]
        assert not labels[it.rows.stop]


def test_hit_rates_are_those_of_the_paper(benchmark):
    """Of the causes, the share among floor(P% of their number) features; of the first few, the share that is one."""
    causes = np.array([1, 1, 1, 0, 0, 0], bool)
    contribution = np.array([9, 1, 7, 8, 2, 0.5])  # ranked: cause, no, cause, no, cause, no

    found = benchmark.figures.measured(contribution, causes)

    assert found["hit_100"] == pytest.approx(2 / 3)  # of 3
    assert found["hit_150"] == pytest.approx(2 / 3)  # of floor(4.5)
    assert found["top_1"] == 1.0
    assert found["top_3"] == pytest.approx(2 / 3)


def test_more_is_not_looked_at_than_there_is(benchmark):
    """Half as many again as there are causes may be more than all features."""
    assert benchmark.figures.measured(np.arange(3.0), np.ones(3, bool))["hit_150"] == 1.0


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_equal_contributions_count_with_their_expectation(benchmark, k):
    """As the mean over every order in which equal ones can stand."""
    contribution = np.array([5.0, 2.0, 2.0, 2.0, 0.0])
    causes = np.array([0, 1, 0, 1, 1], bool)
    orders = [
        order for order in permutations(range(5)) if (np.diff(contribution[list(order)]) <= 0).all()
    ]  # from the largest to the smallest

    expected = np.mean([causes[list(order[:k])].sum() for order in orders])

    assert benchmark.figures.hits(contribution, causes, k) == pytest.approx(expected)


def test_chance_is_the_mean_of_random_rankings(benchmark):
    """Of F features, k hold k/F of the causes."""
    causes = np.arange(38) < 5

    found = benchmark.figures.by_chance(causes)

    assert found == pytest.approx({"hit_100": 5 / 38, "hit_150": 7 / 38, "top_1": 5 / 38, "top_3": 5 / 38})


def test_only_rows_with_a_score_are_averaged(benchmark):
    """And, where a user sees flagged rows only, only those; none gives nothing."""
    score = np.array([np.nan, 1.0, 5.0, np.nan], np.float32)
    contribution = np.array([[9, 9], [1, 3], [5, 5], [9, 9]], np.float32)
    found = benchmark.main.Contributions(score, contribution)

    assert found.over(slice(0, 4)).tolist() == [3.0, 4.0]
    assert found.over(slice(0, 4), flagged=True).tolist() == [5.0, 5.0]
    assert found.over(slice(0, 2), flagged=True) is None
    assert found.over(slice(3, 4)) is None


def cell(series: str, seed: int, hit: float, *, version: str = "v", pruned: bool = True) -> dict:
    """A cell of two anomalies, of which the second has no flagged row."""
    row = {"hit_100": hit, "hit_150": hit, "top_1": 1.0, "top_3": hit}
    side = {"all": [row, row], "flagged": [row, None]}
    return {
        "series": series,
        "seed": seed,
        "version": version,
        "features": 10,
        "causes": [2, 4],
        "dense": side,
        "pruned": side if pruned else None,
        "same_top_3": [1.0, 0.5] if pruned else None,
        "outcome": "adopted" if pruned else "rejected",
        "reason": "",
        "speedup": 4.0 if pruned else None,
        "fit_seconds": 1.0,
        "prune_seconds": 2.0,
    }


def test_tables_hold_means_over_anomalies_and_spreads_over_seeds(benchmark, tmp_path):
    """Seeds count that have every server; a side that was not built is a dash; what is missing or older is said."""
    servers = ["smd/a", "asd/b"]
    lstm, ensemble = benchmark.cells(tmp_path / "lstm.jsonl"), benchmark.cells(tmp_path / "ensemble.jsonl")
    for seed, hit in ((0, 0.4), (1, 0.6)):
        for series in servers:
            lstm.append(cell(series, seed, hit))
    lstm.append(cell("smd/a", 2, 0.9))  # and asd/b not yet
    for series in servers:
        ensemble.append(cell(series, 0, 0.5, version="old", pruned=False))

    versions = {"ensemble": "new", "lstm": "v", "autoencoder": "v"}
    found = benchmark.report.result(tmp_path, versions, servers)

    of_lstm = found.figures["lstm"]
    assert of_lstm["dense"]["all"]["hit_100"] == pytest.approx({"mean": 0.5, "spread": 0.2 / 2**0.5})
    assert of_lstm["flagged"]["dense"]["found"] == pytest.approx({"mean": 0.5, "spread": 0.0})
    assert of_lstm["pruning"]["same_top_3"] == 0.75
    assert found.figures["by chance"]["all"]["hit_100"] == pytest.approx(0.3)
    assert found.ratios["lstm_pruned_vs_chance"] == pytest.approx(0.5 / 0.3)
    assert "ensemble_pruned_vs_chance" not in found.ratios
    assert "| `ensemble`, pruned | - |" in found.table
    assert "| `lstm`, dense | 0.50 ± 0.14 |" in found.table
    assert "Made by an earlier version of the code: ensemble." in found.table
    assert "Not run on all servers yet: autoencoder." in found.table


def test_the_document_has_a_place_for_it():
    """Its markers stand in docs/benchmarks.md once."""
    document = DOCUMENT.read_text()

    assert document.count("<!-- explain:begin -->") == document.count("<!-- explain:end -->") == 1


def test_help_teaches(help_of):
    """What is measured, how to run it, and which arguments there are."""
    printed = help_of("explain")

    assert "python benchmarks/explain.py" in printed
    assert {"--quick", "--json", "--docs", "--kinds", "--report"} <= set(printed.split())


@pytest.mark.slow
def test_without_labelled_data_it_is_skipped(tmp_path):
    """It says so, succeeds, and leaves the document alone."""
    record, before = tmp_path / "record.json", DOCUMENT.read_text()

    done = run("--json", str(record))

    assert done.returncode == 0, done.stderr
    assert "SKIPPED explain" in done.stderr
    assert "PRUNEWATCH_DATA" in json.loads(record.read_text())["skipped"]
    assert DOCUMENT.read_text() == before


@pytest.mark.slow
@pytest.mark.data
def test_a_quick_run_goes_from_series_to_table(tmp_path):
    """One kind, one server, one seed: every figure is there, and contributions say more than chance."""
    folder = os.environ.get("PRUNEWATCH_DATA") or pytest.skip("PRUNEWATCH_DATA is not set")
    record, document = tmp_path / "record.json", tmp_path / "benchmarks.md"
    document.write_text("<!-- explain:begin -->\n<!-- explain:end -->\n")

    done = run("--quick", "--json", str(record), "--docs", str(document), PRUNEWATCH_DATA=folder)

    assert done.returncode == 0, done.stderr
    written = json.loads(record.read_text())
    assert written["ratios"]["lstm_dense_vs_chance"] > 1
    assert written["figures"]["anomalies"] == 5
    assert "`lstm`, pruned" in document.read_text()
