"""Where the devices of a roll-out stand: judges what they say, and remembers what they had counted when it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from server.config import Budget, DetectorConfig
from server.fleet import rollout_rows, rows
from server.fleet.in_use import InUse, Steps, medians
from server.fleet.judging import Count, judge, usual
from server.fleet.presence import Heard
from server.fleet.records import Member, RolloutRow
from server.fleet_settings import Rollout


@dataclass(frozen=True)
class View:
    """Devices at one moment.

    Attributes:
        connected: Those whose link is open.
        heard: What devices said last in this process.
    """

    connected: frozenset[str]
    heard: Mapping[str, Heard]


class Jury:
    """Judges the devices of roll-outs.

    Args:
        config_of: How a detector alarms.
        budget_of: What a step may cost on a class.
        settings: What misbehaving is.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        config_of: Callable[[str], DetectorConfig],
        budget_of: Callable[[str], Budget],
        settings: Rollout,
        clock: Callable[[], float],
    ) -> None:
        self._config_of = config_of
        self._budget_of = budget_of
        self._settings = settings
        self._clock = clock
        self._marks: dict[tuple[int, str], Count] = {}
        """What a device had counted when it was first seen in a roll-out; after a restart it is seen anew."""
        self._shares_before: dict[tuple[int, str], float] = {}

    def judged(self, connection: Connection, row: RolloutRow, view: View) -> list[Member]:
        """Where each device that was asked stands now; what has changed is written down."""
        members = rollout_rows.members(connection, row.id)
        budget, config = self._budget_of(row.device_class), self._config_of(row.detector)
        shares = self._shares_of_mates(connection, row, view, {it.device for it in members})
        steps_of_mates = _steps_with(row.base_bundle, row.detector, view)
        judged = []
        for member in members:
            heard = view.heard.get(member.device)
            served = heard.status.served.get(row.detector) if heard and heard.at >= member.asked else None
            if member.state == "failed" or served is None:
                judged.append(member)
                continue
            count = Count(served.points, served.flagged)
            mine = self._since(row, member.device, count) if served.bundle == row.bundle_hash else Count(0, 0)
            before = self._shares_before.get((row.id, member.device))
            usually = usual(shares or ([] if before is None else [before]), config.false_alarm_rate)
            in_use = heard.in_use.get(row.detector, InUse()) if heard else InUse()
            verdict = judge(
                row,
                served,
                budget,
                self._settings,
                count=mine,
                usual_share=usually,
                steps=in_use.usual if in_use.bundle == row.bundle_hash else None,
                steps_before=in_use.before or steps_of_mates,
            )
            proven = (member.proven or self._clock()) if verdict.state == "serving" else None
            now = replace(member, state=verdict.state, reason=verdict.reason, proven=proven)
            if now != member:
                rollout_rows.set_member(connection, row.id, now.device, now.state, reason=now.reason, proven=now.proven)
            judged.append(now)
        return judged

    def _shares_of_mates(self, connection: Connection, row: RolloutRow, view: View, members: set[str]) -> list[float]:
        """What share of their points the devices flag, since the roll-out began, that go on with what the class has."""
        shares = []
        for device in rows.list_devices(connection, row.device_class):
            heard = view.heard.get(device.name)
            served = heard.status.served.get(row.detector) if heard else None
            if served is None or device.name in members:
                continue
            share = self._since(row, device.name, Count(served.points, served.flagged)).share
            if share is not None:
                shares.append(share)
        return shares

    def _since(self, row: RolloutRow, device: str, count: Count) -> Count:
        key = row.id, device
        before = self._marks.get(key)
        if before is None or count.points < before.points:
            self._marks[key] = count if before is None else Count(0, 0)
            if before is None and count.share is not None:
                self._shares_before[key] = count.share
        return count.since(self._marks[key])

    def forget(self, going_on: set[int]) -> None:
        """Lets go what is known of roll-outs that have ended."""
        for known in (self._marks, self._shares_before):
            for key in [key for key in known if key[0] not in going_on]:
                del known[key]


def _steps_with(bundle: str, detector: str, view: View) -> Steps | None:
    """What devices need in use for a step with a bundle; None: none has said."""
    found = [it.in_use[detector] for it in view.heard.values() if detector in it.in_use]
    return medians([usual for it in found if it.bundle == bundle and (usual := it.usual) is not None])
