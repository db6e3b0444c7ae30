"""A detector for people: what it is, its versions with sizes and speeds, and what serves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from server.catalog import Catalog
from server.config import load_detector_config
from server.etags import etag_of
from server.store import Store


def describe(store: Store, name: str) -> dict[str, Any]:
    """Everything that `prunewatch show` shows, as JSON; versions oldest first.

    Raises:
        NotFoundError: there is no such detector.
    """
    catalog = store.catalog
    row = catalog.get_detector(name)
    config = load_detector_config(row.config)
    served = catalog.all_serving(name)
    return {
        "name": name,
        "state": row.state,
        "problem": row.problem,
        "network": config.network,
        "time": config.time,
        "features": row.features or [],
        "false_alarm_rate": config.false_alarm_rate,
        "threshold": config.threshold,
        "history_points": store.history(name).rows if row.features else 0,
        "served": [{key: value for key, value in asdict(serving).items() if key != "detector"} for serving in served],
        "frozen": row.frozen,
        "etag": etag_of(row, served),
        "versions": [
            {
                "version": version.version,
                "cause": version.cause,
                "created_seconds": version.created,
                "serving": [serving.device_class for serving in served if serving.version == version.version],
                "parent": describe_bundle(catalog, version.parent_hash),
                "children": {
                    device_class: describe_bundle(catalog, bundle_hash)
                    for device_class, bundle_hash in version.bundles.items()
                    if bundle_hash != version.parent_hash
                },
            }
            for version in catalog.versions(name)
        ],
    }


def describe_bundle(catalog: Catalog, bundle_hash: str) -> dict[str, Any]:
    """Sizes, lineage and measurements of one bundle."""
    measurements = [asdict(measurement) for measurement in catalog.measurements(bundle_hash)]
    for measurement in measurements:
        measurement["measured_seconds"] = measurement.pop("measured")
        del measurement["bundle_hash"]
    return {**asdict(catalog.bundle(bundle_hash)), "measurements": measurements}
