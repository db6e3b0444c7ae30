"""Makes a new catalog out of what lies in a store, and puts aside what is damaged; nothing is deleted.

The file of each detector (`server.detector_files`) says what was published. Where there is none the manifests of the
bundles do: the newest sound child of each device class serves then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from detectors.bundle import Bundle, fsync_folder, read_bundle
from detectors.errors import NewerStoreError, PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from server.catalog import Catalog
from server.catalog_check import look_into
from server.collecting import orphaned
from server.detector_files import read_detector_file
from server.doctor import damaged_segments
from server.findings import Finding
from server.layout import BUNDLES, CATALOG, DETECTORS, LOCK, QUARANTINE, STAGING
from server.lock import acquire
from server.records import DetectorFacts
from server.supposed import supposed, without_lost

LOST = (
    "cycles, operations, anomalies, labels, maintenance windows and measurements were in the old catalog only; what is "
    f"left of it lies in {QUARANTINE}/"
)


def rebuild(root: Path) -> list[Finding]:
    """Puts damaged files aside and, where the catalog is missing or damaged, makes a new one.

    Args:
        root: The store's folder; no process may use it.

    Returns:
        What was done.

    Raises:
        StoreInUseError: a process uses it.
        NewerStoreError: it was written by a newer prunewatch.
        PreconditionError: there is nothing to make a catalog of.
    """
    with closing(acquire(root / LOCK)):
        findings: list[Finding] = []
        sound = _sound_bundles(root, findings)
        try:
            look_into(root / CATALOG)
        except NewerStoreError:
            raise
        except PrunewatchError:
            _make_catalog(root, sound, findings)
        named = look_into(root / CATALOG)
        damaged = damaged_segments(root, named)
        findings += [_put_aside(root, path, "is no readable part of a history") for path in damaged]
        return findings


def _sound_bundles(root: Path, findings: list[Finding]) -> dict[str, Bundle]:
    """By hash; those that are damaged are put aside."""
    sound: dict[str, Bundle] = {}
    for folder in sorted(path for path in (root / BUNDLES).glob("*") if not path.name.startswith(".")):
        try:
            sound[folder.name] = read_bundle(folder, folder.name, weights=True)
        except NewerStoreError:
            raise
        except PrunewatchError:
            findings.append(_put_aside(root, folder, "is damaged"))
    return sound


def _make_catalog(root: Path, sound: Mapping[str, Bundle], findings: list[Finding]) -> None:
    known = _known(root, sound, findings)
    if not known:
        raise PreconditionError(
            "has nothing that a catalog could be made of.", field=str(root), hint="Restore a backup, or start anew."
        )
    (root / STAGING).mkdir(exist_ok=True)
    new = root / STAGING / f"{uuid4().hex}.db"
    with closing(Catalog(new)) as catalog:
        for facts in known:
            catalog.insert(facts)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    findings += [_put_aside(root, old, "is of no use") for old in sorted(root.glob(f"{CATALOG}*"))]
    failpoint("rebuild.before_rename")
    new.rename(root / CATALOG)
    fsync_folder(root)
    for facts in known:
        serving = ", ".join(f"version {it.version} serves on {it.device_class}" for it in facts.serving)
        told = f"{facts.detector.name!r} is back with {len(facts.versions)} versions; {serving or 'it learns'}"
        findings.append(Finding("rebuild", "note", told))
    findings.append(Finding("rebuild", "note", LOST))
    named = {bundle.hash for facts in known for bundle in facts.bundles}
    unnamed = orphaned(root, named, [facts.detector.name for facts in known])
    findings += [
        _put_aside(root, path, "was not published, as far as can be known")
        for path in unnamed
        if path.parent.name == BUNDLES
    ]


def _known(root: Path, sound: Mapping[str, Bundle], findings: list[Finding]) -> list[DetectorFacts]:
    """Every detector that a file or a bundle tells of."""
    known = {}
    for path in sorted((root / DETECTORS).glob("*.json")):
        try:
            known[path.stem] = read_detector_file(path)
        except PrunewatchError:
            findings.append(_put_aside(root, path, "is damaged"))
    for name in sorted({bundle.manifest.detector for bundle in sound.values()} - set(known)):
        mine = {key: bundle for key, bundle in sound.items() if bundle.manifest.detector == name}
        known[name] = supposed(name, mine, {key: _written(root, key) for key in mine})
        told = f"nothing but bundles is left of {name!r}: its configuration, pins and freeze are the defaults again"
        findings.append(Finding("rebuild", "note", told, "Set them again."))
    remaining = []
    for name, facts in sorted(known.items()):
        left, losses = without_lost(facts, sound)
        findings += [Finding("rebuild", "note", f"{name!r}: {loss}") for loss in losses]
        remaining.append(left)
    return remaining


def _written(root: Path, bundle_hash: str) -> float:
    return (root / BUNDLES / bundle_hash).stat().st_mtime


def _put_aside(root: Path, path: Path, why: str) -> Finding:
    """Moves a file or folder to the same place under `quarantine/`."""
    inside = path.relative_to(root)
    target = root / QUARANTINE / inside
    while target.exists():
        target = target.with_name(f"{inside.name}.{uuid4().hex[:8]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    fsync_folder(target.parent)
    fsync_folder(path.parent)
    return Finding("rebuild", "note", f"{inside} {why} and lies in {target.parent.relative_to(root)}/ now")
