"""Makes releases: what a detector's settings say today, signed by the key of today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from server.config import DetectorConfig
from server.fleet import release_rows
from server.fleet.keys import Keys
from server.fleet.records import LiveRelease
from server.releases import Release, ReleaseSettings


def release_settings(config: DetectorConfig) -> ReleaseSettings:
    """How devices alarm and judge stamps."""
    return ReleaseSettings(**{key: getattr(config, key) for key in ReleaseSettings.model_fields})


class Issuer:
    """Issues releases.

    Args:
        keys: What signs them.
        config_of: How a detector alarms.
        valid_seconds: How long one can be adopted.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        keys: Keys,
        config_of: Callable[[str], DetectorConfig],
        valid_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._config_of = config_of
        self._valid = valid_seconds
        self._clock = clock

    def issue(
        self,
        connection: Connection,
        detector: str,
        device_class: str,
        version: int,
        bundle_hash: str,
        *,
        rollout: int | None = None,
    ) -> LiveRelease:
        """Has a class, or the devices that a roll-out asks, run a bundle from now on."""
        now, settings, key = self._clock(), release_settings(self._config_of(detector)), self._keys.current

        def sign(counter: int) -> LiveRelease:
            release = Release(
                detector=detector,
                device_class=device_class,
                bundle=bundle_hash,
                version=version,
                counter=counter,
                issued=int(now),
                expires=int(now + self._valid),
                settings=settings,
            )
            return LiveRelease(
                detector=detector,
                device_class=device_class,
                counter=counter,
                bundle_hash=bundle_hash,
                version=version,
                settings=_json(settings),
                rollout=rollout,
                issued=now,
                expires=release.expires,
                key_id=key.key_id,
                signed=key.sign("release", release).to_json().decode(),
            )

        return release_rows.issue(connection, detector, device_class, rollout, now, sign)

    def again(self, connection: Connection, release: LiveRelease) -> LiveRelease:
        """The same bundle once more, with a newer number."""
        return self.issue(
            connection,
            release.detector,
            release.device_class,
            release.version,
            release.bundle_hash,
            rollout=release.rollout,
        )

    def is_fresh(self, release: LiveRelease) -> bool:
        """Whether it says what would be said today, by a key that is trusted, and for long enough."""
        return (
            release.expires - self._clock() > self._valid / 2
            and release.settings == _json(release_settings(self._config_of(release.detector)))
            and self._keys.is_trusted(release.key_id)
        )


def _json(settings: ReleaseSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
