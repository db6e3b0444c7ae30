"""The benchmark of the edge: it measures a real edge, and finds out scores that differ between machines."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import ewma_bundle

from detectors.archive import pack_bundle
from detectors.bundle import write_bundle

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks"
DOCUMENT = ROOT / "docs" / "benchmarks.md"


@pytest.fixture
def arm64(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/edge_arm64.py`, found as its neighbours find it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import edge_arm64

    return edge_arm64


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder as `edge_arm64.py write` makes it, of two small bundles."""
    values = np.random.default_rng(0).normal(size=(30, 4, 2)).astype(np.float32)
    for name, gain in (("calm", 1.0), ("loud", 5.0)):
        bundle = ewma_bundle("machine", gain=gain)
        write_bundle(bundle, tmp_path / name)
        pack_bundle(tmp_path / name, bundle.hash, tmp_path / f"{name}.tar")
        np.save(tmp_path / f"{name}.npy", values)
    return tmp_path


def there(golden: Path) -> dict[str, Any]:
    """What the program for the other machine prints, in a process of its own."""
    command = [sys.executable, str(SCRIPTS / "edge_golden.py"), str(golden)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_equal_scores_are_equal_to_the_bit(arm64: Any, golden: Path) -> None:
    """Through JSON and another process nothing is lost."""
    part = arm64.compared(arm64.edge_golden.scored(golden), there(golden))

    assert {"calm", "loud"} <= part.figures.keys()
    assert part.figures["largest_difference"] == 0
    assert part.figures["loud"]["equal_bits_share"] == 1
    assert part.figures["loud"]["points"] == 27 * 4
    assert part.figures["loud"]["anomalies"] > 0
    assert "differ**" not in part.table


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda it: it["scores"][-1].__setitem__(0, it["scores"][-1][0] + 1e-3), "largest_difference"),
        (lambda it: it["scores"][-1].__setitem__(0, 99.0), "anomalies_equal"),
        (lambda it: it["statuses"][-1].__setitem__(0, 2), "statuses_equal"),
    ],
)
def test_a_difference_is_found_out(arm64: Any, golden: Path, change: Any, found: str) -> None:
    """A score, an anomaly or a status that is another over there stands in figures and table."""
    here = arm64.edge_golden.scored(golden)
    other = copy.deepcopy(here)
    change(other["results"]["calm"])

    part = arm64.compared(here, other)

    alike = arm64.compared(here, here)
    assert part.figures["calm"][found] != alike.figures["calm"][found]
    assert part.figures["loud"] == alike.figures["loud"]
    assert part.table != alike.table


def test_the_program_for_a_device_explains_itself() -> None:
    """Without a folder it says how it is used."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "edge_golden.py")], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "python edge_golden.py FOLDER > scores.json" in done.stderr


@pytest.mark.slow
def test_a_quick_run_measures_a_real_edge(tmp_path: Path) -> None:
    """Memory and start are those of a process that scored; the table of a part that did not run is kept."""
    record, document = tmp_path / "record.json", tmp_path / "benchmarks.md"
    document.write_text("<!-- edge:begin -->\n<!-- part arm64 -->\nkept\n<!-- edge:end -->\n")
    command = [sys.executable, str(SCRIPTS / "edge.py"), "--quick", "--only", "footprint", "--no-images"]

    done = subprocess.run(
        [*command, "--json", str(record), "--docs", str(document)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )

    written = json.loads(record.read_text()) if record.exists() else pytest.fail(done.stderr)
    if "skipped" in written:
        pytest.skip(written["skipped"])
    found = written["figures"]["footprint"]
    assert 40e6 < found["imports_bytes"] < found["peak_bytes"] < 300e6
    assert found["first_score_cpu_seconds"] > 0
    assert 0 < found["first_score_seconds"] <= found["first_score_wall_seconds"]
    assert "peak_bytes_vs_aim" in written["ratios"]
    assert "| --- |" in document.read_text()
    assert "kept" in document.read_text()


def test_the_document_has_a_place_for_it_and_help_teaches() -> None:
    """The markers stand once; --help names every part."""
    text = DOCUMENT.read_text()
    assert text.count("<!-- edge:begin -->") == text.count("<!-- edge:end -->") == 1

    shown = subprocess.run(
        [sys.executable, str(SCRIPTS / "edge.py"), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"--quick", "--json", "--docs", "footprint", "arm64", "runtimes", "faults"} <= set(shown.split())
    assert "python benchmarks/edge.py" in shown
