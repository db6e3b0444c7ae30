"""Frontiers in a store: children that a budget can pick from, kept beside the bundle of their parent.

    <store>/frontiers/<parent hash>/<batch>/frontier.json            facts; names the folder of the weights, and lists
                                                                     these with length and sha256
    <store>/frontiers/<parent hash>/<batch>/<folder>/N.safetensors   weights of child N (`fitted.save`)

A new frontier takes the place of an old one when its facts do, in one move. It can be built again at any time: what is
damaged, or was measured on another machine, is left aside.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.bundle import MAX_FILE_BYTES, FileEntry, digest, fsync_folder, write_durably
from detectors.errors import CorruptBundleError, PrunewatchError, disk_full
from detectors.failpoints import failpoint
from pruning.frontier_facts import FrontierFacts
from pruning.machine import machine
from server.layout import FRONTIERS

FACTS = "frontier.json"
SCHEMA_VERSION = 1
READS = 3  # a frontier that another one replaced while it was read is looked for again
SHOWN = (
    "units", "structure", "parameters", "bytes", "p50_seconds", "p99_seconds", "speedup", "error_ratio", "agreement",
    "injected_change", "on_front",
)  # fmt: skip
"""What is shown of a point, in this order."""

logger = logging.getLogger("prunewatch.frontiers")


class _File(BaseModel):
    """`frontier.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    parent: str
    batch: int
    machine: dict[str, str]
    created_seconds: float
    facts: FrontierFacts
    folder: str
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

    Raises:
        PrunewatchError: it can not be written (ExhaustedError: the disk is full); the one before is still there.
    """
    folder = _folder(store, parent, facts.batch)
    content = _File(
        schema_version=SCHEMA_VERSION,
        parent=parent,
        batch=facts.batch,
        machine=machine(),
        created_seconds=created_seconds,
        facts=facts,
        folder=uuid4().hex,
        weights=[FileEntry(bytes=len(each), sha256=digest(each)) for each in weights],
    )
    told = (json.dumps(content.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()
    own = folder / content.folder
    try:
        own.mkdir(parents=True)
        for i, each in enumerate(weights):
            write_durably(own / _weights_name(i), each)
        write_durably(own / FACTS, told)
        fsync_folder(own)
        failpoint("frontier.written")
        (own / FACTS).replace(folder / FACTS)
        failpoint("frontier.renamed")
        fsync_folder(folder)
    except OSError as error:
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # where there was none before
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full() from error
        raise PrunewatchError(
            f"the frontier can not be written: {error.strerror}.", field="store", hint="Mend that and ask again."
        ) from error
    _sweep(folder, content.folder)
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
        content, weights = _read_files(folder)
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


def glance_at_frontier(store: Path, parent: str, batch: int) -> StoredFrontier | None:
    """The facts of a frontier, to be looked at: without its weights, wherever it was measured; None where it is not."""
    try:
        content = _facts(_folder(store, parent, batch))
    except (OSError, ValueError, TypeError, RecursionError, ValidationError):
        return None  # whoever builds from it says what is wrong with it
    return StoredFrontier(content.facts, (), content.created_seconds)


def require_sound(folder: Path) -> None:
    """Reads and verifies a frontier wherever it was measured; CorruptBundleError if it is damaged."""
    try:
        _read_files(folder)
    except (OSError, ValueError, TypeError, RecursionError, ValidationError) as error:
        raise CorruptBundleError(f"the frontier is damaged ({type(error).__name__}).", field=str(folder)) from error


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
        for batch in folder.glob("*"):
            if not (batch / FACTS).is_file():
                shutil.rmtree(batch, ignore_errors=True)
            with suppress(OSError, ValueError):
                _sweep(batch, _facts(batch).folder)


def _sweep(folder: Path, current: str) -> None:
    """Removes the weights of other frontiers than the current one."""
    for other in folder.iterdir():
        if other.name not in {FACTS, current}:
            shutil.rmtree(other, ignore_errors=True)


def _folder(store: Path, parent: str, batch: int) -> Path:
    return store / FRONTIERS / parent / str(batch)


def _weights_name(place: int) -> str:
    return f"{place}.safetensors"


def _facts(folder: Path) -> _File:
    return _File.model_validate(json.loads((folder / FACTS).read_bytes()))


def _read_files(folder: Path, reads: int = READS) -> tuple[_File, list[bytes]]:
    content = _facts(folder)
    own = folder / Path(content.folder).name
    try:
        return content, [_read(own / _weights_name(i), entry) for i, entry in enumerate(content.weights)]
    except FileNotFoundError:
        if reads == 1:
            raise
        return _read_files(folder, reads - 1)


def _read(path: Path, entry: FileEntry) -> bytes:
    with path.open("rb") as file:
        content = file.read(min(entry.bytes, MAX_FILE_BYTES) + 1)
    if len(content) != entry.bytes or digest(content) != entry.sha256:
        raise ValueError(f"{path.name} is not what {FACTS} says")
    return content
