"""The child of `detectors.trial`: loads and steps graphs under limits of memory and time, and says how far it got."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from detectors.runtime import Runtime

BATCHES = (1, 3)
"""Of the steps that are tried: tensors that grow with the batch, and those that do not fit one."""


def main() -> None:
    """Reads `{"graphs": [paths], "memory_bytes": n, "cpu_seconds": n}`; writes a line for each graph that is fine."""
    job = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (job["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"],) * 2)
    for path in job["graphs"]:
        try:
            runtime = Runtime(Path(path).read_bytes())
            shape = (runtime.n_features,) if runtime.stride == 1 else (runtime.stride, runtime.n_features)
            for batch in BATCHES:
                runtime.step(np.zeros((batch, *shape), np.float32), runtime.fresh(batch))
        except Exception:  # noqa: BLE001  (ONNX Runtime's share no base class; the parent says which graph it was)
            sys.exit(1)
        sys.stdout.write("fine\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
