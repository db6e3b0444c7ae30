"""Publishing what the trainer made: its bundles are on disk, one catalog transaction makes them a version.

The service and the command line share these two functions; neither they nor what they import needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectors.errors import PreconditionError
from server.catalog import Catalog
from server.config import DEFAULT_BATCH, HUB, DetectorConfig, load_detector_config
from server.records import BundleRow, Measurement, VersionRow
from server.store import Store


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


def publish_cycle(
    store: Store,
    name: str,
    device_class: str,
    result: Mapping[str, Any],
    *,
    batch: int = DEFAULT_BATCH,
    cycle: int | None = None,
) -> VersionRow | None:
    """Publishes and adopts the child that a cycle made; None if it was rejected or only planned.

    Args:
        store: Where its bundles lie.
        name: The detector.
        device_class: The class the cycle was for.
        result: What `server.trainer` gave back for a `cycle` job.
        batch: Points a step when they were measured.
        cycle: In the catalog's book: it ends in the same transaction. None: it is not there.

    Raises:
        CorruptBundleError: a bundle is not what it should be; nothing has changed.
        ConflictError: another version has been published meanwhile.
        PreconditionError: what serves on the class is pinned.
    """
    catalog, parent, child = store.catalog, result["parent"], result["child"]
    if result["outcome"] != "adopted":
        return None
    facts = [_verified(store, made)[0] for made in (parent, child)]
    version = VersionRow(
        detector=name,
        version=child["version"],
        parent_hash=parent["hash"],
        cause="prune",
        created=catalog.clock(),
        bundles={device_class: child["hash"]},
    )
    catalog.publish(
        version,
        facts,
        measurements=[
            measured for made in (parent, child) for measured in _measured(catalog, made, device_class, batch)
        ],
        adopt=[device_class],
        cycle=cycle,
        result=result,
    )
    return version


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
    manifest, network = bundle.manifest, bundle.manifest.network
    facts = BundleRow(
        hash=bundle.hash,
        version=manifest.version,
        device_class=manifest.device_class,
        units=network.units,
        parameters=network.parameters,
        bytes=bundle.size,
        error=made["error"],
        derived_from=manifest.lineage.parent,
    )
    return facts, manifest.features


def _measured(catalog: Catalog, made: Mapping[str, Any], device_class: str, batch: int) -> list[Measurement]:
    p50, p99 = made["p50_seconds"], made["p99_seconds"]
    if p50 is None or p99 is None:
        return []
    return [Measurement(made["hash"], device_class, batch, p50, p99, catalog.clock())]
