"""Anomalies to messages, and what is asked of them. Needs no catalog: a device shares it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

from detectors.errors import InvalidInputError
from prunewatch.v1 import scoring_pb2 as pb
from server.anomalies import Anomaly
from server.anomaly_keeping import AnomalyQuery
from server.names import detector_id, detector_name
from server.paging import bad_token, key_of, page_limit, token_of
from server.timestamps import timestamp

_TOKEN = struct.Struct(">qI")  # id of the last row, checksum of what was asked


def anomaly_fields(anomaly: Anomaly) -> dict[str, Any]:
    """What Anomaly and WatchResponse have in common."""
    return {
        "detector": detector_name(anomaly.detector),
        "series": anomaly.series,
        "stamp": anomaly.stamp,
        "score": anomaly.score,
        "threshold": anomaly.threshold,
        "version": anomaly.version,
        "contributions": [pb.Contribution(feature=name, share=share) for name, share in anomaly.shares],
        "find_time": timestamp(anomaly.found),
    }


def query_of(request: pb.ListAnomaliesRequest) -> AnomalyQuery:
    """What to look for: one more than a page has, to know whether another follows.

    Raises:
        InvalidInputError: the range ends before it begins, or size or token can not be.
    """
    start, end = _range(request)
    if start is not None and end is not None and end < start:
        raise InvalidInputError(
            f"{end} is before the start, {start}.", field="end_stamp", hint="The range goes from start to end."
        )
    return AnomalyQuery(
        detector=detector_id(request.parent, "parent"),
        series=request.series or None,
        start=start,
        end=end,
        before=_row_of(request) if request.page_token else None,
        limit=page_limit(request.page_size) + 1,
    )


def page_message(request: pb.ListAnomaliesRequest, found: Sequence[Anomaly]) -> pb.ListAnomaliesResponse:
    """A page of what was found for `query_of(request)`."""
    size = page_limit(request.page_size)
    page, more = found[:size], len(found) > size
    return pb.ListAnomaliesResponse(
        anomalies=[pb.Anomaly(**anomaly_fields(anomaly)) for anomaly in page],
        next_page_token=token_of(_TOKEN.pack(page[-1].id, _checksum(request))) if more else "",
    )


def _row_of(request: pb.ListAnomaliesRequest) -> int:
    """The last row of the page before. It may be gone: what follows it is known all the same."""
    key = key_of(request.page_token)
    if len(key) != _TOKEN.size:
        raise bad_token()
    row, checksum = _TOKEN.unpack(key)
    if checksum != _checksum(request):
        raise bad_token()
    return int(row)


def _range(request: pb.ListAnomaliesRequest) -> tuple[int | None, int | None]:
    return (
        request.start_stamp if request.HasField("start_stamp") else None,
        request.end_stamp if request.HasField("end_stamp") else None,
    )


def _checksum(request: pb.ListAnomaliesRequest) -> int:
    """Of everything that must stay the same from page to page."""
    return zlib.crc32(repr((request.parent, request.series, *_range(request))).encode())
