"""Series as messages: what ListSeries sends, and which ones a request names."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from heapq import nsmallest

from detectors.errors import InvalidInputError
from detectors.scorer import Scorer
from detectors.stamps import NO_STAMP
from prunewatch.v1 import scoring_pb2 as pb
from server.paging import bad_token, key_of, page_limit, token_of
from server.timestamps import timestamp

MAX_NAMES = 1000
"""Of one request: they are forgotten in one go, between two points of everybody."""
_CHECKSUM = struct.Struct(">I")  # of the detector; the name of the last series follows


def series_page(scorer: Scorer, request: pb.ListSeriesRequest) -> pb.ListSeriesResponse:
    """A page of series, by name.

    Raises:
        InvalidInputError: page size or token can not be.
    """
    limit, after = page_limit(request.page_size), _last_of(request)
    found = nsmallest(limit + 1, (name for name in scorer.series.names if name > after))
    page, more = found[:limit], len(found) > limit
    return pb.ListSeriesResponse(
        series=[_message(scorer, name) for name in page],
        next_page_token=token_of(_checksum(request) + page[-1].encode()) if more else "",
        total_size=len(scorer.series),
    )


def required(names: Sequence[str]) -> Sequence[str]:
    """Names of a request that wants some.

    Raises:
        InvalidInputError: there are none, or too many.
    """
    if not names:
        raise InvalidInputError("no series is named.", field="series", hint="Name at least one.")
    if len(names) > MAX_NAMES:
        raise InvalidInputError(f"{len(names)} series are too many.", field="series", hint=f"Name {MAX_NAMES} at most.")
    return names


def _last_of(request: pb.ListSeriesRequest) -> str:
    """The last series of the page before. It may be gone: what follows it is known all the same."""
    if not request.page_token:
        return ""
    key = key_of(request.page_token)
    if key[: _CHECKSUM.size] != _checksum(request):
        raise bad_token()
    try:
        return key[_CHECKSUM.size :].decode()
    except UnicodeDecodeError:
        raise bad_token() from None


def _checksum(request: pb.ListSeriesRequest) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(f"series of {request.parent}".encode()))


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
