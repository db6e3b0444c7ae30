"""Publishing what the trainer made: its bundles are on disk, one catalog transaction makes them a version.

The service and the command line share these two functions; neither they nor what they import needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from detectors.bundle import GRAPH
from detectors.errors import CorruptBundleError, PreconditionError
from server.catalog import Catalog
from server.config import DEFAULT_BATCH, HUB, DetectorConfig, load_detector_config
from server.records import AWAITING, BundleRow, Cause, Ended, Measurement, VersionRow
from server.rejections import REJECTED_BY
from server.store import Store
from server.waiting import overall

Given = ParamSpec("Given")
Published = TypeVar("Published")


def _publishing(
    publish: Callable[Concatenate[Store, str, Given], Published],
) -> Callable[Concatenate[Store, str, Given], Published]:
    """What a publication verifies stays on disk until the catalog names it; then old versions of the detector go."""

    @wraps(publish)
    def guarded(store: Store, name: str, /, *args: Given.args, **options: Given.kwargs) -> Published:
        with store.publishing(name):
            return publish(store, name, *args, **options)

    return guarded


@_publishing
def publish_fit(
    store: Store,
    name: str,
    result: Mapping[str, Any],
    *,
    batch: int = DEFAULT_BATCH,
    config: DetectorConfig | None = None,
) -> VersionRow:
    """Publishes the parent that a fit made; it serves on every device class until a cycle prunes it.

    A class that is pinned keeps what it serves.

    Args:
        store: Where its bundle lies.
        name: The detector.
        result: What `server.trainer` gave back for a `fit` job.
        batch: Points a step when it was measured.
        config: The detector's from now on, in the same transaction; with it a detector that does not exist is added.

    Raises:
        CorruptBundleError: the bundle is not what it should be; nothing has changed.
        ConflictError: another version has been published meanwhile.
    """
    catalog, parent = store.catalog, result["parent"]
    facts, features = _verified(store, parent)
    classes = (config or load_detector_config(catalog.get_detector(name).config)).device_classes
    serving = {device_class: catalog.serving(name, device_class) for device_class in classes}
    version = VersionRow(
        detector=name,
        version=parent["version"],
        parent_hash=parent["hash"],
        cause="fit",
        created=catalog.clock(),
        bundles=dict.fromkeys(classes, parent["hash"]),
    )
    catalog.publish(
        version,
        [facts],
        measurements=_measured(catalog, parent, HUB, batch),
        adopt=[device_class for device_class, now in serving.items() if now is None or not now.pinned],
        features=features,
        config=config.model_dump(mode="json") if config else None,
    )
    return version


@_publishing
def publish_cycle(
    store: Store,
    name: str,
    device_class: str,
    result: Mapping[str, Any],
    *,
    batch: int = DEFAULT_BATCH,
    cycle: int | None = None,
    probation: Collection[str] = (),
) -> VersionRow | None:
    """Publishes and adopts the child that a cycle made; None if it was rejected or only planned.

    A child that waits for devices is published, and serves nowhere.

    Args:
        store: Where its bundles lie.
        name: The detector.
        device_class: The class the cycle was for.
        result: What `server.trainer` gave back for a `cycle` job.
        batch: Points a step when they were measured.
        cycle: In the catalog's book: it ends in the same transaction. None: it is not there.
        probation: Device classes on which what is adopted has to prove itself.

    Raises:
        CorruptBundleError: a bundle is not what it should be; nothing has changed.
        ConflictError: another version has been published meanwhile.
        PreconditionError: what serves on the class is pinned.
    """
    catalog, parent, child = store.catalog, result["parent"], result["child"]
    if result["outcome"] not in {"adopted", AWAITING}:
        return None
    adopted = result["outcome"] == "adopted"
    facts = [_verified(store, made)[0] for made in (parent, child)]
    version = VersionRow(
        detector=name,
        version=child["version"],
        parent_hash=parent["hash"],
        cause="prune",
        created=catalog.clock(),
        bundles={device_class: child["hash"]},
    )
    ended = [] if cycle is None else [Ended(cycle, device_class, result["outcome"], result.get("reason", ""), result)]
    catalog.publish(
        version,
        facts,
        measurements=[
            measured
            for made in (parent, child)
            if adopted
            for measured in _measured(catalog, made, device_class, batch)
        ],
        adopt=[device_class] if adopted else [],
        ended=ended,
        probation=probation,
    )
    return version


@_publishing
def publish_round(
    store: Store, name: str, result: Mapping[str, Any], cycles: Mapping[str, int], probation: Collection[str] = ()
) -> VersionRow | None:
    """Publishes what was made for several device classes as one version; None if nothing was adopted.

    A class without a budget follows the parent where that was trained on. What has been pinned meanwhile stays.

    Args:
        store: Where its bundles lie.
        name: The detector.
        result: What `server.trainer` gave back for a `round` job.
        cycles: Numbers in the catalog's book by device class: they end in the same transaction.
        probation: Device classes on which what is adopted has to prove itself.

    Raises:
        CorruptBundleError: a bundle is not what it should be; nothing has changed.
        ConflictError: another version has been published meanwhile.
    """
    catalog, parent = store.catalog, result["parent"]
    if result["outcome"] not in {"adopted", AWAITING}:
        return None
    waiting = {it["device_class"]: it for it in result["children"] if it["outcome"] == AWAITING}
    adopted = {it["device_class"]: it for it in result["children"] if it["outcome"] == "adopted"}
    bundles = {device_class: it["child"]["hash"] for device_class, it in (adopted | waiting).items()}
    if result["updated"]:
        bundles |= dict.fromkeys(result["unpruned"], parent["hash"])
    serving = {device_class: catalog.serving(name, device_class) for device_class in bundles}
    cause: Cause = "prune" if adopted or waiting else "update"
    version = VersionRow(name, result["version"], parent["hash"], cause, catalog.clock(), bundles)
    catalog.publish(
        version,
        [_verified(store, made)[0] for made in (parent, *(it["child"] for it in (adopted | waiting).values()))],
        measurements=[
            measured
            for device_class, it in adopted.items()
            for made in (it["parent"], it["child"])
            for measured in _measured(catalog, made, device_class, it["batch"])
        ],
        adopt=[
            device_class
            for device_class, now in serving.items()
            if device_class not in waiting and (now is None or not now.pinned)
        ],
        ended=ended_cycles(result, cycles),
        probation=probation,
    )
    return version


def ended_cycles(result: Mapping[str, Any], cycles: Mapping[str, int]) -> list[Ended]:
    """How cycles ended: each with its own result, where the trainer tried each; else with that of the job."""
    own = {it["device_class"]: it for it in result.get("children", ())}
    found = {device_class: own.get(device_class, result) for device_class in cycles}
    return [
        Ended(cycles[device_class], device_class, it["outcome"], it.get("reason", ""), it)
        for device_class, it in found.items()
    ]


def made_for(result: Mapping[str, Any], device_class: str) -> Mapping[str, Any] | None:
    """What a cycle made that is to serve on a device class; None where nothing is."""
    if result["outcome"] != "adopted":
        return None
    for it in result.get("children", (result,)):
        if it.get("device_class", device_class) == device_class and it["outcome"] == "adopted":
            made: Mapping[str, Any] = it["child"]
            return made
    follows = result.get("updated") and device_class in result.get("unpruned", ())
    return result["parent"] if follows else None


def withdrawn(result: Mapping[str, Any], device_class: str, reason: str, by: str) -> dict[str, Any]:
    """A cycle's result in which what was made for one device class is rejected after all; `by`: `REASONS`."""
    rejected = {"outcome": "rejected", "reason": reason, REJECTED_BY: by}
    if "children" not in result:
        return {**result, **rejected}
    children = [{**it, **rejected} if it["device_class"] == device_class else it for it in result["children"]]
    unpruned = [it for it in result["unpruned"] if it != device_class]
    changed = {**result, "children": children, "unpruned": unpruned}
    outcome = overall(changed, children)
    return {**changed, **rejected} if outcome == "rejected" else {**changed, "outcome": outcome}


