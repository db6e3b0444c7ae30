"""What each device is to run: follows what the catalog says that the classes serve, and the roll-outs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from server import rows as catalog_rows
from server.catalog import Catalog
from server.config import HUB, DetectorConfig
from server.fleet import release_rows, rollout_rows, rows
from server.fleet.files import Files
from server.fleet.issuing import Issuer
from server.fleet.records import LiveRelease, RolloutRow
from server.fleet.rollouts import Rollouts
from server.records import Serving
from server.releases import Signed


@dataclass(frozen=True)
class Meant:
    """Which releases are meant for whom.

    Attributes:
        classes: By class and detector, those for the whole class.
        rollouts: By roll-out.
        asked: The roll-outs that have asked each device.
    """

    classes: Mapping[str, Mapping[str, LiveRelease]] = field(default_factory=dict)
    rollouts: Mapping[int, LiveRelease] = field(default_factory=dict)
    asked: Mapping[str, set[int]] = field(default_factory=dict)

    def of(self, device: str, device_class: str) -> list[Signed]:
        """All that a device is to run, one release for each detector."""
        own = [it for number in self.asked.get(device, ()) if (it := self.rollouts.get(number)) is not None]
        mine = {**self.classes.get(device_class, {}), **{it.detector: it for it in own}}
        return [Signed.from_json(mine[name].signed.encode()) for name in sorted(mine)]


class Desired:
    """Keeps releases in step with what serves. Methods take a thread's time; one caller at a time.

    Args:
        catalog: Says what serves.
        issuer: Makes releases.
        rollouts: How a new bundle reaches a class.
        files: What devices may fetch.
        config_of: How a hosted detector alarms; None: it is not hosted.
    """

    def __init__(
        self,
        catalog: Catalog,
        issuer: Issuer,
        rollouts: Rollouts,
        files: Files,
        config_of: Callable[[str], DetectorConfig | None],
    ) -> None:
        self._catalog = catalog
        self._issuer = issuer
        self._rollouts = rollouts
        self._files = files
        self._config_of = config_of
        self.meant = Meant()
        """As it was at the last `refresh`."""

    def follow(self, name: str, connected: frozenset[str]) -> None:
        """Brings the releases of a detector up to date: with what serves, its settings, expiry and keys."""
        config = self._config_of(name)
        if config is None or not self._concerns_devices(name, config):
            return
        with self._catalog.writing() as connection:
            if catalog_rows.find_detector(connection, name) is None:
                return
            devices = rows.count_devices(connection)
            serving = {it.device_class: it for it in catalog_rows.list_serving(connection, name)}
            classes = [it for it in config.device_classes if it != HUB and it in serving]
            for device_class in classes:
                self._follow_class(connection, serving[device_class], devices.get(device_class, 0), connected)
            for release in release_rows.live(connection, name):
                if release.device_class not in classes:
                    self._let_go(connection, release)
                elif not self._issuer.is_fresh(release):
                    self._issuer.again(connection, release)

    def _concerns_devices(self, name: str, config: DetectorConfig) -> bool:
        """Whether there is anything to write: most hubs have no devices, most detectors are for the hub alone."""
        with self._catalog.reading() as connection:
            devices = rows.count_devices(connection)
            return any(devices.get(it) for it in config.device_classes if it != HUB) or bool(
                release_rows.live(connection, name)
            )

    def _follow_class(self, connection: Connection, serving: Serving, devices: int, connected: frozenset[str]) -> None:
        name, device_class = serving.detector, serving.device_class
        base = release_rows.of_class(connection, name, device_class)
        if base is None:
            if devices:  # the first of a class: there is nothing to compare it with, or to go back to
                self._issuer.issue(connection, name, device_class, serving.version, serving.bundle_hash)
            return
        going_on = self._superseded(connection, serving)
        if going_on is not None:
            return
        if serving.bundle_hash == base.bundle_hash:
            if serving.version != base.version:
                self._issuer.issue(connection, name, device_class, serving.version, serving.bundle_hash)
            return
        known = release_rows.whole_class_had(connection, name, device_class, serving.bundle_hash)
        if known or serving.pinned or not devices:  # somebody goes back, or says so: for all at once
            self._issuer.issue(connection, name, device_class, serving.version, serving.bundle_hash)
            return
        base = release_rows.of_class(connection, name, device_class) or base
        measured = not self._rollouts.needs_measuring(name, device_class, serving.bundle_hash)
        self._rollouts.begin(connection, base, serving, connected, measured=measured)

    def _superseded(self, connection: Connection, serving: Serving) -> RolloutRow | None:
        """The roll-out of what serves; one of anything else ends."""
        for row in rollout_rows.going_on(connection, serving.detector, serving.device_class):
            if row.bundle_hash == serving.bundle_hash:
                return row
            self._rollouts.stop_within(connection, row, f"version {serving.version} took its place")
        return None

    def _let_go(self, connection: Connection, release: LiveRelease) -> None:
        """The class is none of the detector's any more."""
        for row in rollout_rows.going_on(connection, release.detector, release.device_class):
            self._rollouts.stop_within(connection, row, "the detector has left the class")
        release_rows.retire(connection, release.detector, release.device_class, release.rollout)

    def refresh(self) -> None:
        """Reads what is meant for whom, and offers its files."""
        with self._catalog.reading() as connection:
            live = release_rows.live(connection)
            asked = rollout_rows.asked_devices(connection)
        classes: dict[str, dict[str, LiveRelease]] = {}
        for release in live:
            if release.rollout is None:
                classes.setdefault(release.device_class, {})[release.detector] = release
        self._offer(live, [*self.meant.classes])
        self.meant = Meant(classes, {it.rollout: it for it in live if it.rollout is not None}, asked)

    def _offer(self, live: Sequence[LiveRelease], before: Sequence[str]) -> None:
        for device_class in {*before, *(it.device_class for it in live)}:
            self._files.release(device_class, {it.bundle_hash for it in live if it.device_class == device_class})
