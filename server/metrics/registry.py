"""What all groups of families share: their cells in one registry, and when they are read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.metrics.cells import Number, Tally
from server.metrics.family import Buckets, Cell, Cells, Family, Reading, Readings
from server.metrics.labels import DETECTOR

# Client defaults begin at 5 ms; a step takes tens of microseconds.
BUCKETS = (
    *(25e-6, 50e-6, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
LONG_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
SCORE_BUCKETS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
"""Of normal points one in ten lies above 1, one in a hundred above 2."""
ALIKE = 0.05
"""A bound of `BUCKETS` that is nearer than this to one of a budget is left out: it tells nothing more."""
logger = logging.getLogger("prunewatch.metrics.registry")
Reader = Callable[[], None]


class Registered(Collector):
    """Families, declared as attributes of subclasses, with their cells.

    Args:
        registry: Fresh for each process or test.
        budget: Seconds that a step may take here: histograms of times have bounds there, so that what is above a budget
            is counted and not guessed.
    """

    def __init__(self, registry: CollectorRegistry, budget: Iterable[float] = ()) -> None:
        self.registry = registry
        self._bounds: dict[Buckets, tuple[float, ...]] = {
            "time": around(sorted(set(budget))),
            "long": LONG_BUCKETS,
            "score": SCORE_BUCKETS,
        }
        self._all: dict[Family[Any], Cells[Any]] = {}
        self._readers: list[Reader] = []
        self._reading = threading.Lock()
        for family in families(type(self)):
            bounds = self._bounds[family.buckets]
            if isinstance(family, Reading):
                self._all[family] = Readings(family, Number, ())
            elif family.kind == "histogram":
                self._all[family] = Cells[Tally](family, partial(Tally, bounds), bounds)
            else:
                self._all[family] = Cells[Number](family, Number, ())
        registry.register(self)

    def cells(self, family: Family[Cell]) -> Cells[Cell]:
        """The time series of a family."""
        return self._all[family]

    def readings(self, family: Reading) -> Readings:
        """The same of one that is read when somebody scrapes."""
        return self._all[family]  # type: ignore[return-value]

    def read_with(self, reader: Reader) -> Reader:
        """Has `reader` called at the beginning of each scrape, in the thread that scrapes; returns it."""
        self._readers.append(reader)
        return reader

    def stop_reading(self) -> None:
        """Calls no reader any more; waits for one that runs."""
        with self._reading:
            self._readers.clear()

    def describe(self) -> Iterator[Metric]:
        """The families, without time series."""
        return (Metric(it.name, it.help, it.kind) for it in self._all)

    def collect(self) -> Iterator[Metric]:
        """The families as they are now. A reader that fails leaves its own as they were."""
        with self._reading:
            for reader in self._readers:
                try:
                    reader()
                except Exception:
                    logger.exception("some metrics could not be read; it will be tried again")
                    self.unread()
            return iter([cells.collect() for cells in self._all.values()])

    def unread(self) -> None:
        """Told of each reader that failed."""

    def forget(self, name: str) -> None:
        """Removes every time series of a detector that was deleted."""
        for family, cells in self._all.items():
            if DETECTOR in family.labels:
                cells.remove(detector=name)


def families(kind: type[Registered]) -> list[Family[Any]]:
    """What a class declares, in the order of its bases and lines."""
    return [it for base in reversed(kind.__mro__) for it in vars(base).values() if isinstance(it, Family)]


def around(budget: Iterable[float]) -> tuple[float, ...]:
    """`BUCKETS` with bounds at what a step may take.

    >>> around([1.9e-3, 3e-3])[5:9]
    (0.001, 0.0019, 0.002, 0.003)
    >>> around([2.05e-3])[5:8]
    (0.001, 0.00205, 0.005)
    """
    own = tuple(budget)
    others = (it for it in BUCKETS if all(abs(it - bound) > ALIKE * bound for bound in own))
    return tuple(sorted({*own, *others}))
