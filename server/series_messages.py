"""Series as messages: what ListSeries sends."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest

from detectors.errors import InvalidInputError
from detectors.scorer import Scorer
from detectors.stamps import NO_STAMP
from prunewatch.v1 import scoring_pb2 as pb
from server.paging import bad_token, key_of, page_limit, token_of
from server.timestamps import timestamp


def series_page(scorer: Scorer, request: pb.ListSeriesRequest) -> pb.ListSeriesResponse:
    """A page of series, by name.

    Raises:
        InvalidInputError: page size or token can not be.
    """
    limit, after = page_limit(request.page_size), ""
    if request.page_token:
        try:
            after = key_of(request.page_token).decode()
        except UnicodeDecodeError:
            raise bad_token() from None
    found = nsmallest(limit + 1, (name for name in scorer.series.names if name > after))
    token = token_of(found[limit - 1].encode()) if len(found) > limit else ""
    return pb.ListSeriesResponse(
        series=[_message(scorer, name) for name in found[:limit]], next_page_token=token, total_size=len(scorer.series)
    )


def required(names: Sequence[str]) -> Sequence[str]:
    """Names of a request that wants some.

    Raises:
        InvalidInputError: there are none.
    """
    if not names:
        raise InvalidInputError("no series is named.", field="series", hint="Name at least one.")
    return names


def _message(scorer: Scorer, name: str) -> pb.Series:
    series = scorer.series
    (slot,) = series.known([name])
    last, points = int(series.last_stamp[slot]), int(series.seen[slot])
    return pb.Series(
        name=name,
        last_stamp=None if last == NO_STAMP else last,
        points=points,
        warming_up=points < scorer.served.warm_up_points,
        heard_time=timestamp(float(series.heard[slot])),
        in_memory=bool(series.seat[slot] >= 0),
    )
