"""Where the demo's points come from: a recorded water flow, or this machine's own telemetry."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.errors import MissingExtraError

FIT_FIRST, FIT_LAST = 331, 800  # rows of the water flow without a documented anomaly
BURST_SECONDS = 4.0
Rows = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Event:
    """An anomaly that is known to be there: rows `first` to `last`, both included."""

    first: int
    last: int
    what: str


@dataclass(frozen=True)
class Point:
    """One row of the stream."""

    row: int
    stamp: int
    values: Rows


class Source(Protocol):
    """A stream for the demo.

    Attributes:
        prefix: Of the detectors' names.
        title: What it is.
        features: Column names.
        window: Points that the autoencoder looks at.
        prune_at: Row at which the cycles are asked for.
        hold_at: Row that the stream approaches only slowly while the cycles run.
        end: Rows; None: it goes on until enough points have followed the swap.
        events: Known anomalies; complete when the stream has ended.
    """

    prefix: str
    title: str
    features: tuple[str, ...]
    window: int
    prune_at: int
    hold_at: int
    end: int | None
    events: list[Event]

    def disturb(self) -> None:
        """Makes an anomaly, where the source has none of its own."""
        ...

    async def history(self, say: Say) -> tuple[NDArray[np.int64], Rows]:
        """Stamps and values of normal points to fit on."""
        ...

    def points(self) -> AsyncIterator[Point]:
        """The stream, as fast as it comes."""
        ...

    def when(self, row: int) -> str:
        """The time of a row, for people."""
        ...


class WaterFlow:
    """Hourly flow through a branch of a water network in Italy, 1,268 values, as river ships it (BSD licence)."""

    prefix = "water"
    window = 24  # a day
    title = "water flow, hourly, March to May 2022 (river.datasets.WaterFlow)"
    features: tuple[str, ...] = ("flow",)
    prune_at = 500
    hold_at = 860

    def __init__(self) -> None:
        require("river")
        from river.datasets import WaterFlow as Recorded  # noqa: PLC0415  (extra `demo`)

        rows = [(it["Time"], flow) for it, flow in Recorded()]  # type: ignore[no-untyped-call]
        self._times: list[datetime] = [time for time, _ in rows]
        self._values = np.array([[flow] for _, flow in rows], np.float32)
        self.end: int | None = len(rows)
        self.events = [
            Event(94, 110, "low flow"),
            Event(211, 223, "low flow"),
            Event(329, 329, "peak"),
            Event(872, 887, "low flow"),
        ]

    async def history(self, say: Say) -> tuple[NDArray[np.int64], Rows]:
        """Rows 331 to 800: no documented anomaly lies in them."""
        say(f"fitting on rows {FIT_FIRST} to {FIT_LAST} of the {self.title}")
        rows = range(FIT_FIRST, FIT_LAST + 1)
        return np.array([self._stamp(row) for row in rows], np.int64), self._values[rows]

    async def points(self) -> AsyncIterator[Point]:
        """All rows from the first."""
        for row, values in enumerate(self._values):
            yield Point(row, self._stamp(row), values)

    def disturb(self) -> None:
        """The recording has four anomalies; none is added."""

    def when(self, row: int) -> str:
        """Its local time."""
        return f"{self._times[row]:%d %b %H:%M}"

    def _stamp(self, row: int) -> int:
        return int(self._times[row].timestamp()) * 10**9


class Telemetry:
    """This machine's processor, memory, network and disk, ten times a second, with a processor burst the demo makes."""

    prefix = "machine"
    window = 30
    title = "telemetry of this machine, 10 points a second (psutil)"
    features: tuple[str, ...] = ("cpu_percent", "memory_percent", "context_switches", "network_bytes", "disk_bytes")
    prune_at = 60
    hold_at = 1 << 40
    end: int | None = None
    interval = 0.1
    history_rows = 400

    def __init__(self) -> None:
        require("psutil")
        self.events: list[Event] = []
        self._before = self._counters()
        self._rows = 0
        self._burst: subprocess.Popen[bytes] | None = None

    async def history(self, say: Say) -> tuple[NDArray[np.int64], Rows]:
        """Forty seconds of it."""
        say(f"watching this machine for {self.history_rows * self.interval:.0f} s to learn what is normal")
        points = [await self._next() for _ in range(self.history_rows)]
        self._rows = 0
        return np.array([point.stamp for point in points], np.int64), np.stack([point.values for point in points])

    async def points(self) -> AsyncIterator[Point]:
        """As they come, without end."""
        while True:
            point = await self._next()
            if self._burst is not None and self._burst.poll() is not None:
                first = self.events[-1].first
                self.events[-1] = Event(first, max(first, point.row - 1), self.events[-1].what)
                self._burst = None
            yield point

    def disturb(self) -> None:
        """Keeps a processor busy for a few seconds: something to find."""
        code = f"import time\nend = time.time() + {BURST_SECONDS}\nwhile time.time() < end: pass"
        self._burst = subprocess.Popen([sys.executable, "-c", code])
        self.events.append(Event(self._rows, self._rows + int(BURST_SECONDS / self.interval), "processor burst"))

    def when(self, row: int) -> str:
        """Seconds since the stream began, about."""
        return f"{row * self.interval:.1f} s"

    async def _next(self) -> Point:
        await asyncio.sleep(self.interval)
        now = self._counters()
        changed = now - self._before
        self._before = now
        cpu, memory = self._gauges()
        values = np.array([cpu, memory, *changed], np.float32)
        point = Point(self._rows, time.time_ns(), values)
        self._rows += 1
        return point

    @staticmethod
    def _gauges() -> tuple[float, float]:
        import psutil  # noqa: PLC0415  (extra `demo`)

        return psutil.cpu_percent(), psutil.virtual_memory().percent

    @staticmethod
    def _counters() -> NDArray[np.float64]:
        import psutil  # noqa: PLC0415  (extra `demo`)

        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        disk_bytes = disk.read_bytes + disk.write_bytes if disk else 0
        return np.array([psutil.cpu_stats().ctx_switches, network.bytes_sent + network.bytes_recv, disk_bytes], float)


def require(package: str) -> None:
    """Refuses to begin without a package of the extra `demo`.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(package) is None:
        raise MissingExtraError(
            f"the demo needs {package}.", field="demo", hint="Install it: pip install 'prunewatch[hub,demo]'."
        )
