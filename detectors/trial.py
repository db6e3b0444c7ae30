"""Graphs that come from elsewhere are loaded and stepped in a child process first.

`detectors.graph_check` bounds what is in a file; how large a tensor gets while it runs, and what a fault in ONNX
Runtime does, only a process that may die can tell. Bundles that a hub made need no such trial: its trainer is such a
process. Nor do releases that a device takes over its link: they are signed, their slot is on trial, and starts are
counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from detectors.bundle import GRAPH
from detectors.errors import CorruptBundleError

MEMORY_BYTES = 192 << 20
"""What a child may take, of which 60 MB are Python, numpy and ONNX Runtime, besides `COPIES` of the largest graph."""
COPIES = 4
CPU_SECONDS = 20
"""For the imports, and for each thousand graphs."""
WALL_SECONDS = 6


def try_bundles(folders: Sequence[Path]) -> None:
    """Loads and steps the graph of each bundle in a child process with limits.

    Args:
        folders: Of bundles that were read, so that their files are what their manifests say.

    Raises:
        CorruptBundleError: a step of one fails, takes too much memory or time, or ends the process; names its file.
    """
    graphs = [folder / GRAPH for folder in folders]
    if not graphs:
        return
    cpu_seconds = CPU_SECONDS * (1 + len(graphs) // 1000)
    job = {
        "graphs": [str(it) for it in graphs],
        "memory_bytes": MEMORY_BYTES + COPIES * max(it.stat().st_size for it in graphs),
        "cpu_seconds": cpu_seconds,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "detectors.trial_process"],
            input=json.dumps(job).encode() + b"\n",
            capture_output=True,
            check=False,
            timeout=WALL_SECONDS * cpu_seconds,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
        )
        fine, ended = done.stdout.count(b"\n"), done.returncode
    except subprocess.TimeoutExpired as error:
        fine, ended = (error.stdout or b"").count(b"\n"), 1
    if ended:
        raise CorruptBundleError(
            "its graph can not be stepped within the memory and time that a bundle may take.",
            field=str(graphs[min(fine, len(graphs) - 1)]),
            hint="Fit it with prunewatch, or export it again.",
        )
