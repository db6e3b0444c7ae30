"""How a family of metrics is declared: as an attribute of a class, so that a group of them reads as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isinf
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from server.metrics.cells import Number, Tally

if TYPE_CHECKING:
    from server.metrics.registry import Registered

Kind = Literal["counter", "gauge", "histogram"]
Buckets = Literal["time", "long", "score"]
"""Which bounds the buckets of a histogram have; `server.metrics.registry` says what they are."""
Cell = TypeVar("Cell", bound=Number | Tally)
Labels = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Family(Generic[Cell]):
    """A family of metrics.

    Attributes:
        name: As Prometheus shows it.
        help: One sentence, for people.
        kind: What it is to Prometheus.
        labels: Names of its labels.
        buckets: Of a histogram.
    """

    name: str
    help: str
    kind: Kind
    labels: Labels
    buckets: Buckets = "time"

    def __get__(self, registered: Registered, _owner: type[Registered]) -> Cells[Cell]:
        return registered.cells(self)


class Cells(Generic[Cell]):
    """The time series of a family in one registry, by the values of its labels."""

    def __init__(self, family: Family[Cell], make: Callable[[], Cell], bounds: tuple[float, ...]) -> None:
        self.family = family
        self._make = make
        self._bounds = bounds
        self._cells: dict[Labels, Cell] = {}

    def __iter__(self) -> Iterator[tuple[Labels, Cell]]:
        return iter(list(self._cells.items()))  # one call into C: whoever adds meanwhile does not disturb it

    def labels(self, *values: str) -> Cell:
        """One time series, which begins at nought; keep it where it is written often."""
        cell = self._cells.get(values)
        if cell is None:
            if len(values) != len(self.family.labels):
                raise ValueError(f"{self.family.name} has the labels {self.family.labels}, not {values}")
            cell = self._cells.setdefault(values, self._make())  # two threads that begin it get the same
        return cell

    def remove(self, **labels: str) -> None:
        """Drops the time series that have these labels."""
        wanted = {self.family.labels.index(name): value for name, value in labels.items()}
        self._cells = {key: it for key, it in self if any(key[at] != value for at, value in wanted.items())}

    def collect(self) -> Metric:
        """As Prometheus reads it."""
        family = self.family
        if family.kind == "histogram":
            shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for values, cell in self:
                if isinstance(cell, Tally):
                    shown.add_metric(values, *_cumulated(cell, self._bounds))
            return shown
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        plain = kind(family.name, family.help, labels=family.labels)
        for values, cell in self:
            if isinstance(cell, Number):
                plain.add_metric(values, cell.value)
        return plain


class Readings(Cells[Number]):
    """Gauges that are read anew for each scrape: whatever is not read any more is gone."""

    def replace(self, values: Mapping[Any, float]) -> None:
        """Shows these time series, by tuples of the values of their labels, and no others."""
        cells = {}
        for labels, value in values.items():
            cells[labels] = Number()
            cells[labels].set(float(value))
        self._cells = cells


@dataclass(frozen=True, eq=False)
class Reading(Family[Number]):
    """A family of gauges that are read when somebody scrapes."""

    def __get__(self, registered: Registered, _owner: type[Registered]) -> Readings:
        return registered.readings(self)


@dataclass(frozen=True, eq=False)
class Single(Family[Number]):
    """A family of one time series."""

    def __get__(self, registered: Registered, _owner: type[Registered]) -> Number:  # type: ignore[override]
        return registered.cells(self).labels()


def counter(name: str, text: str, *labels: str) -> Family[Number]:
    """A family of counters."""
    return Family(name, text, "counter", labels)


def gauge(name: str, text: str, *labels: str) -> Family[Number]:
    """A family of gauges that somebody sets."""
    return Family(name, text, "gauge", labels)


def reading(name: str, text: str, *labels: str) -> Reading:
    """A family of gauges that are read when somebody scrapes."""
    return Reading(name, text, "gauge", labels)


def histogram(name: str, text: str, *labels: str, buckets: Buckets = "time") -> Family[Tally]:
    """A family of histograms."""
    return Family(name, text, "histogram", labels, buckets)


def single(name: str, text: str, kind: Kind = "counter") -> Single:
    """A counter or gauge without labels."""
    return Single(name, text, kind, ())


def _cumulated(tally: Tally, bounds: tuple[float, ...]) -> tuple[list[tuple[str, float]], float]:
    """Buckets with what lies at or below their bounds, and the sum."""
    buckets, below = [], 0
    for bound, count in zip((*bounds, inf), tally.counts, strict=True):
        below += count
        buckets.append(("+Inf" if isinf(bound) else repr(bound), float(below)))
    return buckets, tally.total
