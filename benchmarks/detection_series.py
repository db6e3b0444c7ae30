"""The labelled series of the detection benchmark, and what any method makes of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from numpy.typing import NDArray

TUNED_HALF = ("skab", "cloud", "msl", "ucr")
"""Sets that may have been looked at while the defaults of prunewatch were chosen."""
REPORTED_HALF = ("nab", "smd", "asd", "smap")
"""Sets on which no default was chosen: what the first half gained has to show here again."""
SETS = (*TUNED_HALF, *REPORTED_HALF)

DRIFTING = frozenset(
    {
        "nab/realAWSCloudwatch/grok_asg_anomaly",
        "nab/realAWSCloudwatch/rds_cpu_utilization_cc0c53",
        "cloud/middle-tier-api-dependency-latency/outbound-02",
        "cloud/data-ingress-rate/ingress-02",
        "skab/other/5",
        "skab/other/10",
        "skab/other/14",
    }
)
"""Series whose normal rows move several training standard deviations away: no threshold of the training part fits."""


@dataclass(frozen=True)
class Series:
    """One labelled series.

    Attributes:
        name: `<set>/<name>` of the index.
        features: Names of the F columns.
        train: [N, F], rows before the split; their labels are not here, so that nobody fits on them.
        test: [T, F].
        labels: [T], true where a row of the test part is anomalous.
        period_seconds: Nominal time between two rows; None when it is not known.
    """

    name: str
    features: tuple[str, ...]
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    labels: NDArray[np.bool_]
    period_seconds: float | None

    @property
    def dataset(self) -> str:
        """The set it belongs to."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Detection:
    """What a method made of a series.

    Attributes:
        scores: [T], higher is stranger; NaN where there is no score.
        flagged: [T], true where the method's own threshold raises an alarm.
        fit_seconds: Processor time of fitting.
        score_seconds: Processor time of scoring the test part.
    """

    scores: NDArray[np.floating]
    flagged: NDArray[np.bool_]
    fit_seconds: float
    score_seconds: float


Method = Callable[[Series, int], Detection]
"""Fits to the training part of a series with a seed, and scores its test part."""


class Stopwatch:
    """Processor time of this process, so that what else runs on the machine does not count."""

    def __init__(self) -> None:
        self._began = time.process_time()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.process_time()
        seconds, self._began = now - self._began, now
        return seconds


def labelled_series() -> list[Callable[[], Series]]:
    """Every series with an anomaly in its test part, in the order of the index; read when called.

    Raises:
        harness.Skip: there are no data.
    """
    import pandas as pd

    folder = os.environ.get(harness.DATA_VARIABLE)
    if not folder or not (Path(folder) / "index.csv").is_file():
        raise harness.Skip(f"{harness.DATA_VARIABLE} names no folder of labelled series with an index.csv")
    index = pd.read_csv(Path(folder) / "index.csv")
    index = index[(index.anomaly_rows > index.train_anomaly_rows) & (index.train_rows < index.n_rows)]

    def reader(row) -> Callable[[], Series]:
        def read() -> Series:
            frame = pd.read_csv(Path(folder) / row.path)
            values = frame.iloc[:, 1:-1]
            rows = values.to_numpy(np.float64)
            return Series(
                f"{row.dataset}/{row.name_}",
                tuple(values.columns),
                rows[: row.train_rows],
                rows[row.train_rows :],
                frame["label"].to_numpy()[row.train_rows :] == 1,
                None if pd.isna(row.period_seconds) else float(row.period_seconds),
            )

        return read

    return [reader(row) for row in index.rename(columns={"name": "name_"}).itertuples()]
