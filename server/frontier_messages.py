"""A frontier as a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunewatch.v1 import pruning_pb2 as pb
from server.config import PARENT
from server.messages import made_bundle, unit_counts
from server.names import detector_name
from server.timestamps import timestamp


def frontier_message(shown: Mapping[str, Any]) -> pb.Frontier:
    """What `StoredFrontier.shown` says."""
    return pb.Frontier(
        name=detector_name(shown["name"]),
        device_class=shown["device_class"],
        batch=shown["batch"],
        parent=made_bundle(shown["parent"], PARENT),
        points=[pb.FrontierPoint(**{**point, "units": unit_counts(point["units"])}) for point in shown["points"]],
        create_time=timestamp(shown["created_seconds"]),
    )
