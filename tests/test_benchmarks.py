"""The benchmark scripts run, explain themselves, and write what docs/benchmarks.md and readers of --json expect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("main_job", "scoring", "carried_state")
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a benchmark script without the folder of labelled series, unless `environment` names it."""
    inherited = {name: value for name, value in os.environ.items() if name != "PRUNEWATCH_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=170, check=False
    )


@pytest.mark.parametrize("script", [*BENCHMARKS, "profile_scoring", "all"])
def test_help_teaches(help_of: Callable[[str], str], script: str) -> None:
    """--help says what is measured, how to run it, and which arguments there are."""
    printed = help_of(script)

    assert f"python benchmarks/{script}.py" in printed
    assert {"--quick", "--json", "--docs"} <= set(printed.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "ratios"),
    [
        (
            "scoring",
            ("--only", "echo", "step", "metrics"),  # tests/test_scoring_benchmark.py runs the other parts
            {"points_vs_echo", "points_vs_echo_pipelined", "unary_p50_vs_echo", "step_vs_matmul", "metrics_overhead"},
        ),
        ("carried_state", (), {"carried_vs_window_batch_256", "carried_vs_window_batch_1", "spearman_operator"}),
    ],
)
def test_a_quick_run_writes_its_table_and_its_json(
    script: str, arguments: tuple[str, ...], ratios: set[str], tmp_path: Path
) -> None:
    """--json holds figures, ratios, machine, versions and commit; the table lands between its markers alone."""
    record, document = tmp_path / "record.json", tmp_path / "benchmarks.md"
    others = [f"<!-- {name}:begin -->\nkept\n<!-- {name}:end -->" for name in BENCHMARKS if name != script]
    document.write_text("\n".join(["# Title", f"<!-- {script}:begin -->", f"<!-- {script}:end -->", *others]))

    done = run(script, "--quick", *arguments, "--json", str(record), "--docs", str(document))

    written = json.loads(record.read_text()) if record.exists() else pytest.fail(done.stderr)
    if "skipped" in written:
        pytest.skip(written["skipped"])
    assert done.returncode == 0, done.stderr
    assert {"figures", "ratios", "machine", "versions", "commit"} <= written.keys()
    assert {"cpu", "cores"} <= written["machine"].keys()
    assert {"python", "numpy", "onnxruntime", "torch", "grpcio"} <= written["versions"].keys()
    assert ratios <= written["ratios"].keys()
    assert all(value > 0 for value in written["ratios"].values())
    table = document.read_text()
    assert "| --- |" in table.split(f"<!-- {script}:begin -->")[1].split(f"<!-- {script}:end -->")[0]
    assert table.count("kept") == len(others)


@pytest.mark.slow
def test_without_labelled_data_the_main_job_says_that_it_is_skipped(tmp_path: Path) -> None:
    """A benchmark that can not run here says so, succeeds, and leaves the document alone."""
    record, before = tmp_path / "record.json", DOCUMENT.read_text()

    done = run("main_job", "--json", str(record))

    assert done.returncode == 0, done.stderr
    assert "SKIPPED main_job" in done.stderr
    assert "PRUNEWATCH_DATA" in json.loads(record.read_text())["skipped"]
    assert DOCUMENT.read_text() == before


def test_the_document_has_a_place_for_every_benchmark() -> None:
    """Each script finds its markers in docs/benchmarks.md, once."""
    document = DOCUMENT.read_text()

    for name in BENCHMARKS:
        assert document.count(f"<!-- {name}:begin -->") == document.count(f"<!-- {name}:end -->") == 1
    profile = (DOCUMENT.parent / "performance.md").read_text()
    assert profile.count("<!-- profile_scoring:begin -->") == profile.count("<!-- profile_scoring:end -->") == 1
