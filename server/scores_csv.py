"""Scores as a CSV file: one row for each row that was read, the same bytes whoever scored."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.stamps import Status

HEADER = ("timestamp", "score", "threshold", "is_anomaly", "version")


@dataclass(frozen=True)
class Scores:
    """What became of N points.

    Attributes:
        status: [N] of `Status`.
        score: [N]; NaN unless the status is `OK`.
        threshold: A score at or above it is an anomaly.
        version: [N]; who scored.
        features: [F] names in the order of the detector.
        contributions: By row of an anomaly, [F] shares of the error; only when asked for.
    """

    status: NDArray[np.uint8]
    score: NDArray[np.float32]
    threshold: np.float32
    version: NDArray[np.int64]
    features: Sequence[str] = ()
    contributions: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def is_anomaly(self) -> NDArray[np.bool_]:
        """[N]; False where there is no score."""
        anomaly: NDArray[np.bool_] = (self.status == Status.OK) & (self.score >= self.threshold)
        return anomaly

    def summary(self) -> str:
        """Counts for people."""
        scored = int((self.status == Status.OK).sum())
        others = [
            f"{count} {status.name.lower().replace('_', ' ')}"
            for status in Status
            if status is not Status.OK and (count := int((self.status == status).sum()))
        ]
        return ", ".join([f"{scored} of {len(self.status)} rows scored", f"{self.is_anomaly.sum()} anomalies", *others])


def write_scores(out: Path, stamps: Sequence[str], scores: Scores) -> None:
    """Writes `timestamp,score,threshold,is_anomaly,version`; the score is empty where there is none.

    Floats are written with the fewest digits that read back as the same float32.
    """
    if out.is_dir():
        raise InvalidInputError("is a folder.", field=str(out), hint="Name a file.")
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        columns = (stamps, scores.status, scores.score, scores.is_anomaly, scores.version)
        for stamp, status, score, is_anomaly, version in zip(*columns, strict=True):
            text = str(score) if status == Status.OK else ""
            writer.writerow((stamp, text, str(scores.threshold), int(is_anomaly), version))
    partial.replace(out)
