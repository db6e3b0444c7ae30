"""Etags: what a caller has seen of a detector, so that it never changes what somebody else has changed meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection

from detectors.errors import ConflictError
from server import rows
from server.records import DetectorRow, Serving

LENGTH = 16
"""Hex digits of an etag."""


def etag_of(row: DetectorRow, serving: Sequence[Serving]) -> str:
    """Another one whenever the configuration, the freeze, what serves or a pin is; progress of a fit changes nothing.

    Args:
        row: The detector.
        serving: What serves on each of its device classes.
    """
    seen = {
        "created": row.created,
        "config": row.config,
        "frozen": row.frozen,
        "serving": sorted((asdict(it) for it in serving), key=lambda it: str(it["device_class"])),
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:LENGTH]


def require(connection: Connection, name: str, etag: str) -> None:
    """Refuses a change of a detector that is not as the caller has seen it; an empty `etag` takes it as it is.

    Raises:
        NotFoundError: there is no such detector.
        ConflictError: it was changed since.
    """
    row = rows.require_detector(connection, name)
    if etag and etag != etag_of(row, rows.list_serving(connection, name)):
        raise ConflictError(f"{name!r} was changed since.", field="etag", hint="Read it again, then repeat.")
