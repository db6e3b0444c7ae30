"""Readings of sensors as JSON, as the bridges of this folder take them.

    {"time": "2024-05-03T10:00:00Z", "values": {"flow": 10.2, "pressure": 4.1}}

time    ISO 8601 (without a zone: UTC), or an integer: nanoseconds since the epoch, or a row number (`time: index`)
values  by name of the feature, or a list in the detector's order; null where one is missing
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

LONGEST_NAME = 256  # characters; the service takes no longer name of a series
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reading(NamedTuple):
    """A point of one series."""

    series: str
    stamp: int
    values: list[float]


def reading(series: str, payload: bytes | None, features: Sequence[str]) -> Reading:
    """What a payload says; ValueError: it says nothing that can be scored."""
    said = json.loads(payload or b"")  # what is no JSON, or no UTF-8, is a ValueError
    if not isinstance(said, dict) or not {"time", "values"} <= said.keys():
        raise ValueError('it is no object with "time" and "values"')
    if not 1 <= len(series) <= LONGEST_NAME:
        raise ValueError(f"the name of the series has {len(series)} characters, not 1 to {LONGEST_NAME}")
    values = said["values"]
    if isinstance(values, dict):
        if values.keys() != set(features):
            raise ValueError(f"values are {', '.join(sorted(values))}; the detector takes {', '.join(features)}")
        values = [values[name] for name in features]
    if not isinstance(values, list) or len(values) != len(features):
        raise ValueError(f"there are not {len(features)} values")
    return Reading(series, _stamp(said["time"]), [math.nan if it is None else _number(it) for it in values])


def _stamp(time: object) -> int:
    if isinstance(time, str):
        moment = datetime.fromisoformat(time)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
        return since // timedelta(microseconds=1) * 1000
    if not isinstance(time, int) or isinstance(time, bool) or not -(2**63) < time < 2**63:
        raise ValueError("time is neither ISO 8601 nor an integer of 64 bits")
    return time


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("a value is not a number")
    return float(value)
