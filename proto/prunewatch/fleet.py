"""The calls of the client about devices, their classes, roll-outs and signing keys; for operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio
from google.protobuf import timestamp_pb2

from prunewatch.scoring import LARGEST_PAGE, errors
from prunewatch.v1 import devices_pb2, fleet_pb2, fleet_pb2_grpc, pruning_pb2

LIMITS = ("p99_seconds", "p50_seconds", "speedup", "size_bytes")


class FleetCalls:
    """What operators ask of a hub; `Client.fleet`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)

    # devices

    async def create_token(
        self, device_class: str, *, device: str = "", valid_seconds: float | None = None
    ) -> dict[str, Any]:
        """A token with which one device of a class can make itself known: `token` and `expire_seconds`.

        Args:
            device_class: The class.
            device: The device that may use it; empty: any one.
            valid_seconds: How long; None: a day.
        """
        request = fleet_pb2.CreateEnrolmentTokenRequest(
            device_class=device_class,
            device=f"devices/{device}" if device else "",
            valid_seconds=valid_seconds or 0.0,
        )
        with errors():
            made = await self._stub.CreateEnrolmentToken(request)
        return {"token": made.token, "expire_seconds": _seconds(made.expire_time)}

    async def devices(self, device_class: str = "") -> list[dict[str, Any]]:
        """All devices by name, of one class or of all."""
        found: list[dict[str, Any]] = []
        request = fleet_pb2.ListDevicesRequest(device_class=device_class, page_size=LARGEST_PAGE)
        with errors():
            while True:
                page = await self._stub.ListDevices(request)
                found += map(device_json, page.devices)
                if not (token := page.next_page_token):
                    return found
                request.page_token = token

    async def device(self, name: str) -> dict[str, Any]:
        """One device."""
        with errors():
            return device_json(await self._stub.GetDevice(fleet_pb2.GetDeviceRequest(name=f"devices/{name}")))

    async def delete_device(self, name: str) -> None:
        """Lets a device go: its key is not known any more."""
        with errors():
            await self._stub.DeleteDevice(fleet_pb2.DeleteDeviceRequest(name=f"devices/{name}"))

    # classes

    async def device_classes(self) -> list[dict[str, Any]]:
        """All device classes by name."""
        with errors():
            page = await self._stub.ListDeviceClasses(fleet_pb2.ListDeviceClassesRequest(page_size=LARGEST_PAGE))
        return [class_json(it) for it in page.device_classes]

    async def device_class(self, name: str) -> dict[str, Any]:
        """One device class."""
        request = fleet_pb2.GetDeviceClassRequest(name=f"deviceClasses/{name}")
        with errors():
            return class_json(await self._stub.GetDeviceClass(request))

    async def create_device_class(self, name: str, budget: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a device class; `budget` has the names of `prunewatch.v1.Budget`."""
        made = fleet_pb2.DeviceClass(budget=pruning_pb2.Budget(**budget))
        request = fleet_pb2.CreateDeviceClassRequest(device_class_id=name, device_class=made)
        with errors():
            return class_json(await self._stub.CreateDeviceClass(request))

    async def update_device_class(self, name: str, budget: Mapping[str, Any]) -> dict[str, Any]:
        """Changes what is given of a budget; None takes a limit away."""
        given = {key: value for key, value in budget.items() if value is not None}
        changed = fleet_pb2.DeviceClass(name=f"deviceClasses/{name}", budget=pruning_pb2.Budget(**given))
        request = fleet_pb2.UpdateDeviceClassRequest(device_class=changed)
        request.update_mask.paths.extend(f"budget.{key}" for key in budget)
        with errors():
            return class_json(await self._stub.UpdateDeviceClass(request))

    async def delete_device_class(self, name: str) -> None:
        """Forgets a class that no detector and no device names."""
        with errors():
            await self._stub.DeleteDeviceClass(fleet_pb2.DeleteDeviceClassRequest(name=f"deviceClasses/{name}"))

    # roll-outs

    async def rollouts(
        self, detector: str = "", device_class: str = "", *, limit: int = LARGEST_PAGE
    ) -> list[dict[str, Any]]:
        """Roll-outs, newest first, so many at most."""
        request = fleet_pb2.ListRolloutsRequest(
            detector=f"detectors/{detector}" if detector else "", device_class=device_class, page_size=limit
        )
        with errors():
            return [rollout_json(it) for it in (await self._stub.ListRollouts(request)).rollouts]

    async def rollout(self, number: int) -> dict[str, Any]:
        """One roll-out."""
        with errors():
            return rollout_json(await self._stub.GetRollout(fleet_pb2.GetRolloutRequest(name=f"rollouts/{number}")))

    async def advance_rollout(self, number: int) -> dict[str, Any]:
        """Takes one to its next stage now."""
        request = fleet_pb2.AdvanceRolloutRequest(name=f"rollouts/{number}")
        with errors():
            return rollout_json(await self._stub.AdvanceRollout(request))

    async def stop_rollout(self, number: int, reason: str = "") -> dict[str, Any]:
        """Stops one: devices that have taken it go back."""
        request = fleet_pb2.StopRolloutRequest(name=f"rollouts/{number}", reason=reason)
        with errors():
            return rollout_json(await self._stub.StopRollout(request))

    # keys

    async def signing_keys(self) -> list[dict[str, Any]]:
        """The keys that sign releases, public halves, newest first."""
        with errors():
            found = await self._stub.ListSigningKeys(fleet_pb2.ListSigningKeysRequest())
        return [key_json(it) for it in found.keys]

    async def rotate_signing_key(self, *, retire_older: bool = False) -> dict[str, Any]:
        """Makes a new one; `retire_older`: no other is to be trusted."""
        with errors():
            made = await self._stub.RotateSigningKey(fleet_pb2.RotateSigningKeyRequest(retire_older=retire_older))
        return key_json(made.key)


def device_json(message: fleet_pb2.Device) -> dict[str, Any]:
    """A device as `prunewatch devices --json` says it."""
    status = message.status
    return {
        "name": message.name.rpartition("/")[2],
        "device_class": message.device_class,
        "connected": message.connected,
        "last_seen_seconds": _seconds(message.last_seen_time) if message.HasField("last_seen_time") else None,
        "enrolled_seconds": _seconds(message.enrol_time),
        "key_id": message.key_id,
        "facts": {field.name: getattr(message.facts, field.name) for field in message.facts.DESCRIPTOR.fields},
        "temperature_celsius": _number(status.temperature_celsius),
        "dropped_reports": status.dropped_reports,
        "waiting_bytes": status.waiting_bytes,
        "resident_bytes": status.resident_bytes,
        "served": [
            {
                "detector": it.detector.rpartition("/")[2],
                "bundle": it.bundle_hash,
                "counter": it.counter,
                "asked_counter": it.asked_counter,
                "state": devices_pb2.ReleaseState.Name(it.state).removeprefix("RELEASE_STATE_").lower(),
                "reason": it.reason,
                "points": it.points,
                "flagged": it.flagged,
                "p50_seconds": _number(it.step_p50_seconds),
                "p99_seconds": _number(it.step_p99_seconds),
                "series": it.series,
            }
            for it in status.served
        ],
    }


def class_json(message: fleet_pb2.DeviceClass) -> dict[str, Any]:
    """A device class as `prunewatch device-classes --json` says it."""
    budget = message.budget
    given = {field.name for field, _ in budget.ListFields()}
    return {
        "name": message.name.rpartition("/")[2],
        **{name: getattr(budget, name) if name in given else None for name in LIMITS},
        "batch": budget.batch,
        "devices": message.devices,
        "connected": message.connected,
        "configured": message.configured,
    }


def rollout_json(message: fleet_pb2.Rollout) -> dict[str, Any]:
    """A roll-out as `prunewatch rollouts --json` says it."""
    return {
        "id": int(message.name.rpartition("/")[2]),
        "detector": message.detector.rpartition("/")[2],
        "device_class": message.device_class,
        "version": message.version,
        "bundle": message.bundle_hash,
        "stage": fleet_pb2.RolloutStage.Name(message.stage).removeprefix("ROLLOUT_STAGE_").lower(),
        "asked": message.asked,
        "serving": message.serving,
        "failed": message.failed,
        "reason": message.reason,
        "created_seconds": _seconds(message.create_time),
        "ended_seconds": _seconds(message.end_time) if message.HasField("end_time") else None,
    }


def key_json(message: fleet_pb2.SigningKey) -> dict[str, Any]:
    """A key as `prunewatch keys --json` says it."""
    return {
        "key_id": message.key_id,
        "public_key": message.public_key.hex(),
        "created_seconds": _seconds(message.create_time),
        "current": message.current,
    }


def _seconds(time: timestamp_pb2.Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124  (NaN: there is none)
