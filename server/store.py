"""A store: one folder with everything that must survive a restart.

<root>/lock             held by the one process that uses the store
<root>/catalog.db       what exists (`server.catalog`)
<root>/bundles/<hash>/  published files (`detectors.bundle`); a folder that the catalog does not name is not published
<root>/history/<name>/  points kept for training (`server.history`)
<root>/tables/          latency tables of cycles (`pruning.table`); they are measured again where they are gone
<root>/frontiers/       children for budgets to come (`server.frontiers`); they are built again where they are gone
<root>/staging/         whatever is only needed while somebody works on it; emptied on opening
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from detectors.bundle import Bundle, fsync_folder, read_bundle
from detectors.errors import NotFoundError, PreconditionError, StoreInUseError
from server.catalog import Catalog
from server.config import load_detector_config
from server.frontiers import delete_frontiers, sweep_frontiers
from server.history import History

CATALOG = "catalog.db"
LOCK = "lock"
BUNDLES = "bundles"
TABLES = "tables"
HISTORY = "history"
STAGING = "staging"


class Store:
    """An open store. Use `Store.open`; close it, or use it as a context manager, to let others in."""

    def __init__(self, root: Path, catalog: Catalog, lock: BinaryIO) -> None:
        self.root = root
        self.catalog = catalog
        self._lock = lock

    @classmethod
    def open(cls, root: Path, *, create: bool = True) -> Self:
        """Opens the store at `root` for this process alone.

        Args:
            root: The folder.
            create: Make a new store where there is none.

        Raises:
            NotFoundError: there is no store and `create` is False.
            StoreInUseError: another process holds it.
            NewerStoreError: it was written by a newer prunewatch.
            PreconditionError: the folder holds something else, or the catalog is missing or damaged.
        """
        root = root.absolute()
        _check_layout(root, create=create)
        root.mkdir(parents=True, exist_ok=True)
        lock = _acquire(root / LOCK)
        try:
            for folder in (BUNDLES, HISTORY, STAGING):
                (root / folder).mkdir(exist_ok=True)
            catalog = Catalog(root / CATALOG)
            fsync_folder(root)
            _sweep(root)
        except BaseException:
            lock.close()
            raise
        return cls(root, catalog, lock)

    def close(self) -> None:
        """Lets others in; closing twice is fine."""
        self.catalog.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def staging(self) -> Path:
        """A folder for files that nobody needs after a restart."""
        return self.root / STAGING

    def bundle_folder(self, bundle_hash: str) -> Path:
        """Where a bundle lies, or would lie."""
        return self.root / BUNDLES / bundle_hash

    def read_bundle(self, bundle_hash: str, *, weights: bool = False) -> Bundle:
        """Reads and verifies a bundle; CorruptBundleError when it is not what its name says."""
        return read_bundle(self.bundle_folder(bundle_hash), bundle_hash, weights=weights)

    def history(self, name: str) -> History:
        """The history of a detector. Open it once: whoever appends must be the only one.

        Raises:
            NotFoundError: there is no such detector.
            PreconditionError: its features are not known yet.
        """
        detector = self.catalog.get_detector(name)
        if detector.features is None:
            raise PreconditionError(
                f"the features of {name!r} are not known yet.", field="features", hint="Score or fit some points first."
            )
        retention = load_detector_config(detector.config).history
        return History(
            self.root / HISTORY / name, detector.features, max_rows=retention.max_rows, max_bytes=retention.max_bytes
        )

    def delete_detector(self, name: str) -> None:
        """Forgets a detector and removes its files. After a crash in the middle it is gone, files may be left."""
        for bundle_hash in self.catalog.delete_detector(name):
            shutil.rmtree(self.bundle_folder(bundle_hash), ignore_errors=True)
            delete_frontiers(self.root, bundle_hash)
        shutil.rmtree(self.root / HISTORY / name, ignore_errors=True)


def _check_layout(root: Path, *, create: bool) -> None:
    """Refuses a folder that is no store, before anything is written into it."""
    if (root / CATALOG).is_file() and (root / CATALOG).stat().st_size:
        return
    if root.exists() and not root.is_dir():
        raise PreconditionError("is not a folder.", field=str(root))
    there = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if CATALOG in there and not (root / CATALOG).stat().st_size:
        there.remove(CATALOG)  # a damaged disk leaves such: it is no catalog
    if not create and CATALOG not in there:
        raise NotFoundError(
            "there is no store here.", field=str(root), hint="Make one with `prunewatch fit` or `prunewatch serve`."
        )
    if there - {LOCK, BUNDLES, HISTORY, STAGING, f"{CATALOG}-wal", f"{CATALOG}-shm", f"{CATALOG}-journal"}:
        raise PreconditionError("holds other files and is not a store.", field=str(root), hint="Name an empty folder.")
    if BUNDLES in there and any((root / BUNDLES).iterdir()):
        raise PreconditionError(f"has bundles but no {CATALOG}.", field=str(root), hint="Restore it from a copy.")


def _acquire(path: Path) -> BinaryIO:
    """Takes the lock; the kernel lets go of it when the process ends, however it ends."""
    lock = path.open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(32).decode(errors="replace").strip()
        lock.close()
        raise StoreInUseError(
            f"another process{f' ({holder})' if holder else ''} uses this store.",
            field=str(path.parent),
            hint="Talk to it with --server HOST:PORT, or stop it.",
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}\n".encode())
    lock.flush()
    return lock


def _sweep(root: Path) -> None:
    """Removes what a process that was killed left half-done."""
    shutil.rmtree(root / STAGING)
    (root / STAGING).mkdir()
    for partial in (root / BUNDLES).glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for partial in (root / TABLES).glob("*.partial"):
        partial.unlink(missing_ok=True)
    sweep_frontiers(root, root / BUNDLES)
