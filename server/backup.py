"""A store as one file, taken while a server works on it.

A backup is a plain tar: the files of the store, then `backup.json` with the length and sha256 of each. One that ends
early lacks it and is refused. Signing keys are in it, so that devices know the hub again that is made of it; then
only its owner may read the file. Latency tables and frontiers are left out: they
are of one machine and are made again. So is the state of series: it goes on from the history.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from detectors.bundle import fsync_folder, read_bundle
from detectors.errors import AlreadyExistsError, CorruptBundleError, ExhaustedError, NotFoundError
from detectors.failpoints import failpoint
from server.catalog_check import look_into, open_read_only
from server.layout import BUNDLES, CATALOG, FRONTIERS, KEYS, LOCK, QUARANTINE, SERIES, STAGING, TABLES

CONTENTS = "backup.json"
SCHEMA_VERSION = 1
ATTEMPTS = 5
LEFT_OUT = {LOCK, BUNDLES, STAGING, TABLES, FRONTIERS, QUARANTINE, SERIES}
"""Of the top of a store; bundles are taken as the catalog names them."""
PARTIAL = ".partial"


class Entry(BaseModel):
    """Length and digest of a file of a backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Contents(BaseModel):
    """`backup.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    created_seconds: float
    files: dict[str, Entry]


def back_up(root: Path, out: Path) -> Contents:
    """Writes the store at `root` into the new file `out`, whole or not at all; a server may be working on it.

    Args:
        root: The store's folder.
        out: A tar file that does not exist yet.

    Raises:
        NotFoundError: there is no store.
        AlreadyExistsError: there is a file `out`.
        CorruptBundleError: a bundle that the catalog names is damaged.
        PreconditionError: the catalog is damaged.
        ExhaustedError: the store changed under the copy again and again.
    """
    if not (root / CATALOG).is_file():
        raise NotFoundError("there is no store here.", field=str(root), hint="Name the folder with --store.")
    if out.exists():
        raise AlreadyExistsError("is there already.", field=str(out), hint="Choose another name.")
    partial = out.absolute().with_name(f".{out.name}.{uuid4().hex}{PARTIAL}")
    try:
        contents = _written(root, partial)
        failpoint("backup.before_rename")
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(partial.parent)
    return contents


def _written(root: Path, partial: Path) -> Contents:
    """Begins anew where the server has let a file go meanwhile."""
    damaged: CorruptBundleError | None = None
    for _ in range(ATTEMPTS):
        try:
            return _write(root, partial)
        except CorruptBundleError as error:
            damaged = error
        except FileNotFoundError:
            damaged = None
    if damaged is not None:
        raise damaged
    raise ExhaustedError("changed under the copy again and again.", field=str(root), hint="Try again in a minute.")


def _write(root: Path, partial: Path) -> Contents:
    catalog = partial.with_suffix(".db")
    entries: dict[str, Entry] = {}
    try:
        _copy_catalog(root / CATALOG, catalog)
        named = look_into(catalog)
        with partial.open("wb") as file:
            if (root / KEYS).is_dir():
                partial.chmod(0o600)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                entries[CATALOG] = _add(archive, CATALOG, catalog.read_bytes())
                for path in (*_bundle_files(root, sorted(named.bundles)), *_others(root)):
                    name = path.relative_to(root).as_posix()
                    entries[name] = _add(archive, name, path.read_bytes())
                contents = Contents(schema_version=SCHEMA_VERSION, created_seconds=time.time(), files=entries)
                _add(archive, CONTENTS, contents.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
    finally:
        catalog.unlink(missing_ok=True)
    return contents


def _copy_catalog(path: Path, copy: Path) -> None:
    """As it is at one moment, while others write."""
    with closing(open_read_only(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it


def _bundle_files(root: Path, hashes: list[str]) -> Iterator[Path]:
    for bundle_hash in hashes:
        folder = root / BUNDLES / bundle_hash
        bundle = read_bundle(folder, bundle_hash, weights=True)
        yield from (folder / name for name in sorted({"manifest.json", *bundle.manifest.files}))


def _others(root: Path) -> Iterator[Path]:
    """Histories and whatever else belongs to detectors."""
    for top in sorted(root.iterdir()):
        if top.name in LEFT_OUT or top.name.startswith((CATALOG, ".")) or top.is_symlink():
            continue
        paths = sorted(top.rglob("*")) if top.is_dir() else [top]
        yield from (
            path for path in paths if path.is_file() and not path.is_symlink() and not path.name.endswith(PARTIAL)
        )


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> Entry:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(content))
    return Entry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
