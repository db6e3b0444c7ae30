"""FeedbackService: what people say of points, and when machines are worked on."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc.aio
from google.protobuf import empty_pb2

from detectors.errors import InvalidInputError
from prunewatch.v1 import feedback_pb2 as pb
from prunewatch.v1.feedback_pb2_grpc import FeedbackServiceServicer
from server.names import detector_id, detector_name, member_id
from server.paging import bad_token, key_of, page_limit, token_of
from server.records import FeedbackRow, Label, WindowRow
from server.roster import Roster
from server.timestamps import timestamp

LABELS: dict[int, Label] = {pb.LABEL_ANOMALY: "anomaly", pb.LABEL_NORMAL: "normal"}
NUMBERS = {label: number for number, label in LABELS.items()}
FEEDBACK = "feedback"
WINDOWS = "maintenanceWindows"
LONGEST_NOTE = 2000  # characters
_TOKEN = struct.Struct(">qI")  # number of the last row, checksum of the list
Row = TypeVar("Row", FeedbackRow, WindowRow)
Context = grpc.aio.ServicerContext[Any, Any]


class FeedbackServicer(FeedbackServiceServicer):
    """Keeps labels and maintenance windows.

    Args:
        roster: The detectors.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    async def CreateFeedback(self, request: pb.CreateFeedbackRequest, context: Context) -> pb.Feedback:
        """Labels points."""
        name = self._hosted(request.parent)
        asked = request.feedback
        _check(asked, "feedback")
        label = LABELS.get(asked.label)
        if label is None:
            raise InvalidInputError(
                "it is not said what the points are.",
                field="feedback.label",
                hint="Say LABEL_ANOMALY or LABEL_NORMAL.",
            )
        row = await asyncio.to_thread(
            self._roster.catalog.add_label,
            name,
            label,
            asked.first_stamp,
            asked.last_stamp,
            series=asked.series,
            note=asked.note,
        )
        return _feedback(row)

    async def ListFeedback(self, request: pb.ListFeedbackRequest, context: Context) -> pb.ListFeedbackResponse:
        """A page of labels, newest first."""
        page, token = await self._page(request, FEEDBACK, self._roster.catalog.labels)
        return pb.ListFeedbackResponse(feedback=map(_feedback, page), next_page_token=token)

    async def DeleteFeedback(self, request: pb.DeleteFeedbackRequest, context: Context) -> empty_pb2.Empty:
        """Takes a label back."""
        name, number = member_id(request.name, FEEDBACK)
        self._roster.host.get(name)
        await asyncio.to_thread(self._roster.catalog.delete_label, name, number)
        return empty_pb2.Empty()

    async def CreateMaintenanceWindow(
        self, request: pb.CreateMaintenanceWindowRequest, context: Context
    ) -> pb.MaintenanceWindow:
        """Mutes and does not learn from points; from the answer on."""
        name = self._hosted(request.parent)
        asked = request.maintenance_window
        _check(asked, "maintenance_window")
        row = await asyncio.to_thread(
            self._roster.catalog.add_window,
            name,
            asked.first_stamp,
            asked.last_stamp,
            series=asked.series,
            note=asked.note,
        )
        await self._roster.follow_windows(name)
        return _window(row)

    async def ListMaintenanceWindows(
        self, request: pb.ListMaintenanceWindowsRequest, context: Context
    ) -> pb.ListMaintenanceWindowsResponse:
        """A page of maintenance windows, newest first."""
        page, token = await self._page(request, WINDOWS, self._roster.catalog.windows)
        return pb.ListMaintenanceWindowsResponse(maintenance_windows=map(_window, page), next_page_token=token)

    async def DeleteMaintenanceWindow(
        self, request: pb.DeleteMaintenanceWindowRequest, context: Context
    ) -> empty_pb2.Empty:
        """Takes a maintenance window back; its points raise alarms again, from the answer on."""
        name, number = member_id(request.name, WINDOWS)
        self._roster.host.get(name)
        await asyncio.to_thread(self._roster.catalog.delete_window, name, number)
        await self._roster.follow_windows(name)
        return empty_pb2.Empty()

    def _hosted(self, parent: str) -> str:
        name = detector_id(parent, "parent")
        self._roster.host.get(name)
        return name

    async def _page(
        self,
        request: pb.ListFeedbackRequest | pb.ListMaintenanceWindowsRequest,
        collection: str,
        find: Callable[..., list[Row]],
    ) -> tuple[Sequence[Row], str]:
        """Rows of a page and the token of the next."""
        name, size = self._hosted(request.parent), page_limit(request.page_size)
        checksum = zlib.crc32(f"{request.parent}/{collection}".encode())
        before = _row_of(request.page_token, checksum) if request.page_token else None
        found = await asyncio.to_thread(find, name, before=before, limit=size + 1)
        page, more = found[:size], len(found) > size
        return page, token_of(_TOKEN.pack(page[-1].id, checksum)) if more else ""


def _row_of(token: str, checksum: int) -> int:
    key = key_of(token)
    if len(key) != _TOKEN.size:
        raise bad_token()
    row, found = _TOKEN.unpack(key)
    if found != checksum:
        raise bad_token()
    return int(row)


def _check(asked: pb.Feedback | pb.MaintenanceWindow, field: str) -> None:
    if asked.last_stamp < asked.first_stamp:
        raise InvalidInputError(
            f"{asked.last_stamp} is before the first stamp, {asked.first_stamp}.",
            field=f"{field}.last_stamp",
            hint="Both points are included.",
        )
    if len(asked.note) > LONGEST_NOTE:
        raise InvalidInputError(
            f"it has {len(asked.note)} characters.", field=f"{field}.note", hint=f"Write {LONGEST_NOTE} at most."
        )


def _feedback(row: FeedbackRow) -> pb.Feedback:
    return pb.Feedback(**_common(row, FEEDBACK), label=NUMBERS[row.label])  # type: ignore[arg-type]


def _window(row: WindowRow) -> pb.MaintenanceWindow:
    return pb.MaintenanceWindow(**_common(row, WINDOWS))


def _common(row: FeedbackRow | WindowRow, collection: str) -> dict[str, Any]:
    return {
        "name": f"{detector_name(row.detector)}/{collection}/{row.id}",
        "series": row.series,
        "first_stamp": row.first_stamp,
        "last_stamp": row.last_stamp,
        "note": row.note,
        "create_time": timestamp(row.created),
    }
