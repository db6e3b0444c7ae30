"""Asks devices to measure graphs: offers the files, signs the probe, and knows who was asked when."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from server.releases import Probe, ProbeGraph, Signed

ID_BYTES = 8
MOST_REMEMBERED = 10_000
"""Devices that were asked something, the newest."""


class Links(Protocol):
    """Links that devices keep open (`server.fleet.links`)."""

    def connected(self, device_class: str, /) -> list[str]:
        """Devices of a class whose link is open."""

    def send_probe(self, device_class: str, signed: Signed, devices: Sequence[str], /) -> int:
        """Asks devices to measure; returns how many of them are connected."""


class Files(Protocol):
    """What devices may fetch by hash (`server.fleet.files`)."""

    def add(self, sha256: str, content: bytes | Path, /) -> None:
        """Offers a file."""


class Asking:
    """Sends probes.

    Args:
        links: To the devices.
        files: What they may fetch.
        sign: Vouches for a probe.
        again: Seconds after which a device that has not answered is asked again.
        valid: Seconds for which a probe may be begun.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        links: Links,
        files: Files,
        sign: Callable[[Probe], Signed],
        *,
        again: float,
        valid: float,
        clock: Callable[[], float],
    ) -> None:
        self._links, self._files, self._sign = links, files, sign
        self._again, self._valid, self._clock = again, valid, clock
        self._asked: dict[tuple[str, str], float] = {}
        """When, by what about and device."""

    def who(self, about: str, device_class: str, *, answered: Mapping[str, object], wanted: int) -> list[str]:
        """Devices to ask now: connected, not asked of late, and as many as answers are still missing.

        Those that were asked and may still answer count as if they had.

        Args:
            about: What they are asked about.
            device_class: Of the devices.
            answered: Those that need not be asked.
            wanted: Answers that are needed.
        """
        now, connected = self._clock(), self._links.connected(device_class)
        silent = [it for it in connected if it not in answered]
        waited_for = [it for it in silent if now - self._asked.get((about, it), float("-inf")) < self._again]
        missing = wanted - len(answered) - len(waited_for)
        # Those that were never asked come first: who did not answer the last time may not answer this time either.
        free = sorted(
            (it for it in silent if it not in waited_for), key=lambda it: self._asked.get((about, it), float("-inf"))
        )
        return free[: max(missing, 0)]

    def ask(
        self,
        about: str,
        device_class: str,
        devices: Sequence[str],
        graphs: Mapping[str, Path],
        *,
        batch: int,
        rounds: int,
        probe_id: str = "",
    ) -> str:
        """Asks them.

        Args:
            about: Under which `who` remembers it.
            device_class: Of the devices.
            devices: Whom.
            graphs: Where each graph lies, by sha256; the first one is the reference.
            batch: Points in a step.
            rounds: See `server.releases.Probe`.
            probe_id: One that others were asked with before; empty: a new one.

        Returns:
            The probe's id.
        """
        now = self._clock()
        for sha256, path in graphs.items():
            self._files.add(sha256, path)
        probe = Probe(
            id=probe_id or secrets.token_hex(ID_BYTES),
            device_class=device_class,
            batch=batch,
            rounds=rounds,
            graphs=[ProbeGraph(sha256=sha256, bytes=path.stat().st_size) for sha256, path in graphs.items()],
            issued=int(now),
            expires=int(now + self._valid),
        )
        self._links.send_probe(device_class, self._sign(probe), devices)
        for device in devices:
            self._asked.pop((about, device), None)
            self._asked[about, device] = now
        while len(self._asked) > MOST_REMEMBERED:
            del self._asked[next(iter(self._asked))]
        return probe.id

    def forget(self, about: str) -> None:
        """As if nobody had been asked."""
        self._asked = {key: when for key, when in self._asked.items() if key[0] != about}
