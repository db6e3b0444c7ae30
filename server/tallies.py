"""Counts of the scoring path: plain numbers while it scores, families of Prometheus when somebody scrapes.

`prometheus_client` takes a lock and walks through the buckets for every observation; with a few of those in every
message, counting becomes a part of its cost.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """One time series of a histogram; observed by one thread.

    Args:
        bounds: Upper bounds of its buckets, ascending.
    """

    __slots__ = ("bounds", "counts", "created", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.created = time.time()

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Tallies(Collector):
    """A histogram whose time series are `Tally`: as `prometheus_client.Histogram`, as far as that is used here.

    Args:
        name: Of the family.
        documentation: What it says.
        labelnames: Of each of its time series.
        bounds: Upper bounds of the buckets, ascending, without infinity.
        registry: Where it is found.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name = name
        self._labelnames = tuple(labelnames)  # under the name that the client's own families have
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The time series of these labels."""
        if len(values) != len(self._labelnames):
            raise ValueError(f"{self.name} has the labels {', '.join(self._labelnames)}")
        if values not in self._tallies:
            self._tallies[values] = Tally(self._bounds)
        return self._tallies[values]

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Removes the time series that have these labels."""
        wanted = {self._labelnames.index(name): value for name, value in labels.items()}
        for values in list(self._tallies):
            if all(values[at] == value for at, value in wanted.items()):
                del self._tallies[values]

    def describe(self) -> Iterable[Metric]:
        """The family without its time series: what the registry looks at for names that clash."""
        return [HistogramMetricFamily(self.name, self._documentation, labels=self._labelnames)]

    def collect(self) -> Iterable[Metric]:
        """The family as it is now."""
        family = HistogramMetricFamily(self.name, self._documentation, labels=self._labelnames)
        les = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, list(zip(les, accumulate(tally.counts), strict=True)), tally.total)
            labels = dict(zip(self._labelnames, values, strict=True))
            family.add_sample(f"{self.name}_created", labels, tally.created)
        return [family]
