"""Puts a backup (`server.backup`) back where there is no store yet: the whole of it, verified, or nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from detectors.bundle import fsync_folder, read_bundle
from detectors.errors import NotFoundError, PreconditionError
from detectors.failpoints import failpoint
from detectors.trial import try_bundles
from server.backup import CONTENTS, SCHEMA_VERSION, Contents, Entry
from server.catalog_check import Named, look_into
from server.layout import BUNDLES, CATALOG, KEYS, LOCK, STAGING

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}){0,4}")
"""Of a member: no `..`, nothing absolute, nothing hidden."""
RESTORING = ".restoring"
"""Lies in the folder as long as it is no store."""
CHUNK_BYTES = 1 << 20


def restore(backup: Path, root: Path) -> Named:
    """Makes the store of a backup in the folder `root`, which must not exist or be empty.

    The catalog is moved into its place last: until then nobody takes the folder for a store.

    Args:
        backup: A file that `back_up` wrote.
        root: The folder.

    Returns:
        What the store has.

    Raises:
        NotFoundError: there is no such file.
        PreconditionError: it is no whole backup, or `root` is not empty; nothing is left behind.
        NewerStoreError: it was written by a newer prunewatch.
        CorruptBundleError: a bundle in it is not what its name says.
    """
    if not backup.is_file():
        raise NotFoundError("there is no such file.", field=str(backup))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PreconditionError("is not an empty folder.", field=str(root), hint="Name one that does not exist yet.")
    existed = root.exists()
    inside = root / RESTORING
    inside.mkdir(parents=True)
    moved: list[Path] = []
    try:
        named = _unpacked(backup, inside)
        for path in sorted(inside.iterdir(), key=lambda path: path.name == CATALOG):
            if path.name == CATALOG:
                fsync_folder(root)
                failpoint("restore.before_catalog")
            moved.append(path.rename(root / path.name))
        inside.rmdir()
    except BaseException:
        for path in (*moved, inside):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if not existed:
            root.rmdir()
        raise
    fsync_folder(root)
    fsync_folder(root.absolute().parent)
    return named


def _unpacked(backup: Path, folder: Path) -> Named:
    try:
        with tarfile.open(backup, "r:") as archive:
            found, contents = _extract(archive, folder)
    except (tarfile.TarError, EOFError, ValidationError) as error:
        raise _no_backup(backup, "it can not be read to its end") from error
    except _RefusedError as error:
        raise _no_backup(backup, str(error)) from error
    if contents is None:
        raise _no_backup(backup, "it ends early")
    if contents.schema_version > SCHEMA_VERSION:
        raise _no_backup(backup, "it was written by a newer prunewatch")
    if changed := sorted(name for name in {*found, *contents.files} if found.get(name) != contents.files.get(name)):
        raise _no_backup(backup, f"{changed[0]} is not what it was")
    for each in sorted({path.parent for path in folder.rglob("*")}, reverse=True):
        fsync_folder(each)
    named = look_into(folder / CATALOG)
    for bundle_hash in named.bundles:
        read_bundle(folder / BUNDLES / bundle_hash, bundle_hash, weights=True)
    try_bundles([folder / BUNDLES / bundle_hash for bundle_hash in named.bundles])
    return named


class _RefusedError(Exception):
    """A member that no backup has."""


def _extract(archive: tarfile.TarFile, folder: Path) -> tuple[dict[str, Entry], Contents | None]:
    found: dict[str, Entry] = {}
    contents: Contents | None = None
    for member in archive:
        name, content = member.name, archive.extractfile(member) if member.type == tarfile.REGTYPE else None
        top = name.split("/")[0]
        if content is None or member.sparse is not None or not NAME.fullmatch(name) or top in {LOCK, STAGING}:
            raise _RefusedError(f"it has the member {name[:80]!r}")
        if name in found or contents is not None:
            raise _RefusedError(f"it has {name[:80]!r} out of turn")
        if name == CONTENTS:
            contents = Contents.model_validate_json(content.read())
        else:
            found[name] = _write(folder / name, content)
            if top == KEYS:
                (folder / name).chmod(0o600)
    return found, contents


def _write(path: Path, content: IO[bytes]) -> Entry:
    path.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        while chunk := content.read(CHUNK_BYTES):
            file.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Entry(bytes=size, sha256=sha256.hexdigest())


def _no_backup(backup: Path, why: str) -> PreconditionError:
    return PreconditionError(f"is no whole backup: {why}.", field=str(backup), hint="Take another one.")
