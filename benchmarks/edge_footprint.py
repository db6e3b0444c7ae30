"""What the edge takes of a device: memory, time until it scores, and the size of its image where there is one.

The images are those that are there (`docker build --target edge -t prunewatch:edge .`, and `hub`); nothing is built.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import edge_device as device
import harness
import numpy as np
from edge_images import image_facts
from scoring_client import on_core, two_cores
from scoring_report import Part, at_most, table

SERIES = 100
POINTS, QUICK_POINTS = 300, 80  # of each series
RSS_AIM, START_AIM, EDGE_IMAGE_AIM, HUB_IMAGE_AIM = 130e6, 2.0, 200e6, 1.5e9


def run(folder: Path, *, quick: bool, images: bool = True) -> Part:
    """An edge with one LSTM on one core, this process on another.

    Raises:
        harness.Skip: there are no two cores, or processes can not be pinned here.
    """
    client_core, core = two_cores()[:2]
    bundle = device.packed_bundle(folder)
    values = harness.drawn(QUICK_POINTS if quick else POINTS, SERIES, device.FEATURES, seed=5)
    with on_core(client_core):
        starts = [_started(bundle, core, values, folder / "edge.log") for _ in range(1 if quick else 11)]
        figures: dict[str, Any] = {
            "imports_bytes": _imports(),
            "bundle_bytes": bundle.stat().st_size,
            **{key: float(np.median([start[key] for start in starts])) for key in starts[0]},
            "starts": len(starts),
            "points_of_a_series": len(values),
        }
    figures |= image_facts(bundle, values) if images else {"images_absent": "left out by --no-images"}
    return Part(_title(len(values)), figures, _ratios(figures), table(["", "measured", "aim"], _rows(figures)))


def _started(bundle: Path, core: int, values: np.ndarray, log: Path) -> dict[str, float]:
    """One start, then all points of all series."""
    names = [f"series-{i}" for i in range(values.shape[1])]
    with device.edge(bundle, core, log) as (process, port):
        began = time.monotonic()
        first = device.seconds_to_first_score(port, began, values[:, 0], log)
        found = {
            "first_score_wall_seconds": first,
            "first_score_seconds": first - device.waiting_seconds(process.pid),
            "first_score_cpu_seconds": device.processor_seconds(process.pid),
        }
        for points in values:
            device.score(port, points, names)
        held = device.memory(process.pid)
    return found | {"serving_bytes": float(held["now"]), "peak_bytes": float(held["peak"])}


def _imports() -> int:
    """Peak resident bytes of a process that imports what an edge needs, and ends."""
    program = "import server.edge; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run([sys.executable, "-c", program], cwd=harness.ROOT, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def _title(points: int) -> str:
    network = f"LSTM {device.LAYERS}x{device.WIDTH}"
    return f"Footprint: one {network} of {device.FEATURES} features, {SERIES} series, {points} points each"


def _ratios(figures: dict[str, Any]) -> dict[str, float]:
    aims = {
        "peak_bytes": RSS_AIM,
        "first_score_seconds": START_AIM,
        "edge_image_above_base_bytes": EDGE_IMAGE_AIM,
        "hub_image_above_base_bytes": HUB_IMAGE_AIM,
    }
    return {f"{key}_vs_aim": figures[key] / aim for key, aim in aims.items() if key in figures}


def _rows(figures: dict[str, Any]) -> list[list[str]]:
    def size(key: str) -> str:
        return f"{figures[key] / 1e6:.1f} MB"

    def row(words: str, key: str, aim: float) -> list[str]:
        if key not in figures:
            return [words, f"not there: {figures['images_absent']}", ""]
        return [words, size(key), at_most(round(figures[key] / 1e6), aim / 1e6, " MB")]

    contained = "first_score_in_container_seconds"
    rows = [
        ["importing it, resident", size("imports_bytes"), ""],
        ["serving, resident", size("serving_bytes"), ""],
        row("serving, resident at most", "peak_bytes", RSS_AIM),
        [
            "start to first score, one core",
            f"{figures['first_score_seconds']:.2f} s",
            at_most(round(figures["first_score_seconds"], 2), START_AIM, " s"),
        ],
        ["with what others had of the core", f"{figures['first_score_wall_seconds']:.2f} s", ""],
        ["of it processor time", f"{figures['first_score_cpu_seconds']:.2f} s", ""],
        ["bundle, as exported", f"{figures['bundle_bytes'] / 1e3:.0f} kB", ""],
        row("edge image, above its base", "edge_image_above_base_bytes", EDGE_IMAGE_AIM),
        row("hub image, above its base", "hub_image_above_base_bytes", HUB_IMAGE_AIM),
    ]
    if contained in figures:
        rows += [
            [
                "edge in a container (256 MB, one core, read-only): start to first score",
                f"{figures[contained]:.2f} s",
                at_most(round(figures[contained], 2), START_AIM, " s"),
            ],
            row("the same, resident at most", "peak_in_container_bytes", RSS_AIM),
        ]
    return rows