def taken_back(store: Store, name: str, bundle_hash: str) -> str:
    """Why a bundle must not come to serve by itself: its step did, and was rolled back. Empty: it may."""
    step = _step_of(store, bundle_hash)
    gone = {it.version: it for it in store.catalog.adoptions(name) if it.state == "rolled_back"}
    for version in store.catalog.versions(name):
        if (it := gone.get(version.version)) and _step_of(store, version.bundles[it.device_class]) == step:
            return f"it is version {it.version} again, which was rolled back: {it.reason}"
    return ""


def _step_of(store: Store, bundle_hash: str) -> str:
    """Hash of the step graph of a bundle: its manifest also names the version. Empty: it is damaged."""
    try:
        return store.read_bundle(bundle_hash).manifest.files[GRAPH].sha256
    except CorruptBundleError:
        return ""


def unpinned(catalog: Catalog, name: str, device_classes: Sequence[str]) -> list[str]:
    """Those of the device classes that may adopt.

    Raises:
        PreconditionError: none may.
    """
    serving = {it.device_class: it for it in catalog.all_serving(name)}
    free = [it for it in device_classes if it not in serving or not serving[it].pinned]
    if not free:
        require_unpinned(catalog, name, device_classes[0])
    return free


def require_unpinned(catalog: Catalog, name: str, device_class: str) -> None:
    """Refuses a cycle whose result could not be adopted, before it costs minutes.

    Raises:
        PreconditionError: what serves on the class is pinned.
    """
    serving = catalog.serving(name, device_class)
    if serving is not None and serving.pinned:
        raise PreconditionError(
            f"version {serving.version} of {name!r} is pinned on {device_class!r}.",
            field="device_class",
            hint="Unpin it first, or ask for a dry run.",
        )


def _verified(store: Store, made: Mapping[str, Any]) -> tuple[BundleRow, list[str]]:
    """What is in a bundle that has been read back from disk, and its features."""
    bundle = store.read_bundle(made["hash"])
    return BundleRow.of(bundle, made["error"]), bundle.manifest.features


def _measured(catalog: Catalog, made: Mapping[str, Any], device_class: str, batch: int) -> list[Measurement]:
    p50, p99 = made["p50_seconds"], made["p99_seconds"]
    if p50 is None or p99 is None:
        return []
    return [Measurement(made["hash"], device_class, batch, p50, p99, catalog.clock())]
