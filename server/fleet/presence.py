"""Which devices were heard of, when, and what they said: in memory, written down now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from server.fleet.in_use import InUse
from server.fleet.records import Served, Status
from server.fleet.reports import ReleaseNote

_NOTHING = Served("", "", 0, "", "", 0, 0, 0, None, None, 0)


@dataclass(frozen=True)
class Heard:
    """What a device said last in this process.

    Attributes:
        status: How it is.
        at: When it said so, in seconds since the epoch by the hub's clock.
        in_use: Its steps by detector, of this status and those before.
    """

    status: Status
    at: float
    in_use: Mapping[str, InUse] = field(default_factory=dict)


class Presence:
    """What devices say of themselves.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: dict[str, Heard] = {}
        self._unwritten: set[str] = set()

    def hear(self, device: str, status: Status) -> None:
        """Takes a status."""
        known = self._heard.get(device)
        before = known.in_use if known else {}
        in_use = {name: before.get(name, InUse()).heard(served) for name, served in status.served.items()}
        self._keep(device, Heard(status, self._clock(), {**before, **in_use}))

    def _keep(self, device: str, heard: Heard) -> None:
        self._heard[device] = heard
        self._unwritten.add(device)

    def amend(self, device: str, note: ReleaseNote) -> None:
        """Takes what a report says of a release, where it is newer than the last status."""
        known = self._heard.get(device)
        status = known.status if known else Status()
        now = status.served.get(note.detector, _NOTHING)
        if now.asked_counter < note.counter:
            changed = replace(
                now, detector=note.detector, state=note.state, reason=note.reason, asked_counter=note.counter
            )
            status = replace(status, served={**status.served, note.detector: changed})
            self._keep(device, Heard(status, self._clock(), known.in_use if known else {}))

    def all(self) -> dict[str, Heard]:
        """What each device said last in this process."""
        return dict(self._heard)

    def of(self, device: str) -> Heard | None:
        """What a device said last; None: nothing since this process began."""
        return self._heard.get(device)

    def forget(self, device: str) -> None:
        """Knows nothing of a device any more."""
        self._heard.pop(device, None)
        self._unwritten.discard(device)

    def take_unwritten(self) -> list[tuple[str, Status, float]]:
        """What was said since the last call."""
        taken = [(name, self._heard[name].status, self._heard[name].at) for name in sorted(self._unwritten)]
        self._unwritten.clear()
        return taken
