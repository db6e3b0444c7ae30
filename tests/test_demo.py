"""`prunewatch demo`: the main job, as a newcomer runs it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from server.demo.report import alarms
from server.demo.stream import Watched


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_finds_the_documented_anomalies_and_swaps_under_the_stream() -> None:
    """`prunewatch demo --once` exits 0: no point lost, documented anomalies found, at least one child took over."""
    command = [sys.executable, "-c", "from server.cli import main; main()", "demo", "--once"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "errors: 0" in done.stdout
    assert done.stdout.count("found at row") >= 7, done.stdout  # four anomalies, two detectors
    swaps = re.search(r"swaps under the running stream: (\d)", done.stdout)
    assert swaps is not None, done.stdout
    assert int(swaps.group(1)) >= 1, done.stdout


def test_alarms_that_are_close_are_one() -> None:
    """Rows at or above the threshold make one alarm while fewer than six rows lie between them; NaN is no alarm."""
    scores = np.full(30, 1.0)
    scores[[3, 5, 20]] = 3.0
    scores[6] = np.nan
    watched = Watched("d", "lstm", {}, 2.0, threshold=3.0, scores=scores.tolist(), versions=[1] * 30)

    assert alarms(watched) == [(3, 5), (20, 20)]
