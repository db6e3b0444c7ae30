"""A store: one folder with everything that must survive a restart.

<root>/lock             held by the one process that uses the store
<root>/catalog.db       what exists (`server.catalog`)
<root>/bundles/<hash>/  published files (`detectors.bundle`); a folder that the catalog does not name is not published
<root>/history/<name>/  points kept for training (`server.history`)
<root>/detectors/       what the catalog can be rebuilt from (`server.detector_files`)
<root>/quarantine/      damaged files that `prunewatch doctor --rebuild` has put aside
<root>/tokens.json      hashes of the tokens that callers show (`server.security.tokens`); not in backups
<root>/tables/          latency tables of cycles (`pruning.table`); they are measured again where they are gone
<root>/golden/<name>/   what updates of a parent are judged on (`server.golden`)
<root>/frontiers/       children for budgets to come (`server.frontiers`); they are built again where they are gone
<root>/drift/           what drift is measured by (`server.drift_files`); learned anew where it is gone
<root>/keys/            what releases are signed with (`server.fleet.keys`); for its owner alone
<root>/staging/         whatever is only needed while somebody works on it; emptied on opening
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from detectors.bundle import Bundle, fsync_folder, read_bundle
from detectors.errors import NotFoundError, PreconditionError
from detectors.failpoints import failpoint
from server.catalog import Catalog
from server.collecting import OF_DETECTORS, collect, files_of, remove
from server.config import load_detector_config
from server.detector_files import path_of, write_detector_file
from server.frontiers import delete_frontiers, sweep_frontiers
from server.history import History
from server.layout import BUNDLES, CATALOG, DETECTORS, FRONTIERS, HISTORY, KEYS, LOCK, QUARANTINE, STAGING, TABLES
from server.lock import acquire
from server.spans import Span, Spans

logger = logging.getLogger("prunewatch.store")


class Store:
    """An open store. Use `Store.open`; close it, or use it as a context manager, to let others in."""

    def __init__(self, root: Path, catalog: Catalog, lock: BinaryIO) -> None:
        self.root = root
        self.catalog = catalog
        self._lock = lock
        self._publishing = threading.RLock()
        self._files = threading.Lock()
        catalog.changed = self._write_file

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
        lock = acquire(root / LOCK)
        try:
            for folder in (BUNDLES, HISTORY, STAGING):
                (root / folder).mkdir(exist_ok=True)
            catalog = Catalog(root / CATALOG)
            fsync_folder(root)
            failpoint("store.opened")
            _sweep(root)
            failpoint("store.swept")
            store = cls(root, catalog, lock)
            store.collect()
        except BaseException:
            lock.close()
            raise
        return store

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
            self.root / HISTORY / name,
            detector.features,
            max_rows=retention.max_rows,
            max_bytes=retention.max_bytes,
            max_age=retention.max_age,
            reservoir_rows=retention.reservoir_rows,
            labelled=lambda: Spans(Span.of(row) for row in self.catalog.labels(name) if row.label == "anomaly"),
        )

    def delete_detector(self, name: str) -> None:
        """Forgets a detector and removes its files. After a crash in the middle it is gone, files may be left."""
        self.remove_files(name, self.catalog.delete_detector(name))

    def remove_files(self, name: str, hashes: Iterable[str]) -> None:
        """Removes the files of a detector that was deleted, and those of its bundles."""
        self._remove_bundles(hashes)
        for path in files_of(self.root, name):
            remove(path)

    # what is let go

    @contextmanager
    def publishing(self, name: str) -> Iterator[None]:
        """While bundles of a detector become a version: no file goes meanwhile, and old versions go after it."""
        with self._publishing:
            yield
            self._let_versions_go(name)

    def tidy(self, spared: Collection[str] = ()) -> None:
        """Lets go what is too old: versions, pages of the book, files that nothing names. Takes a thread's time.

        Args:
            spared: Detectors that a trainer is at work on.
        """
        for detector in self.catalog.list_detectors():
            with self._publishing:
                self._let_versions_go(detector.name)
        self.catalog.bound_book()
        self.collect(spared)

    def collect(self, spared: Collection[str] = ()) -> None:
        """Removes files that nothing names any more, and writes the files of detectors that are not up to date."""
        with self._publishing:
            detectors = [row.name for row in self.catalog.list_detectors()]
            collect(self.root, self.catalog.named_bundles(), detectors, spared=spared)
        for name in detectors:
            self._write_file(name)

    def _let_versions_go(self, name: str) -> None:
        """The catalog first: after a crash in the middle files are left that nothing names. Nothing fails with it."""
        try:
            keep = load_detector_config(self.catalog.get_detector(name).config).versions.keep
            unnamed = self.catalog.let_versions_go(name, keep)
            failpoint("versions.let_go")
            self._remove_bundles(unnamed)
        except Exception:
            logger.exception("old versions of %s stay; it will be tried again", name)

    def _remove_bundles(self, hashes: Iterable[str]) -> None:
        for bundle_hash in hashes:
            shutil.rmtree(self.bundle_folder(bundle_hash), ignore_errors=True)
            delete_frontiers(self.root, bundle_hash)

    def _write_file(self, name: str) -> None:
        """Brings the file of a detector up to date; the catalog is what counts, so nothing fails with it."""
        with self._files:
            try:
                write_detector_file(self.root, self.catalog.facts(name))
            except NotFoundError:
                path_of(self.root, name).unlink(missing_ok=True)
            except Exception:
                logger.exception("the file of %s can not be written; it will be tried again", name)


def _check_layout(root: Path, *, create: bool) -> None:
    """Refuses a folder that is no store, before anything is written into it."""
    if (root / CATALOG).is_file() and (root / CATALOG).stat().st_size:
        return
    if root.exists() and not root.is_dir():
        raise PreconditionError("is not a folder.", field=str(root))
    there = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if CATALOG in there and not (root / CATALOG).stat().st_size:
        there.remove(CATALOG)  # a damaged disk leaves such: it is no catalog
    if any(part in there and any((root / part).iterdir()) for part in (BUNDLES, DETECTORS)):
        raise PreconditionError(
            f"has bundles but no {CATALOG}.",
            field=str(root),
            hint="Restore a backup, or make a new catalog with `prunewatch doctor --rebuild`.",
        )
    if not create and CATALOG not in there:
        raise NotFoundError(
            "there is no store here.", field=str(root), hint="Make one with `prunewatch fit` or `prunewatch serve`."
        )
    beside = {LOCK, BUNDLES, STAGING, TABLES, FRONTIERS, KEYS, QUARANTINE, *OF_DETECTORS}
    if {name for name in there - beside if not name.startswith(f"{CATALOG}-")}:
        raise PreconditionError("holds other files and is not a store.", field=str(root), hint="Name an empty folder.")


def _sweep(root: Path) -> None:
    """Removes what a process that was killed left half-done."""
    shutil.rmtree(root / STAGING)
    (root / STAGING).mkdir()
    for partial in (root / BUNDLES).glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for partial in (root / TABLES).glob("*.partial"):
        partial.unlink(missing_ok=True)
    sweep_frontiers(root, root / BUNDLES)
