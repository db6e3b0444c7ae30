"""A frontier as a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunewatch.v1 import detectors_pb2 as detectors_pb
from prunewatch.v1 import pruning_pb2 as pb
from server.config import PARENT
from server.names import detector_name
from server.timestamps import timestamp

FACTS = ("hash", "version", "parameters", "bytes", "p50_seconds", "p99_seconds", "error")


def frontier_message(shown: Mapping[str, Any]) -> pb.Frontier:
    """What `StoredFrontier.shown` says."""
    parent = shown["parent"]
    known: dict[str, Any] = {name: parent[name] for name in FACTS if parent.get(name) is not None}
    return pb.Frontier(
        name=detector_name(shown["name"]),
        device_class=shown["device_class"],
        batch=shown["batch"],
        parent=detectors_pb.BundleFacts(device_class=PARENT, units=_units(parent["units"]), **known),
        points=[pb.FrontierPoint(**{**point, "units": _units(point["units"])}) for point in shown["points"]],
        create_time=timestamp(shown["created_seconds"]),
    )


def _units(units: Mapping[str, int]) -> list[detectors_pb.UnitCount]:
    return [detectors_pb.UnitCount(group=group, units=count) for group, count in units.items()]
