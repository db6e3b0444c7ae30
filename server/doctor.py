"""Looks through a store, changing nothing: what is sound, what is not, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from detectors.bundle import read_bundle
from detectors.errors import NotFoundError, PrunewatchError
from server.catalog_check import Named, look_into
from server.collecting import orphaned
from server.detector_files import path_of, read_detector_file
from server.findings import Finding
from server.frontiers import require_sound
from server.layout import BUNDLES, CATALOG, FRONTIERS, GOLDEN, HISTORY, TABLES
from server.segments import read_segment, schema_of

REBUILD = "Stop the server, then run `prunewatch doctor --rebuild`, or restore a backup."


def examine(root: Path) -> list[Finding]:
    """Looks through the store at `root`; a server may be using it.

    Raises:
        NotFoundError: there is no store.
    """
    if not any((root / part).exists() for part in (CATALOG, BUNDLES)):
        raise NotFoundError("there is no store here.", field=str(root), hint="Name the folder with --store.")
    try:
        named = look_into(root / CATALOG)
    except PrunewatchError as error:
        return [Finding("catalog", "problem", f"{CATALOG} {error.problem.rstrip('.')}", error.hint or REBUILD)]
    detectors, schema = len(named.features), named.schema_version
    return [
        Finding("catalog", "ok", f"readable and consistent, schema {schema}, {detectors} detectors"),
        *_summed(
            list(_bundles(root, named)), "bundles", f"{len(named.bundles)} named, each with the bytes it should have"
        ),
        _orphans(root, named),
        *_summed(list(_history(root, named)), "history", "every segment can be read"),
        *_summed(list(_golden(root)), "golden", "every golden set can be read"),
        *_summed(list(_tables(root)), "tables", "every latency table can be read"),
        *_summed(list(_frontiers(root)), "frontiers", "every frontier can be read"),
        *_summed(list(_files(root, named)), "files", "every detector has the file to rebuild it from"),
    ]


def _summed(found: list[Finding], part: str, otherwise: str) -> list[Finding]:
    return found or [Finding(part, "ok", otherwise)]


def _bundles(root: Path, named: Named) -> Iterator[Finding]:
    for bundle_hash, detector in named.bundles.items():
        try:
            read_bundle(root / BUNDLES / bundle_hash, bundle_hash, weights=True)
        except PrunewatchError as error:
            if bundle_hash not in look_into(root / CATALOG).bundles:
                continue  # it was let go while we looked
            serves = "serves and " if bundle_hash in named.serving else ""
            what = f"{Path(error.field).name} {error.problem.rstrip('.')}"
            told = f"{bundle_hash[:12]} of {detector!r} {serves}is damaged: {what}"
            yield Finding(
                "bundles", "problem", told, f"Run `prunewatch rollback {detector}`, fit it again, or restore a backup."
            )


def _orphans(root: Path, named: Named) -> Finding:
    found = orphaned(root, named.bundles, named.features)
    if not found:
        return Finding("orphans", "ok", "nothing lies here that nothing names")
    return Finding(
        "orphans",
        "note",
        f"{len(found)} files and folders that nothing names; a server removes them an hour after they were written",
    )


def _history(root: Path, named: Named) -> Iterator[Finding]:
    for path in damaged_segments(root, named):
        told = f"{path.relative_to(root / HISTORY)} can not be read; no fit or cycle can until it is gone"
        yield Finding(
            "history", "problem", told, "Stop the server and run `prunewatch doctor --rebuild`: it puts the file aside."
        )


def damaged_segments(root: Path, named: Named) -> list[Path]:
    """Files of histories that can not be read, or have other columns than their detector."""
    found = []
    for name, features in named.features.items():
        for path in sorted((root / HISTORY / name).rglob("*.parquet")):
            try:
                read_segment(path, schema_of(features or []))
            except PrunewatchError:
                if path.exists():  # else it was merged or let go while we looked
                    found.append(path)
    return found


def _golden(root: Path) -> Iterator[Finding]:
    for path in sorted((root / GOLDEN).glob("*/*.safetensors")):
        name = path.parent.name
        try:
            safetensors.numpy.load(path.read_bytes())
        except SafetensorError:
            told = f"that of {name!r} can not be read, so no cycle can be judged by it"
            yield Finding("golden", "problem", told, f"Fit it again: `prunewatch fit {name}` keeps a new one.")


def _tables(root: Path) -> Iterator[Finding]:
    for path in sorted((root / TABLES).glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            yield Finding("tables", "note", f"{path.name} is damaged and will be measured again")


def _frontiers(root: Path) -> Iterator[Finding]:
    for folder in sorted((root / FRONTIERS).glob("*/*")):
        try:
            require_sound(folder)
        except PrunewatchError:
            told = f"that of {folder.parent.name[:12]} is damaged and will be built again when it is asked for"
            yield Finding("frontiers", "note", told)


def _files(root: Path, named: Named) -> Iterator[Finding]:
    for name in named.features:
        try:
            read_detector_file(path_of(root, name))
        except PrunewatchError:
            yield Finding("files", "note", f"that of {name!r} is missing or damaged; the next start writes it again")
