"""Durations and sizes as people write them (`200us`, `7d`, `64KiB`); seconds and bytes inside."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*)\s*")


def parse_duration(text: str | float) -> float:
    """Seconds of a duration; a bare number is seconds already.

    Raises:
        ValueError: not a positive number with one of the units of `SECONDS`.

    >>> parse_duration("200us"), parse_duration("7d"), parse_duration(1.5)
    (0.0002, 604800.0, 1.5)
    """
    number, unit = _split(text, "a duration like 200us, 2ms, 30s or 7d")
    if unit and unit not in SECONDS:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; write one of {', '.join(SECONDS)}")
    # Dividing by the inverse keeps 200us at 0.0002 exactly, where 200 * 1e-6 is 0.00019999999999999998.
    scale = SECONDS[unit] if unit else 1.0
    return _positive(number / round(1 / scale) if scale < 1 else number * scale, text)


def parse_size(text: str | int) -> int:
    """Bytes of a size; a bare number is bytes already.

    Raises:
        ValueError: not a positive number with one of the units of `BYTES`.

    >>> parse_size("64KiB"), parse_size("1MB"), parse_size(512)
    (65536, 1000000, 512)
    """
    number, unit = _split(text, "a size like 64KiB or 2MB")
    if unit and unit not in BYTES:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; write one of {', '.join(BYTES)}")
    return int(_positive(number * BYTES[unit or "B"], text))


def format_duration(seconds: float) -> str:
    """A duration with three significant digits and the unit that suits it.

    >>> format_duration(0.00019), format_duration(2.5), format_duration(86400)
    ('190us', '2.5s', '1d')
    """
    for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
        if seconds >= SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.3g}{unit}"
    return f"{seconds * 1e9:.3g}ns"


def format_size(size: float) -> str:
    """A size with three significant digits and the binary unit that suits it.

    >>> format_size(65536), format_size(1500), format_size(12)
    ('64KiB', '1.46KiB', '12B')
    """
    for unit in ("GiB", "MiB", "KiB"):
        if size >= BYTES[unit]:
            return f"{size / BYTES[unit]:.3g}{unit}" if size < 1000 * BYTES[unit] else f"{size / BYTES[unit]:.0f}{unit}"
    return f"{size:.0f}B"


def _split(text: str | float, wanted: str) -> tuple[float, str]:
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text), ""
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not {wanted}")
    return float(match[1]), match[2]


def _positive(number: float, text: str | float) -> float:
    if not 0 < number < float("inf"):
        raise ValueError(f"{text!r} must be more than zero and finite")
    return number


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""Seconds, written as a duration."""
Bytes = Annotated[int, BeforeValidator(parse_size), Field(gt=0, le=2**60)]
"""Bytes, written as a size."""
