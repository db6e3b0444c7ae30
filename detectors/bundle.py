"""A bundle: the immutable, content-addressed files of one published detector.

    <folder>/manifest.json        what it is; lists every other file with length and sha256
    <folder>/step.onnx            the whole detector as one graph (`detectors.runtime`)
    <folder>/weights.safetensors  on the hub only: what training needs to go on from here

The bundle's hash is the sha256 of `manifest.json`; since the manifest names the hash of every other file, the one hash
covers all bytes. Nothing that is measured or decided later (latency, releases, who serves it) is inside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detectors.errors import CorruptBundleError, NewerStoreError
from detectors.failpoints import failpoint

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GRAPH = "step.onnx"
WEIGHTS = "weights.safetensors"
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"  # of detectors and device classes; also a safe file and label name
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20


class FileEntry(BaseModel):
    """Length and digest of one file of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class NetworkInfo(BaseModel):
    """Kind and sizes of the network inside a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    units: dict[str, int]
    """Hidden units by group, in the order of the forward pass."""
    parameters: int
    macs: int
    """Multiply-accumulates of the network for one point."""
    options: dict[str, int | float | str | bool] = {}
    """What else is needed to build the same network again (window, bottleneck, ...)."""


class Lineage(BaseModel):
    """Where a bundle came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cause: Literal["fit", "update", "prune"]
    parent: str | None = None
    """Hash of the dense parent bundle this one was derived from; None for a first fit."""
    kept: dict[str, list[int]] = {}
    """Indices of the parent's units that are still here, by group."""
    criterion: str | None = None
    seed: int
    data_rows: int
    data_first_stamp: int | None = None
    data_last_stamp: int | None = None


class Manifest(BaseModel):
    """What a bundle is. `manifest.json` is this model as JSON with sorted keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION
    detector: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    device_class: str = Field(pattern=NAME_PATTERN)
    """The class it was made for; `parent` for a dense parent."""
    network: NetworkInfo
    features: list[str] = Field(min_length=1, max_length=4096)
    warm_up_points: int = Field(ge=0, le=1 << 20)
    """Points of a series that must have gone before until a score means something."""
    gate: dict[str, Any] | None = None
    """The decisions that let it in, as `pruning.gate` wrote them; None for parents of a first fit."""
    lineage: Lineage
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory: the very bytes that were hashed are the ones that get loaded."""

    hash: str
    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def graph(self) -> bytes:
        """The ONNX step graph."""
        return self.files[GRAPH]

    @property
    def size(self) -> int:
        """Bytes of the step graph, the file a device holds."""
        return len(self.files[GRAPH])


def digest(content: bytes) -> str:
    """Sha256 of `content` in lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def make_bundle(files: Mapping[str, bytes], **fields: Any) -> Bundle:
    """Builds a bundle in memory; `fields` are those of `Manifest` but `files`."""
    entries = {name: FileEntry(bytes=len(content), sha256=digest(content)) for name, content in sorted(files.items())}
    manifest = Manifest(files=entries, **fields)
    return Bundle(digest(_encode(manifest)), manifest, dict(files))


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes a bundle into a new `folder` and makes every byte durable before it returns.

    The folder appears whole or not at all: files are written and fsynced beside it, then renamed into place.
    A folder that is already there is left as it is (the same hash is the same content); it counts as written now, so
    that nobody takes it for one that was forgotten.
    """
    with suppress(FileNotFoundError):
        os.utime(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")  # one a writer, also among threads
    staging.mkdir()
    failpoint("bundle.begun")
    for name, content in {**bundle.files, MANIFEST: _encode(bundle.manifest)}.items():
        write_durably(staging / name, content)
        failpoint("bundle.file_written")
    fsync_folder(staging)
    failpoint("bundle.before_rename")
    try:
        staging.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        for file_path in staging.iterdir():  # somebody else published the same bytes first
            file_path.unlink()
        staging.rmdir()
    failpoint("bundle.renamed")
    fsync_folder(folder.parent)
    failpoint("bundle.durable")


def read_bundle(folder: Path, expected_hash: str | None = None, *, weights: bool = False) -> Bundle:
    """Reads and verifies a bundle.

    Args:
        folder: Where it lies.
        expected_hash: Refuse anything else.
        weights: Also read `weights.safetensors` (only training needs it).

    Raises:
        CorruptBundleError: a file is missing, has another length or digest, or the manifest is not one.
        NewerStoreError: the manifest has a schema version this program does not know.
    """
    raw = _read_limited(folder / MANIFEST, MAX_MANIFEST_BYTES)
    found = digest(raw)
    if expected_hash is not None and found != expected_hash:
        raise CorruptBundleError(
            f"its hash is {found[:12]}, not {expected_hash[:12]}.",
            field=str(folder / MANIFEST),
            hint="Roll back to another version or fit it again.",
        )
    manifest = decode_manifest(raw, folder / MANIFEST)
    files: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        if name not in {GRAPH, WEIGHTS}:
            raise CorruptBundleError(f"lists the unknown file {name!r}.", field=str(folder / MANIFEST))
        if name == WEIGHTS and not weights:
            continue
        content = _read_limited(folder / name, entry.bytes)
        if len(content) != entry.bytes or digest(content) != entry.sha256:
            raise CorruptBundleError(
                f"has {len(content)} bytes and does not match its manifest (expected {entry.bytes} bytes, sha256 "
                f"{entry.sha256[:12]}).",
                field=str(folder / name),
                hint="Roll back to another version or fit it again.",
            )
        files[name] = content
    if GRAPH not in files:
        raise CorruptBundleError(f"lists no {GRAPH}.", field=str(folder / MANIFEST))
    return Bundle(found, manifest, files)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and makes its bytes durable; its name is only when its folder is."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        failpoint("file.before_fsync")
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Makes a folder, with those above it, and makes their names durable; one that is there is fine."""
    missing = [it for it in (folder, *folder.parents) if not it.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync_folder(made.parent)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` that durably takes its place when the block ends; where that fails nothing changes."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable (a directory entry is data of the directory)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        failpoint("folder.before_fsync")
        os.fsync(fd)
    finally:
        os.close(fd)


def _encode(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


def decode_manifest(raw: bytes, path: Path) -> Manifest:
    """Parses the bytes of a manifest; `path` is named in errors.

    Raises:
        CorruptBundleError: they are none.
        NewerStoreError: the manifest has a schema version this program does not know.
    """
    try:
        fields = json.loads(raw)
        if isinstance(fields, dict) and int(fields.get("schema_version", 0)) > SCHEMA_VERSION:
            raise NewerStoreError(
                f"was written by a newer prunewatch (schema {fields['schema_version']}; this reads {SCHEMA_VERSION}).",
                field=str(path),
                hint="Upgrade prunewatch.",
            )
        return Manifest.model_validate(fields)
    except (ValueError, TypeError, OverflowError, RecursionError, ValidationError) as error:
        raise CorruptBundleError("is not a bundle manifest.", field=str(path)) from error


def _read_limited(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptBundleError("is missing.", field=str(path)) from error
