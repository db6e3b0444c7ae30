"""What goes beside an exported bundle, so that a device without a link can verify whose it is."""

from __future__ import annotations

from detectors.archive import KEY_SET, RELEASE
from server.config import load_detector_config
from server.fleet import release_rows
from server.fleet.issuing import Issuer
from server.fleet.keys import Keys
from server.fleet_settings import FleetSettings
from server.records import Serving
from server.store import Store


def statements_for(store: Store, serving: Serving) -> dict[str, bytes]:
    """A signed release of what serves, and the set of keys; nothing where the store has no keys.

    The release of the class, where it is of this bundle; else one of its own, which changes nothing for devices that
    are connected. Numbers go up either way.

    Args:
        store: Open.
        serving: What a device class serves.
    """
    catalog = store.catalog
    keys = Keys(store.root, catalog.clock)
    if not len(keys):
        return {}
    config = load_detector_config(catalog.get_detector(serving.detector).config)
    issuer = Issuer(keys, lambda _name: config, FleetSettings().release_valid, catalog.clock)
    with catalog.writing() as connection:
        release = release_rows.of_class(connection, serving.detector, serving.device_class)
        if release is None or release.bundle_hash != serving.bundle_hash or not issuer.is_fresh(release):
            release = issuer.issue(
                connection,
                serving.detector,
                serving.device_class,
                serving.version,
                serving.bundle_hash,
                rollout=release_rows.EXPORTED,
            )
    return {RELEASE: release.signed.encode(), KEY_SET: keys.key_set().to_json()}
