"""What drift is measured by, over a restart: <store>/drift/NAME.json, written whole or not at all.

Where it is lost or damaged a reference is learned anew.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from uuid import uuid4

from detectors.bundle import fsync_folder, write_durably
from server.drift import Drift
from server.layout import DRIFT

logger = logging.getLogger(__name__)


def write_drift(root: Path, name: str, drift: Drift) -> None:
    """Makes what was counted so far durable in the store at `root`."""
    path = _path(root, name)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        write_durably(partial, json.dumps(drift.to_json()).encode())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def read_drift(root: Path, name: str, window: int) -> Drift:
    """What was counted of a detector; nothing yet where that is not to be had."""
    path = _path(root, name)
    try:
        return Drift.from_json(window, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return Drift(window)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        logger.warning("what drift of %s is measured by is not readable; it is learned anew", name)
        return Drift(window)


def _path(root: Path, name: str) -> Path:
    return root / DRIFT / f"{name}.json"
