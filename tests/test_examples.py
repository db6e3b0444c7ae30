"""The examples as they are read: short, with help, and what counts as a reading."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bridged import NO_READINGS

FOLDER = Path(__file__).parent.parent / "examples"
FEATURES = ["flow", "pressure"]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`examples/readings.py`, which is found as its neighbours find it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from readings import reading

    return reading


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda it: it.name)
def test_examples_are_short(file: Path) -> None:
    """Fewer than 80 lines each."""
    assert len(file.read_text().splitlines()) < 80


@pytest.mark.parametrize("name", ["mqtt_bridge", "kafka_scores"])
def test_examples_teach(name: str) -> None:
    """`--help` shows an example that can be typed, and where what is read and written is described."""
    printed = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert f"python examples/{name}.py pump" in printed
    assert "readings.py" in printed
    assert "(default: 127.0.0.1:8001)" in printed


@pytest.mark.parametrize(
    ("payload", "stamp", "values"),
    [
        (b'{"time": 17, "values": [1, 2.5]}', 17, [1, 2.5]),
        (b'{"time": -1, "values": {"pressure": 2, "flow": 1}, "unit": "bar"}', -1, [1, 2]),
        (b'{"time": "1970-01-01T00:00:01", "values": [1, 2]}', 10**9, [1, 2]),
        (b'{"time": "2024-05-03T12:00:00.000001+02:00", "values": [1, 2]}', 1_714_730_400_000_001_000, [1, 2]),
        (b'{"time": "2024-05-03T10:00:00Z", "values": [1e300, -0.0]}', 1_714_730_400_000_000_000, [1e300, 0]),
    ],
)
def test_what_is_a_reading(reading: Any, payload: bytes, stamp: int, values: list[float]) -> None:
    """Times are exact to the microsecond; values stand in the detector's order."""
    assert reading("north", payload, FEATURES) == ("north", stamp, values)


def test_missing_values_are_null(reading: Any) -> None:
    """What is null is NaN: the detector knows what to do with it."""
    assert math.isnan(reading("north", b'{"time": 1, "values": [null, 2]}', FEATURES).values[0])


@pytest.mark.parametrize("payload", [*NO_READINGS, None])
def test_what_is_no_reading(reading: Any, payload: bytes | None) -> None:
    """Everything else is a ValueError, which the bridges know to skip."""
    with pytest.raises(ValueError):  # noqa: PT011  (json raises its own kinds)
        reading("north", payload, ["f1", "f2"])


@pytest.mark.parametrize("series", ["", "x" * 257])
def test_names_that_the_service_would_refuse(reading: Any, series: str) -> None:
    """One message with such a name would keep a bridge from all others."""
    with pytest.raises(ValueError, match="characters"):
        reading(series, b'{"time": 1, "values": [1, 2]}', FEATURES)
