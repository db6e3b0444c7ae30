"""The peers of the detection benchmark: detectors of PyOD, each as a user would take it, with its defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from detection_series import Detection, Series, Stopwatch
from numpy.typing import NDArray

WINDOW = 50
CONTAMINATION = 0.02  # the share of normal points that our threshold is asked to flag, too
LSTMAD_EPOCHS, LSTMAD_BATCH = 50, 32  # PyOD's defaults
LSTMAD_UPDATES = LSTMAD_EPOCHS * math.ceil(2000 / LSTMAD_BATCH)
"""Gradient steps of 50 epochs over 2,000 windows; longer series get fewer epochs, so that they end."""
WIDE, WIDE_COMPONENTS = 1000, 50
"""PCA over windows of more values than the first takes only as many components as the second, by randomized SVD."""


@dataclass(frozen=True)
class Peer:
    """A detector of PyOD, over flattened windows or over the rows themselves.

    Attributes:
        name: Of the detector; also chooses how it is made.
        revision: Counted up when the way it is used here changes.
        seeded: Whether anything about it is random.
    """

    name: str
    revision: int = 1
    seeded: bool = True

    @property
    def version(self) -> str:
        """Names what makes its cells: PyOD's version and the revision of its use."""
        return f"pyod {version('pyod')}, revision {self.revision}"

    def __call__(self, series: Series, seed: int) -> Detection:
        """Fits and scores; a window's score belongs to its last row, as in a stream."""
        windowed = self.name != "LSTMAD"
        rows = (series.train, np.concatenate([series.train[-(WINDOW - windowed) :], series.test]))
        train, test = (windows(it) for it in rows) if windowed else _standardised(*rows)
        detector = self._made(train, seed)
        watch = Stopwatch()
        detector.fit(train)
        fit_seconds = watch.lap()
        scores = detector.decision_function(test)[-len(series.test) :]
        return Detection(scores, scores > detector.threshold_, fit_seconds, watch.lap())

    def _made(self, train: NDArray[np.float64], seed: int) -> Any:
        match self.name:
            case "LSTMAD":
                import torch
                from pyod.models.ts_lstm import LSTMAD

                torch.manual_seed(seed)
                return LSTMAD(window_size=WINDOW, epochs=lstmad_epochs(len(train)), contamination=CONTAMINATION)
            case "AutoEncoder":
                from pyod.models.auto_encoder import AutoEncoder

                return AutoEncoder(contamination=CONTAMINATION, random_state=seed, device="cpu", verbose=0)
            case "IForest":
                from pyod.models.iforest import IForest

                return IForest(contamination=CONTAMINATION, random_state=seed)
            case _:
                from pyod.models.pca import PCA

                if train.shape[1] <= WIDE:
                    return PCA(contamination=CONTAMINATION)
                wide = {"n_components": WIDE_COMPONENTS, "svd_solver": "randomized", "random_state": 0}
                return PCA(contamination=CONTAMINATION, **wide)


PEERS: Mapping[str, Peer] = {
    peer.name: peer for peer in (Peer("LSTMAD"), Peer("AutoEncoder"), Peer("IForest"), Peer("PCA", seeded=False))
}


def lstmad_epochs(rows: int) -> int:
    """Epochs of LSTMAD over so many training rows: 50, fewer where that would be more than `LSTMAD_UPDATES` steps.

    >>> lstmad_epochs(750), lstmad_epochs(2050), lstmad_epochs(23_693)
    (50, 50, 4)
    """
    steps = math.ceil((rows - WINDOW) / LSTMAD_BATCH)
    return max(1, min(LSTMAD_EPOCHS, LSTMAD_UPDATES // steps))


def windows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, F] -> [N - 49, 50 F]: the window that ends at each row, flattened.

    >>> windows(np.zeros((60, 3))).shape
    (11, 150)
    """
    seen = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, axis=0)  # [N - 49, F, 50]
    return seen.reshape(len(seen), -1)


def _standardised(train: NDArray[np.float64], test: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Both by mean and standard deviation of the first: LSTMAD does not scale by itself."""
    spread = train.std(axis=0)
    return [(rows - train.mean(axis=0)) / np.where(spread > 0, spread, 1.0) for rows in (train, test)]
