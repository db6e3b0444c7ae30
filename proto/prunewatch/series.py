"""The calls of the client about series: which ones there are, to let them warm up again, to forget them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from prunewatch.replies import Series, series_of
from prunewatch.scoring import LARGEST_PAGE, errors
from prunewatch.v1 import scoring_pb2

LARGEST_REQUEST = 1000  # names; the service takes no more at once


class SeriesCalls:
    """What lists, resets and forgets series; a part of the client."""

    _scoring: Any
    """Stub of the scoring service."""

    async def series(self, detector: str, *, limit: int | None = None) -> AsyncIterator[Series]:
        """The series of a detector by name; asks for pages as they are read.

        Args:
            detector: Its name.
            limit: At most so many.

        Raises:
            ServiceError: there is no such detector, or the service can not be reached.
        """
        request = scoring_pb2.ListSeriesRequest(parent=f"detectors/{detector}")
        left = LARGEST_PAGE if limit is None else limit
        while left > 0:
            request.page_size = min(left, LARGEST_PAGE)
            with errors():
                page = await self._scoring.ListSeries(request)
            for it in page.series:
                yield series_of(it)
            if not (token := page.next_page_token):
                return
            request.page_token = token
            left -= 0 if limit is None else len(page.series)

    async def reset_series(self, detector: str, names: str | Sequence[str]) -> int:
        """Lets series warm up again, as after a repair: their state is forgotten, their last stamps are not.

        Args:
            detector: Its name.
            names: Of one series or of some; more than 1000 are sent in several requests.

        Returns:
            How many of them were known.

        Raises:
            ServiceError: no name is given, there is no such detector, or the service can not be reached.
        """
        count = 0
        for some in _parts(names):
            request = scoring_pb2.ResetSeriesRequest(parent=f"detectors/{detector}", series=some)
            with errors():
                count += (await self._scoring.ResetSeries(request)).count
        return count

    async def delete_series(self, detector: str, names: str | Sequence[str]) -> int:
        """Forgets series: a point that comes later begins a new one, whatever its stamp. Points kept for training stay.

        Args:
            detector: Its name.
            names: Of one series or of some; more than 1000 are sent in several requests.

        Returns:
            How many of them were known.

        Raises:
            ServiceError: no name is given, there is no such detector, the disk of the service is full (the series of
                that request are what they were), or it can not be reached.
        """
        count = 0
        for some in _parts(names):
            request = scoring_pb2.DeleteSeriesRequest(parent=f"detectors/{detector}", series=some)
            with errors():
                count += (await self._scoring.DeleteSeries(request)).count
        return count


def _parts(names: str | Sequence[str]) -> Iterator[list[str]]:
    """Each name once, as many at a time as a request may have; where there are none the service says so."""
    each = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for start in range(0, max(len(each), 1), LARGEST_REQUEST):
        yield each[start : start + LARGEST_REQUEST]
