"""A network that runs over the last 50 points again for each point: what every serving peer of `scoring.py` does.

Runs in the environments of the peers too, so it needs numpy and ONNX Runtime alone and nothing of this repository.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort


class Windows:
    """The last points of all series, kept where the model is, so that a message only brings the new ones.

    Args:
        judge: Errors [B] of the newest points, from windows [W, B, F].
        shape: W, B, F; windows begin as zeros.
    """

    def __init__(self, judge: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int]) -> None:
        self._judge = judge
        self._windows = np.zeros(shape, np.float32)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Takes points [n, B, F], n of each series, oldest first; returns the errors [B] of the newest ones."""
        held = self._windows
        new = points[-len(held) :]
        held[: len(held) - len(new)] = held[len(new) :]
        held[len(held) - len(new) :] = new
        return self._judge(held)


def onnx_judge(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Judges with a graph [W, B, F] -> [B] in ONNX Runtime on one thread, subnormals flushed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda windows: session.run(None, {"window": windows})[0]
