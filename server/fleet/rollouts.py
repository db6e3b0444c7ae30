"""Brings a new bundle to the devices of a class: some, more, all. Stops where it does not go well, and goes back.

Nothing here talks to a device: a stage adds devices to those for which the new release is meant, and
`server.fleet.desired` tells each device what is meant for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Connection, update

from detectors.errors import NotFoundError, PreconditionError
from server import rows as catalog_rows
from server import schema
from server.catalog import Catalog
from server.config import Budget, DetectorConfig
from server.fleet import release_rows, rollout_rows, rows
from server.fleet.issuing import Issuer
from server.fleet.judging import Tally, tally, wanted_devices
from server.fleet.jury import Jury, View
from server.fleet.records import OPEN_STAGES, LiveRelease, Member, RolloutRow
from server.fleet_settings import Rollout
from server.records import Serving

logger = logging.getLogger("prunewatch.fleet.rollouts")
SHOWN = 3
"""Devices that are named in a reason."""


class Rollouts:
    """The roll-outs of a hub. Methods take a thread's time; one caller at a time.

    Args:
        catalog: Where they are kept.
        issuer: Makes releases.
        config_of: How a detector alarms.
        budget_of: What a step may cost on a class.
        settings: Stages, patience, what misbehaving is.
        clock: Seconds since the epoch.
        ended: Told of the class and `complete` or `stopped` whenever one ends.
    """

    def __init__(
        self,
        catalog: Catalog,
        issuer: Issuer,
        config_of: Callable[[str], DetectorConfig],
        budget_of: Callable[[str], Budget],
        settings: Rollout,
        clock: Callable[[], float],
        ended: Callable[[str, str], None] = lambda _class, _outcome: None,
    ) -> None:
        self.needs_measuring: Callable[[str, str, str], bool] = lambda _detector, _class, _bundle: False
        """Asked with detector, class and bundle: whether canaries have to measure it first (`measured`)."""
        self._catalog = catalog
        self._issuer = issuer
        self._settings = settings
        self._clock = clock
        self._ended = ended
        self._jury = Jury(config_of, budget_of, settings, clock)

    # what begins and ends them

    def begin(
        self, connection: Connection, base: LiveRelease, serving: Serving, connected: frozenset[str], *, measured: bool
    ) -> RolloutRow:
        """Begins to bring what the catalog says that a class serves to its devices.

        Args:
            connection: A transaction that writes.
            base: What the class runs, and goes back to.
            serving: What it is to run.
            connected: Devices that are there; they are asked first.
            measured: It may go to canaries now; else it waits until `measured` is called.
        """
        row = rollout_rows.add(
            connection,
            RolloutRow(
                id=0,
                detector=base.detector,
                device_class=base.device_class,
                version=serving.version,
                bundle_hash=serving.bundle_hash,
                base_version=base.version,
                base_bundle=base.bundle_hash,
                first_counter=0,
                stage="measuring",
                reason="" if measured else "canaries measure it",
                created=self._clock(),
                ended=None,
            ),
        )
        logger.info("version %d of %s begins to roll out to %s", row.version, row.detector, row.device_class)
        return self._to_canaries(connection, row, connected) if measured else row

    def measured(self, number: int, connected: frozenset[str], *, problem: str = "") -> RolloutRow:
        """Lets one go to its canaries that was being measured there, or stops it because of a `problem`."""
        with self._catalog.writing() as connection:
            row = _open(rollout_rows.require(connection, number))
            if row.stage != "measuring":
                return row
            if not problem:
                return self._to_canaries(connection, row, connected)
        return self.stop(number, problem)

    def advance(self, number: int, connected: frozenset[str]) -> RolloutRow:
        """Takes one to its next stage now.

        Raises:
            NotFoundError: there is none of this number.
            PreconditionError: it has ended.
        """
        with self._catalog.writing() as connection:
            row = _open(rollout_rows.require(connection, number))
            if row.stage == "measuring":
                return self._to_canaries(connection, row, connected)
            return self._next_stage(connection, row, connected)

    def stop(self, number: int, reason: str) -> RolloutRow:
        """Stops one: its devices go back to what the class had, and so does what the catalog says that it serves.

        Raises:
            NotFoundError: there is none of this number.
            PreconditionError: it has ended, or what serves is pinned.
        """
        with self._catalog.writing() as connection:
            row = _open(rollout_rows.require(connection, number))
            serving = catalog_rows.find_serving(connection, row.detector, row.device_class)
            if serving is not None and serving.version == row.version:
                if serving.pinned:
                    raise PreconditionError(
                        f"version {row.version} of {row.detector!r} is pinned on {row.device_class!r}.",
                        field="name",
                        hint="Unpin it first.",
                    )
                self._move_back(connection, row, reason)
            stopped = self.stop_within(connection, row, reason)
        self._catalog.changed(row.detector)
        return stopped

    def stop_within(self, connection: Connection, row: RolloutRow, reason: str) -> RolloutRow:
        """The same inside a transaction, without the catalog's word on what serves."""
        release_rows.retire(connection, row.detector, row.device_class, row.id)
        if row.first_counter:  # some devices may have taken it: only a newer number brings them back
            base = release_rows.of_class(connection, row.detector, row.device_class)
            if base is not None:
                self._issuer.again(connection, base)
        logger.warning("roll-out %d of %s to %s stops: %s", row.id, row.detector, row.device_class, reason)
        return self._end(connection, row, "stopped", reason)

    def _move_back(self, connection: Connection, row: RolloutRow, reason: str) -> None:
        try:
            catalog_rows.adopt(connection, row.detector, row.device_class, row.base_version)
        except NotFoundError:
            logger.exception("version %d of %s is gone", row.base_version, row.detector)
        table = schema.adoptions
        connection.execute(  # so that cycles back off, and the same step is not adopted again
            update(table)
            .where(
                table.c.detector == row.detector,
                table.c.device_class == row.device_class,
                table.c.version == row.version,
            )
            .values(state="rolled_back", reason=reason, ended=self._clock())
        )

    # stages

    def look(self, view: View) -> bool:
        """Takes each to where it belongs; returns whether anything has changed for a device."""
        with self._catalog.reading() as connection:
            going_on = rollout_rows.going_on(connection)
        self._jury.forget({row.id for row in going_on})
        changed = False
        for row in going_on:
            if row.stage != "measuring":
                changed |= self._look_at(row, view)
        return changed

    def _look_at(self, row: RolloutRow, view: View) -> bool:
        with self._catalog.writing() as connection:
            serving = catalog_rows.find_serving(connection, row.detector, row.device_class)
            members = self._jury.judged(connection, row, view)
            heard = {name: it.at for name, it in view.heard.items()}
            summed = tally(members, heard, self._settings, self._clock())
            if serving is not None and serving.pinned:
                self._note(connection, row, "the class is pinned: it waits")
                return False
            if len(summed.failed) <= self._settings.failures * len(members):
                return self._go_on(connection, row, view, members, summed)
        self.stop(row.id, _told(summed.failed))
        return True

    def _go_on(
        self, connection: Connection, row: RolloutRow, view: View, members: Sequence[Member], summed: Tally
    ) -> bool:
        if not members and rows.count_devices(connection).get(row.device_class, 0):
            self._ask(connection, row, 1, view.connected)  # its devices were removed
            return True
        if summed.waits_for or (members and not summed.proven):
            if not summed.waits_for and summed.away:  # all of them are away: others take their place
                others = self._ask(connection, row, len(summed.away), view.connected, only_connected=True)
                if others:
                    return True
            waiting = len(summed.waits_for) or len(summed.away)
            self._note(connection, row, f"waits for {waiting} of {len(members)} devices")
            return False
        self._next_stage(connection, row, view.connected)
        return True

    def _to_canaries(self, connection: Connection, row: RolloutRow, connected: frozenset[str]) -> RolloutRow:
        release = self._issuer.issue(
            connection, row.detector, row.device_class, row.version, row.bundle_hash, rollout=row.id
        )
        row = replace(row, stage="canary", first_counter=release.counter, reason="")
        rollout_rows.change(connection, row.id, stage=row.stage, first_counter=row.first_counter, reason="")
        total = rows.count_devices(connection).get(row.device_class, 0)
        self._ask(connection, row, wanted_devices(self._settings.canaries, total), connected)
        return row

    def _next_stage(self, connection: Connection, row: RolloutRow, connected: frozenset[str]) -> RolloutRow:
        total = rows.count_devices(connection).get(row.device_class, 0)
        asked = len(rollout_rows.members(connection, row.id))
        wanted = math.ceil(self._settings.share * total)
        if row.stage == "canary" and asked < wanted < total:
            self._ask(connection, row, wanted - asked, connected)
            rollout_rows.change(connection, row.id, stage="partial", reason="")
            return replace(row, stage="partial", reason="")
        return self._complete(connection, row)

    def _complete(self, connection: Connection, row: RolloutRow) -> RolloutRow:
        base = release_rows.of_class(connection, row.detector, row.device_class)
        release = release_rows.of_class(connection, row.detector, row.device_class, row.id)
        if release is not None:
            release_rows.promote(connection, release)
            if base is not None and base.counter > release.counter:  # devices have seen a newer one of the class
                self._issuer.again(connection, replace(release, rollout=None))
        logger.info("version %d of %s is for all of %s", row.version, row.detector, row.device_class)
        return self._end(connection, row, "complete", "")

    def _ask(
        self,
        connection: Connection,
        row: RolloutRow,
        count: int,
        connected: frozenset[str],
        *,
        only_connected: bool = False,
    ) -> list[str]:
        """Asks devices that were not asked yet: connected ones first, else in an order of each roll-out's own."""
        asked = {it.device for it in rollout_rows.members(connection, row.id)}
        others = [it.name for it in rows.list_devices(connection, row.device_class) if it.name not in asked]
        if only_connected:
            others = [it for it in others if it in connected]
        chosen = sorted(others, key=lambda it: (it not in connected, _draw(row.id, it)))[:count]
        base = release_rows.of_class(connection, row.detector, row.device_class)
        release = release_rows.of_class(connection, row.detector, row.device_class, row.id)
        if chosen and base is not None and release is not None and base.counter > release.counter:
            self._issuer.again(connection, release)  # the class has seen a newer number: this one would be refused
        rollout_rows.ask(connection, row.id, chosen, self._clock())
        return chosen

    def _end(self, connection: Connection, row: RolloutRow, outcome: str, reason: str) -> RolloutRow:
        now = self._clock()
        rollout_rows.change(connection, row.id, stage=outcome, reason=reason, ended=now)
        self._ended(row.device_class, outcome)
        return rollout_rows.require(connection, row.id)

    def _note(self, connection: Connection, row: RolloutRow, reason: str) -> None:
        if row.reason != reason:
            rollout_rows.change(connection, row.id, reason=reason)


def _open(row: RolloutRow) -> RolloutRow:
    if row.stage not in OPEN_STAGES:
        raise PreconditionError(
            f"roll-out {row.id} has ended: {row.stage}.", field="name", hint="To go back, roll the class back."
        )
    return row


def _draw(rollout: int, device: str) -> str:
    return hashlib.sha256(f"{rollout}/{device}".encode()).hexdigest()


def _told(failed: Sequence[Member]) -> str:
    shown = "; ".join(f"{it.device} {it.reason}" for it in failed[:SHOWN])
    return shown + (f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else "")
