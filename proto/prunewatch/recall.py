"""What became of points whose answer was lost: the service keeps their anomalies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from prunewatch.errors import service_error
from prunewatch.points import Points
from prunewatch.replies import Scores
from prunewatch.v1 import scoring_pb2

KNOWN = (scoring_pb2.POINT_STATUS_LATE, scoring_pb2.POINT_STATUS_DUPLICATE)
"""Statuses of a point that was taken the first time it was sent: at its stamp, or before the last one of its series."""
PAGE = 1000


async def recalled(stub: Any, detector: str, points: Points, scores: Scores, timeout_seconds: float) -> Scores:
    """The answer to points that may have been sent before, with the scores of those that were found to be anomalies.

    Args:
        stub: Of `ScoringService`.
        detector: Its name.
        points: With stamps.
        scores: The answer to them.
        timeout_seconds: For a page of anomalies.

    Raises:
        AioRpcError: the service could not be asked.
    """
    rows = np.flatnonzero(np.isin(scores.statuses, KNOWN))
    if not len(rows) or points.stamps is None:
        return scores
    wanted: dict[tuple[str, int], int] = {}
    for row in rows.tolist():
        wanted.setdefault((points.names[points.index[row]], int(points.stamps[row])), row)
    found, versions = scores.scores.copy(), scores.point_versions.copy()
    try:
        for it in await _anomalies(stub, detector, points.take(rows), timeout_seconds):
            if (at := wanted.get((it.series, it.stamp))) is not None:
                found[at], versions[at] = it.score, it.version
    except grpc.aio.AioRpcError as error:
        if service_error(error).is_of_the_connection:
            raise  # everything is sent again, and asked again; else there is nobody to ask: a device keeps no anomalies
    return replace(scores, scores=found, point_versions=versions, resent=rows.astype(np.int64))


async def _anomalies(stub: Any, detector: str, points: Points, timeout_seconds: float) -> list[scoring_pb2.Anomaly]:
    stamps: NDArray[np.int64] = np.asarray(points.stamps, np.int64)
    request = scoring_pb2.ListAnomaliesRequest(
        parent=f"detectors/{detector}",
        page_size=PAGE,
        series=points.names[0] if len(points.names) == 1 else "",
        start_stamp=int(stamps.min()),
        end_stamp=int(stamps.max()) + 1,
    )
    found: list[scoring_pb2.Anomaly] = []
    while True:
        page = await stub.ListAnomalies(request, timeout=timeout_seconds)
        found += page.anomalies
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
