"""Frontiers in a store: children that a budget can pick from, kept beside the bundle of their parent.

    <store>/frontiers/<parent hash>/<batch>/frontier.json   facts; lists the weights with length and sha256
    <store>/frontiers/<parent hash>/<batch>/N.safetensors   weights of child N (`detectors.training.fitted.save`)

A frontier can be built again at any time: what is damaged, or was measured on another machine, is left aside.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import onnxruntime
from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.bundle import MAX_FILE_BYTES, FileEntry, digest, fsync_folder
from pruning.frontier_facts import FrontierFacts

FRONTIERS = "frontiers"
FACTS = "frontier.json"
SCHEMA_VERSION = 1
SHOWN = (
    "units", "structure", "parameters", "bytes", "p50_seconds", "p99_seconds", "speedup", "error_ratio", "agreement",
    "injected_change", "on_front",
)  # fmt: skip
"""What is shown of a point, in this order."""

logger = logging.getLogger(__name__)


class _File(BaseModel):
    """`frontier.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    parent: str
    batch: int
    machine: dict[str, str]
    created_seconds: float
    facts: FrontierFacts
    weights: list[FileEntry]


@dataclass(frozen=True)
class StoredFrontier:
    """A frontier as it was read, every byte verified.

    Attributes:
        facts: What is known of the children.
        weights: Of each child.
        created_seconds: When it was built, in seconds since the epoch.
    """

    facts: FrontierFacts
    weights: tuple[bytes, ...]
    created_seconds: float

    def shown(self, detector: str, device_class: str) -> dict[str, Any]:
        """As `prunewatch frontier --json` prints it."""
        parent = self.facts.parent
        return {
            "name": detector,
            "device_class": device_class,
            "batch": self.facts.batch,
            "created_seconds": self.created_seconds,
            "parent": {
                "hash": parent.hash,
                "version": parent.version,
                "units": parent.units,
                "parameters": parent.parameters,
                "bytes": parent.bytes,
                "p50_seconds": parent.p50_seconds,
                "p99_seconds": parent.p99_seconds,
                "error": parent.error,
            },
            "points": [{name: getattr(point, name) for name in SHOWN} for point in self.facts.points],
        }


def write_frontier(
    store: Path, parent: str, facts: FrontierFacts, weights: Sequence[bytes], created_seconds: float
) -> StoredFrontier:
    """Writes a frontier in the place of the one before, whole or not at all.

    Args:
        store: The store's folder.
        parent: Hash of the dense parent's bundle.
        facts: Of the children.
        weights: Of each child.
        created_seconds: Now, in seconds since the epoch.
    """
    folder = _folder(store, parent, facts.batch)
    content = _File(
        schema_version=SCHEMA_VERSION,
        parent=parent,
        batch=facts.batch,
        machine=machine(),
        created_seconds=created_seconds,
        facts=facts,
        weights=[FileEntry(bytes=len(each), sha256=digest(each)) for each in weights],
    )
    files = {_weights_name(i): each for i, each in enumerate(weights)}
    files[FACTS] = (json.dumps(content.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging, aside = (folder.with_name(f".{folder.name}.{uuid4().hex}.partial") for _ in range(2))
    staging.mkdir()
    for name, each in files.items():
        with (staging / name).open("wb") as file:
            file.write(each)
            file.flush()
            os.fsync(file.fileno())
    fsync_folder(staging)
    if folder.exists():
        folder.rename(aside)
    staging.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return StoredFrontier(facts, tuple(weights), created_seconds)


def read_frontier(store: Path, parent: str, batch: int) -> StoredFrontier | None:
    """Reads and verifies the frontier of a parent; None where there is none that can be used here.

    Args:
        store: The store's folder.
        parent: Hash of the dense parent's bundle.
        batch: Points a step.
    """
    folder = _folder(store, parent, batch)
    if not folder.is_dir():
        return None
    try:
        content = _File.model_validate(json.loads((folder / FACTS).read_bytes()))
        weights = [_read(folder / _weights_name(i), entry) for i, entry in enumerate(content.weights)]
    except (OSError, ValueError, TypeError, RecursionError, ValidationError) as error:
        logger.warning("the frontier in %s is damaged (%s) and not used", folder, type(error).__name__)
        return None
    facts = content.facts
    if content.schema_version != SCHEMA_VERSION or (content.parent, content.batch, facts.batch) != (
        parent,
        batch,
        batch,
    ):
        logger.warning("the frontier in %s is not the one that should be there and not used", folder)
        return None
    if len(facts.points) != len(weights):
        logger.warning("the frontier in %s lacks weights and is not used", folder)
        return None
    if content.machine != machine():
        logger.warning("the frontier in %s was measured on another machine or runtime and is not used", folder)
        return None
    return StoredFrontier(facts, tuple(weights), content.created_seconds)


def delete_frontiers(store: Path, parent: str) -> None:
    """Removes all frontiers of a parent."""
    shutil.rmtree(store / FRONTIERS / parent, ignore_errors=True)


def sweep_frontiers(store: Path, bundles: Path) -> None:
    """Removes what a process that was killed left half-done, and frontiers whose parent is gone.

    Args:
        store: The store's folder.
        bundles: Its folder of bundles.
    """
    for folder in (store / FRONTIERS).glob("*"):
        if not (bundles / folder.name).is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        for partial in folder.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)


def machine() -> dict[str, str]:
    """What measured times depend on beside the graphs."""
    return {
        "node": platform.node(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "runtime": onnxruntime.__version__,
    }


def _folder(store: Path, parent: str, batch: int) -> Path:
    return store / FRONTIERS / parent / str(batch)


def _weights_name(place: int) -> str:
    return f"{place}.safetensors"


def _read(path: Path, entry: FileEntry) -> bytes:
    with path.open("rb") as file:
        content = file.read(min(entry.bytes, MAX_FILE_BYTES) + 1)
    if len(content) != entry.bytes or digest(content) != entry.sha256:
        raise ValueError(f"{path.name} is not what {FACTS} says")
    return content
