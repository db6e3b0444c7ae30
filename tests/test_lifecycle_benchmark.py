"""The lifecycle benchmark streams what it says, and its tables say what its cells hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import detection_series
    import lifecycle_report
    import lifecycle_runs
    import pruning_cells

    return SimpleNamespace(
        series=detection_series.Series, report=lifecycle_report, runs=lifecycle_runs, cells=pruning_cells
    )


def labelled(benchmark, rows: int = 400):
    """A series of two features whose values are row numbers; rows 50 to 59 and 200 to 219 are anomalous."""
    labels = np.zeros(rows, bool)
    labels[50:60] = labels[200:220] = True
    test = np.stack([np.arange(rows), np.arange(rows)], axis=1).astype(float)
    return benchmark.series("toy/a", ("a", "b"), np.zeros((100, 2)), test, labels, None)


def test_incidents_are_learned_from_and_come_again(benchmark):
    """Each is in the first half as often as it says, and once in the second; the second half does not depend on it."""
    series = labelled(benchmark)

    taught, untaught = (benchmark.runs.with_incidents(series, times) for times in (3, 0))

    for stream, times in ((taught, 3), (untaught, 0)):
        learned, judged = stream.rows[: stream.judged.start], stream.rows[stream.judged]
        for row in (50, 59, 200, 219):
            assert np.count_nonzero(learned[:, 0] == row) == times
            assert np.count_nonzero(judged[:, 0] == row) == 1
        assert not stream.labels[: stream.judged.start].any()
        np.testing.assert_array_equal(judged[stream.labels[stream.judged], 0], np.r_[50:60, 200:220])
    np.testing.assert_array_equal(taught.rows[taught.judged], untaught.rows[untaught.judged])
    assert len(taught.rows) == len(untaught.rows) + 3 * 30


def side(**figures):
    """Measures of one side of a replay."""
    given = {"vus_pr": 0.5, "average_precision": 0.5, "events": 2, "found": 2, "rows_found": 20, "anomalous": 30}
    return given | {"false_alarms": 3, "normal_rows": 1000, "normal_flagged": 40, "rows": 1030} | figures


def cell(part: str, series: str, **figures):
    """A cell of a part."""
    sizes = {"cycles": {"adopted": 6, "rejected": 2}, "bytes": [8000, 1000], "p50_seconds": [4e-4, 1e-4]}
    return {"part": part, "series": series, "version": "1", **sizes, **figures}


def test_the_tables_say_what_is_met(benchmark, tmp_path):
    """Halved alarms, harm and recall that was kept are judged by the aims; old cells are named."""
    drifting = cell(
        "drifting", "nab/a", frozen=side(), loop=side(normal_flagged=30), answered=side(normal_flagged=10, vus_pr=0.52)
    )
    steady = cell("steady", "asd/b", frozen=side(), loop=side(vus_pr=0.47))
    incidents = {
        "part": "incidents", "series": "asd/b", "version": "0",
        "taught": {"loop": side(rows_found=15)}, "untaught": {"loop": side()},
    }  # fmt: skip
    for it in (drifting, steady, incidents):
        benchmark.cells.append(benchmark.cells.path_of(tmp_path, it["part"], it["series"]), it)

    found = benchmark.report.result(tmp_path, "1")

    assert found.ratios == pytest.approx(
        {
            "drifting_loop_halved": 0.0,
            "drifting_loop_vus_pr_change": 0.0,
            "drifting_loop_vus_pr_worst": 0.0,
            "drifting_answered_halved": 1.0,
            "drifting_answered_vus_pr_change": 0.02,
            "drifting_answered_vus_pr_worst": 0.02,
            "steady_vus_pr_worst": -0.03,
            "incidents_recall_kept": 0.75,
        }
    )
    row = next(line for line in found.table.splitlines() if line.startswith("| nab/a"))
    assert "6 adopted, 2 rejected" in row
    assert "40.0 / 30.0 / 10.0" in row
    assert "8.0x less" in row
    assert "Loop: flagged normal rows at least halved on 0 of 1 series: **missed**" in found.table
    assert "Loop, alarms answered: flagged normal rows at least halved on 1 of 1 series: met" in found.table
    assert "Worst change of VUS-PR -0.030 (aim: not below -0.01): **missed**" in found.table
    assert "Least part kept 0.75 (aim: 0.9): **missed**" in found.table
    assert "Made by an earlier version of the code: asd/b (incidents)." in found.table


@pytest.mark.parametrize("script", ["lifecycle", "training_load"])
def test_help_teaches(help_of, script):
    """--help says what is measured, how to run it, and which arguments there are."""
    printed = help_of(script)

    assert f"python benchmarks/{script}.py" in printed
    assert {"--quick", "--json", "--docs"} <= set(printed.split())


@pytest.mark.slow
def test_without_data_it_says_so(tmp_path):
    """A machine without labelled series skips it; the document keeps what it had."""
    document, record = tmp_path / "benchmarks.md", tmp_path / "record.json"
    document.write_text("<!-- lifecycle:begin -->\nkept\n<!-- lifecycle:end -->\n")

    done = run("lifecycle", "--quick", "--docs", str(document), "--json", str(record))

    assert done.returncode == 0, done.stderr
    assert "skipped" in json.loads(record.read_text())
    assert "kept" in document.read_text()


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A benchmark as a user runs it, without labelled series."""
    inherited = {name: value for name, value in os.environ.items() if name != "PRUNEWATCH_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=120, check=False)
