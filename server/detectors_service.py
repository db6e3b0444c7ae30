"""DetectorService: creating, fitting and managing detectors over the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from detectors.errors import InvalidInputError, NotFoundError
from prunewatch.v1 import detectors_pb2 as pb
from prunewatch.v1.detectors_pb2_grpc import DetectorServiceServicer
from server.config import HUB
from server.interceptors import readable
from server.jobs import configured_like
from server.maintenance import Maintenance
from server.messages import config_fields, detector_message, version_message
from server.names import detector_id, detector_name
from server.operations import operation_message
from server.paging import page_of
from server.roster import Roster
from server.uploads import Receiver, Upload

Context = grpc.aio.ServicerContext[Any, Any]


class DetectorServicer(DetectorServiceServicer):
    """Manages detectors.

    Args:
        roster: The detectors.
        maintenance: What fits them.
    """

    def __init__(self, roster: Roster, maintenance: Maintenance) -> None:
        self._roster = roster
        self._maintenance = maintenance

    async def CreateDetector(self, request: pb.CreateDetectorRequest, context: Context) -> pb.Detector:
        """A new detector, learning."""
        name = detector_id(detector_name(request.detector_id), "detector_id")
        await self._roster.create(name, config_fields(request.config), "config")
        return await self._detector(name)

    async def GetDetector(self, request: pb.GetDetectorRequest, context: Context) -> pb.Detector:
        """One detector."""
        return await self._detector(detector_id(request.name))

    async def ListDetectors(self, request: pb.ListDetectorsRequest, context: Context) -> pb.ListDetectorsResponse:
        """A page of detectors by name."""
        names = sorted(hosted.name for hosted in self._roster.host)
        page, token = page_of(names, request.page_size, request.page_token, str)
        return pb.ListDetectorsResponse(detectors=[await self._detector(name) for name in page], next_page_token=token)

    async def DeleteDetector(self, request: pb.DeleteDetectorRequest, context: Context) -> empty_pb2.Empty:
        """Forgets a detector."""
        name = detector_id(request.name)
        self._maintenance.require_idle(name)
        await self._roster.delete(name, etag=request.etag)
        self._maintenance.forget(name)
        return empty_pb2.Empty()

    async def FitDetector(self, request: pb.FitDetectorRequest, context: Context) -> operations_pb2.Operation:
        """Begins a fit on the history."""
        seed = request.seed if request.HasField("seed") else None
        start = detector_id(request.start_from, "start_from") if request.start_from else None
        return operation_message(await self._maintenance.fit(detector_id(request.name), seed=seed, start_from=start))

    async def FitDetectorFromUpload(
        self, request_iterator: AsyncIterator[pb.FitDetectorFromUploadRequest], context: Context
    ) -> operations_pb2.Operation:
        """Takes points, then begins a fit on them; the detector is created first where the header allows it."""
        header: pb.FitHeader | None = None
        receiver: Receiver | None = None
        async for message in request_iterator:
            kind = readable(message).WhichOneof("part")
            if receiver is None:
                if kind != "header":
                    raise first_is_header()
                header = message.header
                name = detector_id(header.name, "header.name")
                if not (header.allow_missing or name in self._roster.host):
                    self._roster.host.get(name)
                receiver = Receiver(header.features)
            elif kind != "points":
                raise rest_is_points()
            else:
                receiver.add(message.points.stamps, message.points.packed_values)
        if receiver is None or header is None:
            raise first_is_header()
        upload = await asyncio.to_thread(receiver.finish)
        return operation_message(await self._fit_upload(header, upload))

    async def _fit_upload(self, header: pb.FitHeader, upload: Upload) -> Any:
        name = detector_id(header.name, "header.name")
        start = detector_id(header.start_from, "header.start_from") if header.start_from else None
        if start is not None:
            self._roster.host.get(start)
        if name not in self._roster.host:
            fields = config_fields(header.config)
            if start is not None:
                fields = {**configured_like(self._roster.config_of(start).model_dump(mode="json")), **fields}
            fields.setdefault("features", list(upload.features))
            await self._roster.create(name, fields, "header.config")
        hosted = self._roster.host.get(name)
        upload = upload.in_order_of(hosted.features)
        seed = header.seed if header.HasField("seed") else None
        return await self._maintenance.fit(name, upload=upload, seed=seed, start_from=start)

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        """A page of versions, newest first."""
        name = detector_id(request.parent, "parent")
        self._roster.host.get(name)
        catalog = self._roster.catalog
        rows = (await asyncio.to_thread(catalog.versions, name))[::-1]
        page, token = page_of(rows, request.page_size, request.page_token, lambda row: str(row.version))
        serving = await asyncio.to_thread(catalog.all_serving, name)
        versions = [
            await asyncio.to_thread(
                version_message, catalog, row, [it.device_class for it in serving if it.version == row.version]
            )
            for row in page
        ]
        return pb.ListVersionsResponse(versions=versions, next_page_token=token)

    async def PinVersion(self, request: pb.PinVersionRequest, context: Context) -> pb.Detector:
        """Keeps a device class on what it serves."""
        name = detector_id(request.name)
        await self._roster.pin(name, request.device_class or HUB, pinned=True, etag=request.etag)
        return await self._detector(name)

    async def UnpinVersion(self, request: pb.UnpinVersionRequest, context: Context) -> pb.Detector:
        """Lets a device class adopt again."""
        name = detector_id(request.name)
        await self._roster.pin(name, request.device_class or HUB, pinned=False, etag=request.etag)
        return await self._detector(name)

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.Detector:
        """Makes a device class serve an earlier version."""
        name = detector_id(request.name)
        if request.version < 0:
            raise InvalidInputError(f"{request.version} is no version.", field="version", hint="Leave it out.")
        target = request.version or None
        await self._roster.roll_back(name, request.device_class or HUB, target, etag=request.etag)
        return await self._detector(name)

    async def FreezeDetector(self, request: pb.FreezeDetectorRequest, context: Context) -> pb.Detector:
        """Stops what would begin by itself."""
        name = detector_id(request.name)
        await self._roster.freeze(name, frozen=True, etag=request.etag)
        return await self._detector(name)

    async def UnfreezeDetector(self, request: pb.UnfreezeDetectorRequest, context: Context) -> pb.Detector:
        """Lets it begin by itself again."""
        name = detector_id(request.name)
        await self._roster.freeze(name, frozen=False, etag=request.etag)
        return await self._detector(name)

    async def _detector(self, name: str) -> pb.Detector:
        try:
            return detector_message(await self._roster.entry(name))
        except NotFoundError as error:
            raise NotFoundError(error.problem, field="name", hint=error.hint) from None


def first_is_header() -> InvalidInputError:
    """An upload that does not begin as it must."""
    return InvalidInputError("the first message has no header.", field="header", hint="Send the header, then points.")


def rest_is_points() -> InvalidInputError:
    """An upload with something else among its points."""
    return InvalidInputError("a message has no points.", field="points", hint="Send the header once, then only points.")
