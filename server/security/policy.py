"""What each call needs: one table. What is not in it needs `admin`, so that a new call is closed until it is named."""

from __future__ import annotations

from collections.abc import Mapping

from server.security.principals import Scope

OPEN = None
"""Anybody may: it gives nothing away, or asks for its own proof."""
_SERVICES: Mapping[str, Mapping[str, Scope | None]] = {
    "grpc.health.v1.Health": {"*": OPEN},
    "grpc.reflection.v1.ServerReflection": {"*": "score"},
    "grpc.reflection.v1alpha.ServerReflection": {"*": "score"},
    "prunewatch.v1.ScoringService": {"*": "score", "ResetSeries": "operate", "DeleteSeries": "operate"},
    "prunewatch.v1.DetectorService": {
        **dict.fromkeys(("GetDetector", "ListDetectors", "ListVersions"), "score"),
        "CreateDetector": "admin",
        "DeleteDetector": "admin",
        "*": "operate",
    },
    "prunewatch.v1.PruningService": {
        "*": "operate",
        "GetFrontier": "score",
        "ListCycles": "score",
        "WatchCycles": "score",
    },
    "prunewatch.v1.FeedbackService": {"*": "operate", "ListFeedback": "score", "ListMaintenanceWindows": "score"},
    "prunewatch.v1.FleetService": {
        **dict.fromkeys(("ListDevices", "GetDevice", "ListRollouts", "GetRollout"), "operate"),
        **dict.fromkeys(("ListDeviceClasses", "GetDeviceClass", "AdvanceRollout", "StopRollout"), "operate"),
        "*": "admin",
    },
    "prunewatch.v1.DeviceService": {"*": OPEN},
    "google.longrunning.Operations": {"*": "operate", "DeleteOperation": "admin"},
    "inference.GRPCInferenceService": {"*": "score", "ServerLive": OPEN, "ServerReady": OPEN},
}


def required(method: str) -> Scope | None:
    """The scope that `/package.Service/Method` needs; None: none at all.

    >>> required("/prunewatch.v1.ScoringService/Score"), required("/unheard.of/Call")
    ('score', 'admin')
    """
    service, _, name = method.removeprefix("/").rpartition("/")
    table = _SERVICES.get(service)
    if table is None:
        return "admin"
    return table[name] if name in table else table.get("*", "admin")
