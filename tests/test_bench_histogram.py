"""The histogram of `prunewatch bench`: as good as its error says, and never larger."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.bench.histogram import HIGHEST_SECONDS, LOWEST_SECONDS, RELATIVE_ERROR, Histogram

SECONDS = st.floats(LOWEST_SECONDS, HIGHEST_SECONDS, exclude_max=True)
QUANTILES = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)


def histogram_of(seconds: list[float]) -> Histogram:
    """A histogram of these durations."""
    made = Histogram()
    for each in seconds:
        made.record(each)
    return made


@given(st.lists(SECONDS, min_size=1, max_size=300))
@example([LOWEST_SECONDS] * 3)
@example([np.nextafter(HIGHEST_SECONDS, 0)])
@example([0.25, 0.5, 1.0, 2.0])
def test_quantiles_are_those_of_numpy_within_the_stated_error(seconds: list[float]) -> None:
    """Every quantile is that of the sorted durations, wrong by at most RELATIVE_ERROR; the largest is exact."""
    histogram = histogram_of(seconds)

    for q in QUANTILES:
        exact = float(np.quantile(seconds, q, method="inverted_cdf"))
        assert histogram.quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9)), q
    assert histogram.quantile(1.0) == max(seconds)


@given(st.lists(SECONDS, max_size=100), st.lists(SECONDS, max_size=100))
def test_adding_is_counting_both(first: list[float], second: list[float]) -> None:
    """Two histograms added are the histogram of all their durations."""
    together, added = histogram_of(first + second), histogram_of(first)

    added.add(histogram_of(second))

    assert list(added.buckets()) == list(together.buckets())
    assert (added.count, added.smallest, added.largest) == (together.count, together.smallest, together.largest)
    assert added.total == pytest.approx(together.total)


@given(st.lists(SECONDS, min_size=1, max_size=100))
def test_buckets_hold_everything_and_end_above_it(seconds: list[float]) -> None:
    """Counts of the buckets sum to all; as many durations lie below an edge as the buckets up to it say."""
    buckets = list(histogram_of(seconds).buckets())

    assert sum(count for _, count in buckets) == len(seconds)
    so_far = 0
    for edge, count in buckets:
        so_far += count
        assert so_far == np.count_nonzero(np.array(seconds) < edge)


def test_what_is_out_of_range_is_counted_at_the_ends() -> None:
    """Nothing, less than nothing and hours are counted; smallest and largest stay true."""
    histogram = histogram_of([-1.0, 0.0, 1e-9, 1e6])

    assert histogram.count == 4
    assert (histogram.smallest, histogram.largest) == (0.0, 1e6)
    assert histogram.quantile(0.5) <= LOWEST_SECONDS * (1 + 2 * RELATIVE_ERROR)


def test_an_empty_one_has_no_quantiles() -> None:
    """Without durations there is no number, not zero."""
    assert np.isnan(Histogram().quantile(0.5))
    assert np.isnan(Histogram().mean)


def test_its_memory_does_not_grow() -> None:
    """After half a million durations from a microsecond to an hour it has as many buckets as before."""
    histogram = Histogram()
    before = sys.getsizeof(histogram._counts)

    for seconds in np.geomspace(1e-6, 3600, 500_000).tolist():
        histogram.record(seconds)

    assert sys.getsizeof(histogram._counts) == before
    assert len(histogram._counts) == 4096
