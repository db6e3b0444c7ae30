"""Versions of a detector and where each of their bundles came from, as the page's JSON has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.records import BundleRow, DetectorFacts, Measurement

VERSIONS = 30
"""That are shown, the newest; beside them all that serve, and what they were made from."""


def versions_shown(facts: DetectorFacts, measurements: Iterable[Measurement]) -> dict[str, Any]:
    """`served`, `versions` newest first, and their `bundles` with the ancestors that are still there.

    Args:
        facts: What the catalog knows of a detector.
        measurements: Of its bundles.
    """
    serving = {it.version for it in facts.serving}
    newest = sorted(facts.versions, key=lambda it: -it.version)
    versions = [it for place, it in enumerate(newest) if place < VERSIONS or it.version in serving]
    named = {it for version in versions for it in (version.parent_hash, *version.bundles.values())}
    measured: dict[str, list[Measurement]] = {}
    for it in measurements:
        measured.setdefault(it.bundle_hash, []).append(it)
    return {
        "served": [
            {
                "device_class": it.device_class,
                "version": it.version,
                "bundle": it.bundle_hash[:12],
                "pinned": it.pinned,
                "previous_version": it.previous_version,
            }
            for it in facts.serving
        ],
        "versions": [
            {
                "version": it.version,
                "cause": it.cause,
                "created_seconds": it.created,
                "parent": it.parent_hash[:12],
                "bundles": {device_class: name[:12] for device_class, name in it.bundles.items()},
            }
            for it in versions
        ],
        "bundles": [_bundle_shown(it, measured.get(it.hash, ())) for it in _with_ancestors(facts.bundles, named)],
        "versions_left_out": len(newest) - len(versions),
    }


def _with_ancestors(bundles: Sequence[BundleRow], named: set[str]) -> list[BundleRow]:
    """Those that are named and what they were derived from, in the order of the catalog."""
    known: Mapping[str, BundleRow] = {it.hash: it for it in bundles}
    wanted: set[str] = set()
    for name in named:
        at: str | None = name
        while at is not None and at in known and at not in wanted:
            wanted.add(at)
            at = known[at].derived_from
    return [it for it in bundles if it.hash in wanted]


def _bundle_shown(bundle: BundleRow, measured: Iterable[Measurement]) -> dict[str, Any]:
    return {
        "hash": bundle.hash[:12],
        "version": bundle.version,
        "device_class": bundle.device_class,
        "units": bundle.units,
        "parameters": bundle.parameters,
        "bytes": bundle.bytes,
        "error": bundle.error,
        "derived_from": bundle.derived_from[:12] if bundle.derived_from else None,
        "measurements": [
            {
                "device_class": it.device_class,
                "batch": it.batch,
                "p50_seconds": it.p50_seconds,
                "p99_seconds": it.p99_seconds,
                "measured_seconds": it.measured,
            }
            for it in measured
        ],
    }
