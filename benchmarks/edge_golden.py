"""Scores golden inputs with the prunewatch that is installed, and prints scores and machine as JSON.

It runs on the machine to be compared, a device for example, which needs the base install only:

  python edge_golden.py FOLDER > scores.json

FOLDER is what `python benchmarks/edge_arm64.py write FOLDER` made elsewhere.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from detectors.embedded import Detector

PACKAGES = ("numpy", "onnxruntime")


def scored(folder: Path) -> dict[str, Any]:
    """Scores and statuses of every bundle in a folder, point by point over all series, and where that was.

    Args:
        folder: With NAME.tar and NAME.npy, [T, S, F], for each bundle.
    """
    results = {}
    for bundle in sorted(folder.glob("*.tar")):
        values = np.load(bundle.with_suffix(".npy"), allow_pickle=False)
        names = [f"series-{i}" for i in range(values.shape[1])]
        detector = Detector.load(bundle)
        began = time.perf_counter()
        steps = [detector.score(points, names) for points in values]
        results[bundle.stem] = {
            "seconds": time.perf_counter() - began,
            "scores": [step.score.tolist() for step in steps],
            "statuses": [step.status.tolist() for step in steps],
        }
    found = {name: version(name) for name in PACKAGES}
    return {"architecture": platform.machine(), "versions": found, "results": results}


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    json.dump(scored(Path(sys.argv[1])), sys.stdout)
