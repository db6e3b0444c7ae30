"""Files of a store that nothing names any more: bundles that were never published, and what gone detectors left.

Whatever was written less than an hour ago stays: somebody may be about to publish it.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from uuid import uuid4

from detectors.bundle import MANIFEST
from server.layout import BUNDLES, DETECTORS, DRIFT, FRONTIERS, GOLDEN, HISTORY, SERIES, TABLES

OF_DETECTORS = (HISTORY, GOLDEN, DETECTORS, DRIFT, SERIES)
"""Folders with a folder or file for each detector, called after it."""
GRACE_SECONDS = 3600.0
TABLES_KEPT_SECONDS = 90 * 86400.0
"""Then a latency table is measured again."""
logger = logging.getLogger("prunewatch.collecting")


def collect(
    root: Path,
    bundles: Collection[str],
    detectors: Collection[str],
    *,
    spared: Collection[str] = (),
    grace_seconds: float = GRACE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> list[Path]:
    """Removes what nothing names; nothing may be published meanwhile (`Store.publishing`).

    Args:
        root: The store's folder.
        bundles: Hashes that the catalog names.
        detectors: Those there are.
        spared: Detectors whose new bundles stay, however old they look.
        grace_seconds: What is younger stays.
        clock: Seconds since the epoch, as files have them.

    Returns:
        What was removed.
    """
    before = clock() - grace_seconds
    orphans = [
        path
        for path in orphaned(root, bundles, detectors)
        if _written(path) < before and not (spared and _detector_of(path) in spared)
    ]
    orphans += [path for path in (root / TABLES).glob("*.json") if _written(path) < clock() - TABLES_KEPT_SECONDS]
    removed = [path for path in orphans if _remove(path, before)]
    if removed:
        logger.info("removed %d files and folders that nothing names any more", len(removed))
    return removed


def orphaned(root: Path, bundles: Collection[str], detectors: Collection[str]) -> list[Path]:
    """What lies in a store and is named by nothing, however young."""
    unnamed = [path for part in (BUNDLES, FRONTIERS) for path in _inside(root / part) if path.name not in bundles]
    unnamed += [
        path for name in _inside(root / GOLDEN) for path in _inside(name) if path.name.split(".")[0] not in bundles
    ]
    left = [path for part in OF_DETECTORS for path in _inside(root / part) if _stem(path) not in detectors]
    golden = [path for path in (root / GOLDEN).glob("*/*") if path.parent not in left and _stem(path) not in bundles]
    return sorted(unnamed + left + golden)


def files_of(root: Path, name: str) -> list[Path]:
    """What lies in a store because of a detector, but for its bundles."""
    return [path for part in OF_DETECTORS for path in _inside(root / part) if _stem(path) == name]


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Removes a file or folder; of a link the link, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # somebody finished or removed it meanwhile
        return float("inf")


def _stem(path: Path) -> str:
    """Its name up to the first dot: no name of a detector has one."""
    return path.name.split(".")[0]


def _detector_of(path: Path) -> str | None:
    """Whose bundle or golden set it is; None where it does not say."""
    try:
        return str(json.loads((path / MANIFEST).read_bytes())["detector"])
    except (OSError, ValueError, TypeError, KeyError):
        return path.parent.name if path.parent.parent.name == GOLDEN else None


def _remove(path: Path, before: float) -> bool:
    """Takes a file or folder away first, so that whoever writes the same again at this moment sees that it is gone."""
    aside = path.with_name(f".{path.name.lstrip('.')}.{uuid4().hex}.partial")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if _written(aside) >= before:
        try:
            aside.rename(path)
        except OSError:  # it was written again beside
            shutil.rmtree(aside, ignore_errors=True)
        return False
    remove(aside, ignore_errors=True)
    return True
