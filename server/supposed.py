"""What can be said of a detector whose catalog is lost: from the manifests of its bundles, and without what is lost."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectors.bundle import Bundle
from detectors.errors import PrunewatchError
from server.config import HUB, PARENT, load_detector_config
from server.records import BundleRow, DetectorFacts, DetectorRow, Serving, VersionRow


def supposed(name: str, bundles: Mapping[str, Bundle], written: Mapping[str, float]) -> DetectorFacts:
    """A detector as its bundles tell of it.

    A child makes its version; a parent does where it was fitted, for then it served until it was pruned. A parent that
    was only updated may never have passed its gate. The newest version of each device class serves.

    Args:
        name: The detector.
        bundles: Its bundles by hash; at least one.
        written: When each was, in seconds since the epoch.
    """
    classes = {bundle.manifest.device_class for bundle in bundles.values()} - {PARENT} | {HUB}
    versions: dict[int, VersionRow] = {}
    for key, bundle in sorted(bundles.items(), key=lambda it: it[1].manifest.device_class != PARENT):
        manifest, lineage = bundle.manifest, bundle.manifest.lineage
        if manifest.device_class != PARENT:
            parent, served = lineage.parent or key, {manifest.device_class: key}
        elif lineage.cause == "fit":
            parent, served = key, dict.fromkeys(sorted(classes), key)
        else:
            continue
        before = versions.get(manifest.version)
        if before is not None:
            parent, served = before.parent_hash, {**before.bundles, **served}
        versions[manifest.version] = VersionRow(name, manifest.version, parent, lineage.cause, written[key], served)
    newest = max(bundles.values(), key=lambda bundle: bundle.manifest.version).manifest
    return DetectorFacts(
        detector=DetectorRow(
            name,
            _config(newest.network.kind, newest.features, sorted(classes)),
            "learning",
            newest.features,
            min(written.values()),
        ),
        bundles=[BundleRow.of(bundle) for bundle in bundles.values()],
        versions=[versions[number] for number in sorted(versions)],
        serving=_newest(versions.values(), classes),
    )


def without_lost(facts: DetectorFacts, sound: Container[str]) -> tuple[DetectorFacts, list[str]]:
    """A detector with what can still serve, and in words what is lost of it.

    A version goes when no bundle of it is left; one without its parent goes on from its own widest bundle. A device
    class whose version is gone gets the newest that is left, unpinned.

    Args:
        facts: As they were.
        sound: Hashes of the bundles that are left.
    """
    lost: list[str] = []
    sizes = {bundle.hash: bundle.parameters for bundle in facts.bundles}
    versions: list[VersionRow] = []
    for version in facts.versions:
        left = {it: key for it, key in version.bundles.items() if key in sound}
        parent = version.parent_hash
        if not left:
            lost.append(f"version {version.version} is lost.")
            continue
        if parent not in sound:
            parent = max(left.values(), key=lambda key: sizes[key])
            lost.append(f"version {version.version} has lost its parent; cycles go on from its widest child.")
        versions.append(replace(version, parent_hash=parent, bundles=left))
    serving = [_still(serving, versions) for serving in facts.serving]
    for was, now in zip(facts.serving, serving, strict=True):
        if now is None or now.version != was.version:
            instead = f"version {now.version} serves instead" if now else "nothing serves there"
            lost.append(f"version {was.version}, which served on {was.device_class}, is lost: {instead}.")
    named = {key for version in versions for key in (version.parent_hash, *version.bundles.values())}
    return (
        DetectorFacts(
            detector=replace(facts.detector, state="ready" if versions else "learning", problem=""),
            bundles=[bundle for bundle in facts.bundles if bundle.hash in named],
            versions=versions,
            serving=[now for now in serving if now is not None],
        ),
        lost,
    )


def _still(serving: Serving, versions: Sequence[VersionRow]) -> Serving | None:
    """What serves on a class now: the same where it is left, else the newest that is."""
    there = {version.version for version in versions if serving.device_class in version.bundles}
    if serving.version in there:
        before = serving.previous_version if serving.previous_version in there else None
        return replace(serving, previous_version=before)
    newest = _newest(versions, {serving.device_class})
    return newest[0] if newest else None


def _newest(versions: Iterable[VersionRow], classes: Iterable[str]) -> list[Serving]:
    """The newest version of each class serves, and the one before it did."""
    found: list[Serving] = []
    for device_class in sorted(classes):
        having = sorted((it for it in versions if device_class in it.bundles), key=lambda it: it.version)
        if having:
            now, before = having[-1], having[-2].version if len(having) > 1 else None
            bundle = now.bundles[device_class]
            found.append(Serving(now.detector, device_class, now.version, bundle, False, before))
    return found


def _config(kind: str, features: list[str], classes: list[str]) -> dict[str, Any]:
    """Defaults, with what a manifest knows."""
    fields: dict[str, Any] = {"features": features, "device_classes": classes}
    try:
        return load_detector_config({**fields, "network": kind}).model_dump(mode="json")
    except PrunewatchError:  # a network that was imported can not be fitted anew
        return load_detector_config(fields).model_dump(mode="json")
