"""Histograms of the scoring path say to Prometheus what prometheus_client's own would say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.metrics import BUCKETS
from server.tallies import Tallies

CREATED = re.compile(r"^(\w+_created\S* ).*$", re.MULTILINE)


def tallies(registry: CollectorRegistry) -> Tallies:
    """A family of one label."""
    return Tallies("step_seconds", "Time of a step.", ["detector"], bounds=BUCKETS, registry=registry)


def scraped(registry: CollectorRegistry) -> str:
    """What Prometheus reads, without the moments at which time series began."""
    return CREATED.sub(r"\1", generate_latest(registry).decode())


def test_same_exposition_as_the_client() -> None:
    """Names, labels, buckets, sums and their order: to the letter, also for values on a bound and beyond the last."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    family = tallies(ours)
    other = Histogram("step_seconds", "Time of a step.", ["detector"], buckets=BUCKETS, registry=theirs)

    for detector, values in {"pump": [*BUCKETS, 0.0, 2.5, 1e-5], "fan": np.geomspace(1e-5, 3, 200), "idle": []}.items():
        for histogram in (family.labels(detector), other.labels(detector)):
            for value in values:
                histogram.observe(float(value))

    assert "step_seconds_created" in scraped(ours)
    assert scraped(ours) == scraped(theirs)


def test_removed_by_label() -> None:
    """A detector that is gone leaves no time series, others keep theirs; one that comes again counts from zero."""
    registry = CollectorRegistry()
    family = tallies(registry)
    for detector in ("pump", "fan"):
        family.labels(detector).observe(0.1)

    family.remove_by_labels({"detector": "pump"})

    assert registry.get_sample_value("step_seconds_count", {"detector": "pump"}) is None
    assert registry.get_sample_value("step_seconds_count", {"detector": "fan"}) == 1
    family.labels("pump")
    assert registry.get_sample_value("step_seconds_count", {"detector": "pump"}) == 0


def test_name_and_labels_are_checked() -> None:
    """A second family of a name is refused, and so is a number of labels that is not the family's."""
    registry = CollectorRegistry()
    family = tallies(registry)

    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Histogram("step_seconds", "Again.", registry=registry)
    with pytest.raises(ValueError, match="has the labels detector"):
        family.labels("pump", "hub")
