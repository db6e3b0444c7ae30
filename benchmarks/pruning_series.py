"""The labelled series that pruning is measured on: four of several features and four of one, of both halves."""

from __future__ import annotations

from dataclasses import replace

import harness
import numpy as np
from detection_series import REPORTED_HALF, TUNED_HALF, Series, labelled_series

SEVERAL_FEATURES = ("skab/valve1/0", "msl/F-7", "asd/omi-9", "smd/machine-2-1")
ONE_FEATURE = (
    "cloud/mongodb-machine-rps/machine-01",
    "nab/realKnownCause/nyc_taxi",
    "nab/realKnownCause/machine_temperature_system_failure",
    "ucr/152_UCR_Anomaly_PowerDemand1_9000_18485_18821",
)
NAMES = (
    "skab/valve1/0",
    "nab/realKnownCause/nyc_taxi",
    "cloud/mongodb-machine-rps/machine-01",
    "asd/omi-9",
    "nab/realKnownCause/machine_temperature_system_failure",
    "ucr/152_UCR_Anomaly_PowerDemand1_9000_18485_18821",
    "msl/F-7",
    "smd/machine-2-1",
)
"""All of them, those that cost least first."""
PAIR = ("cloud/mongodb-machine-rps/machine-01", "asd/omi-9")
"""Of every network: one feature and several, a tuned set and a reported one."""
TRAIN_ROWS = 12_000
"""At most so many are trained on, the last ones ..."""
TEST_ROWS = 12_000
"""... and so many are scored, the first ones, so that a cell takes seconds."""


def tuned(name: str) -> bool:
    """Whether a series is of a set on which thresholds may be chosen."""
    half = {**dict.fromkeys(TUNED_HALF, True), **dict.fromkeys(REPORTED_HALF, False)}
    return half[name.split("/", maxsplit=1)[0]]


def read(names: tuple[str, ...]) -> dict[str, Series]:
    """The series of these names, cut to `TRAIN_ROWS` and `TEST_ROWS`.

    Raises:
        harness.Skip: they are not here.
    """
    found = {}
    for reader in labelled_series():
        series = reader()
        if series.name in names:
            found[series.name] = capped(series)
    if missing := [name for name in names if name not in found]:
        raise harness.Skip(f"{harness.DATA_VARIABLE} has no series {', '.join(missing)}")
    return found


def capped(series: Series) -> Series:
    """The last rows of the training part and the first of the test part.

    Raises:
        ValueError: no anomaly is left in the test part.
    """
    labels = series.labels[:TEST_ROWS]
    if not labels.any():
        raise ValueError(f"no anomaly of {series.name} is in its first {TEST_ROWS} rows")
    return replace(
        series,
        train=series.train[-TRAIN_ROWS:].astype(np.float32),
        test=series.test[:TEST_ROWS].astype(np.float32),
        labels=labels,
    )
