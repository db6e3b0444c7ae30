"""What drift is measured by, over a restart: <store>/drift/NAME.json, written whole or not at all.

Where it is lost or damaged a reference is learned anew.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from detectors.bundle import replaced, write_durably
from server.drift import Drift
from server.layout import DRIFT

logger = logging.getLogger("prunewatch.drift_files")


def write_drift(root: Path, name: str, drift: Drift) -> None:
    """Makes what was counted so far durable in the store at `root`."""
    path = _path(root, name)
    path.parent.mkdir(exist_ok=True)
    with replaced(path) as partial:
        write_durably(partial, json.dumps(drift.to_json()).encode())


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
