"""FleetService: what operators do with devices, their classes, roll-outs and signing keys."""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf import empty_pb2

from detectors.errors import InvalidInputError
from prunewatch.v1 import fleet_pb2 as pb
from prunewatch.v1 import pruning_pb2
from prunewatch.v1.fleet_pb2_grpc import FleetServiceServicer
from server.config import HUB
from server.fleet.classes import DeviceClasses
from server.fleet.messages import budget_message, device_message, key_message, rollout_message
from server.fleet.records import Device, RolloutRow, Status
from server.names import detector_id, device_class_id, device_class_name, device_id, rollout_id
from server.paging import bad_token, key_of, page_limit, page_of, token_of
from server.timestamps import timestamp

if TYPE_CHECKING:
    from server.fleet.fleet import Fleet

LIMITS = {"p99_seconds": "p99", "p50_seconds": "p50", "speedup": "speedup", "size_bytes": "size", "batch": "batch"}
LONGEST_REASON = 500
BY_HAND = "somebody stopped it"
_TOKEN = struct.Struct(">qI")  # number of the last row, checksum of the list
Context = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(FleetServiceServicer):
    """Serves operators.

    Args:
        fleet: The devices.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        roster = fleet.roster
        self._classes = DeviceClasses(roster.catalog, roster, roster.settings.device_classes)

    # devices

    async def CreateEnrolmentToken(
        self, request: pb.CreateEnrolmentTokenRequest, context: Context
    ) -> pb.CreateEnrolmentTokenResponse:
        """A token for one device."""
        device_class = request.device_class
        self._classes.require(device_class, "device_class")
        if device_class == HUB:
            raise InvalidInputError(f"`{HUB}` is the hub itself.", field="device_class", hint="Name another class.")
        device = device_id(request.device, "device") if request.device else ""
        token = await asyncio.to_thread(self._fleet.enrolment.make_token, device_class, device, request.valid_seconds)
        return pb.CreateEnrolmentTokenResponse(token=token.text, expire_time=timestamp(token.expires))

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        """A page of devices by name."""
        size, after = page_limit(request.page_size), key_of(request.page_token).decode(errors="replace")
        found = await asyncio.to_thread(self._fleet.book.devices, request.device_class, after=after, limit=size + 1)
        page, more = found[:size], len(found) > size
        token = token_of(page[-1].name.encode()) if more else ""
        return pb.ListDevicesResponse(devices=map(self._device, page), next_page_token=token)

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Context) -> pb.Device:
        """One device."""
        return self._device(await asyncio.to_thread(self._fleet.book.require, device_id(request.name)))

    async def DeleteDevice(self, request: pb.DeleteDeviceRequest, context: Context) -> empty_pb2.Empty:
        """Lets a device go."""
        await self._fleet.remove(device_id(request.name))
        return empty_pb2.Empty()

    def _device(self, device: Device) -> pb.Device:
        heard = self._fleet.presence.of(device.name)
        status = heard.status if heard else Status.from_json(device.status) if device.status else None
        seen = heard.at if heard else device.last_seen
        return device_message(device, status, seen, connected=self._fleet.links.is_connected(device.name))

    # classes

    async def ListDeviceClasses(
        self, request: pb.ListDeviceClassesRequest, context: Context
    ) -> pb.ListDeviceClassesResponse:
        """A page of classes by name."""
        names = sorted(self._fleet.roster.device_classes)
        page, token = page_of(names, request.page_size, request.page_token, str)
        counts = await asyncio.to_thread(self._fleet.book.counts)
        return pb.ListDeviceClassesResponse(
            device_classes=[self._class(name, counts) for name in page], next_page_token=token
        )

    async def GetDeviceClass(self, request: pb.GetDeviceClassRequest, context: Context) -> pb.DeviceClass:
        """One class."""
        return await self._class_now(device_class_id(request.name))

    async def CreateDeviceClass(self, request: pb.CreateDeviceClassRequest, context: Context) -> pb.DeviceClass:
        """A new class."""
        await self._classes.create(request.device_class_id, _given(request.device_class.budget))
        return await self._class_now(request.device_class_id)

    async def UpdateDeviceClass(self, request: pb.UpdateDeviceClassRequest, context: Context) -> pb.DeviceClass:
        """Another budget."""
        name = device_class_id(request.device_class.name, "device_class.name")
        fields = _masked(request.device_class.budget, list(request.update_mask.paths))
        await self._classes.change(name, fields)
        return await self._class_now(name)

    async def DeleteDeviceClass(self, request: pb.DeleteDeviceClassRequest, context: Context) -> empty_pb2.Empty:
        """Forgets a class."""
        detectors = [hosted.name for hosted in self._fleet.roster.host]
        await self._classes.delete(device_class_id(request.name), detectors)
        return empty_pb2.Empty()

    async def _class_now(self, name: str) -> pb.DeviceClass:
        self._classes.require(name)
        return self._class(name, await asyncio.to_thread(self._fleet.book.counts))

    def _class(self, name: str, counts: dict[str, int]) -> pb.DeviceClass:
        return pb.DeviceClass(
            name=device_class_name(name),
            budget=budget_message(self._fleet.roster.budget_of(name)),
            devices=counts.get(name, 0),
            connected=len(self._fleet.links.connected(name)),
            configured=self._classes.is_configured(name),
        )

    # roll-outs

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Context) -> pb.ListRolloutsResponse:
        """A page of roll-outs, newest first."""
        size = page_limit(request.page_size)
        detector = detector_id(request.detector, "detector") if request.detector else ""
        checksum = zlib.crc32(f"{request.detector}/{request.device_class}".encode())
        before = _row_of(request.page_token, checksum) if request.page_token else None
        found = await asyncio.to_thread(
            self._fleet.book.rollouts, detector, request.device_class, before=before, limit=size + 1
        )
        page, more = found[:size], len(found) > size
        token = token_of(_TOKEN.pack(page[-1][0].id, checksum)) if more else ""
        return pb.ListRolloutsResponse(
            rollouts=[rollout_message(row, counts) for row, counts in page], next_page_token=token
        )

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.Rollout:
        """One roll-out."""
        return await self._rollout(rollout_id(request.name))

    async def AdvanceRollout(self, request: pb.AdvanceRolloutRequest, context: Context) -> pb.Rollout:
        """Takes one to its next stage now."""
        number, connected = rollout_id(request.name), frozenset(self._fleet.links.connected())
        await self._fleet.steer(self._fleet.rollouts.advance, number, connected)
        return await self._rollout(number)

    async def StopRollout(self, request: pb.StopRolloutRequest, context: Context) -> pb.Rollout:
        """Stops one; its devices go back."""
        if len(request.reason) > LONGEST_REASON:
            raise InvalidInputError(
                f"it has {len(request.reason)} characters.", field="reason", hint=f"Write {LONGEST_REASON} at most."
            )
        number = rollout_id(request.name)
        row: RolloutRow = await self._fleet.steer(self._fleet.rollouts.stop, number, request.reason or BY_HAND)
        await self._fleet.settle([row.detector])
        return await self._rollout(number)

    async def _rollout(self, number: int) -> pb.Rollout:
        return rollout_message(*await asyncio.to_thread(self._fleet.book.rollout, number))

    # keys

    async def ListSigningKeys(self, request: pb.ListSigningKeysRequest, context: Context) -> pb.ListSigningKeysResponse:
        """The keys, newest first."""
        known = self._fleet.keys.known
        return pb.ListSigningKeysResponse(keys=[key_message(it, current=it is known[0]) for it in known])

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        """A new key."""
        made = await self._fleet.rotate(retire_older=request.retire_older)
        return pb.RotateSigningKeyResponse(key=key_message(made, current=True))


def _given(budget: pruning_pb2.Budget) -> dict[str, Any]:
    """What a message says of a budget, as the settings call it; a batch of 0 says nothing."""
    return {LIMITS[field.name]: value for field, value in budget.ListFields()}


def _masked(budget: pruning_pb2.Budget, paths: list[str]) -> dict[str, Any]:
    """What is to change; a field that the mask names and that is not given is taken away."""
    if not paths:
        return _given(budget)
    changed: dict[str, Any] = {}
    for path in paths:
        parent, _, field = path.partition(".")
        if parent != "budget" or (field and field not in LIMITS):
            raise InvalidInputError(
                f"{path[:80]!r} can not be changed.", field="update_mask", hint="Name budget, or fields of it."
            )
        given = _given(budget)
        for key in [LIMITS[field]] if field else LIMITS.values():
            changed[key] = given.get(key)
    if changed.get("batch", 0) is None:
        del changed["batch"]
    return changed


def _row_of(token: str, checksum: int) -> int:
    key = key_of(token)
    if len(key) != _TOKEN.size:
        raise bad_token()
    row, found = _TOKEN.unpack(key)
    if found != checksum:
        raise bad_token()
    return int(row)
