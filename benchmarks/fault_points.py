"""Points of a device under faults: sent until each is answered, and every answer is held against what it must be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import fault_bundles
import numpy as np
from fault_bundles import DETECTOR, FEATURES, FORGOTTEN, Distances
from fault_device import DeviceProcess

from prunewatch.client import Client, Scores, ServiceError

SERIES = ("a", "b")
ROWS = 10
"""Of each series in a message."""
PAUSE_SECONDS = 0.2
AGAIN_SECONDS = 0.2
ANSWER_SECONDS = 5.0
SPREAD = 0.1
"""Of the values: scores stay far below the threshold."""
TOLERANCE = 1e-3
"""Of a score, relative; two versions are ten times as far apart."""
AWAY = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
AGAIN = {"DUPLICATE", "LATE"}


class Points:
    """The points of one device.

    Args:
        device: It scores them.
        published: Hashes of bundles by version.
        seed: Of the values.

    Attributes:
        counts: Points by what became of them: `sent`, `scored`, `warming_up`, `answered_before` (the answer to an
            earlier try was lost with its process), `lost`; and scores: `checked`, `wrong`, `unchecked`; and `tries`
            that nobody answered.
        complaints: What must not be, in words.
        version: That scored last.
    """

    def __init__(self, device: DeviceProcess, published: dict[int, str], seed: int) -> None:
        self._device = device
        self._published = published
        self._rng = np.random.default_rng([seed, *device.name.encode()])
        self._distances = [Distances() for _ in SERIES]
        self._row = 0
        self._unsure = 0
        self._life = device.lives
        self._ending = False
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.version = 0

    def end(self) -> None:
        """Sends no more after what is under way has been answered."""
        self._ending = True

    async def run(self) -> None:
        """Sends until `end`."""
        async with Client(self._device.address, timeout_seconds=ANSWER_SECONDS) as client:
            while not self._ending:
                await self._send(client)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _send(self, client: Client) -> None:
        values = self._rng.normal(scale=SPREAD, size=(ROWS, len(SERIES), FEATURES)).astype(np.float32)
        rows = np.arange(self._row, self._row + ROWS)
        self._row += ROWS
        expected = np.stack([it.of(values[:, i]) for i, it in enumerate(self._distances)], axis=1).ravel()
        self.counts["sent"] += expected.size
        tries = 0
        while True:
            try:
                reply = await client.score(
                    DETECTOR,
                    series=list(SERIES),
                    series_index=np.tile(np.arange(len(SERIES)), ROWS),
                    stamps=np.repeat(rows, len(SERIES)),
                    values=values.reshape(-1, FEATURES),
                )
            except ServiceError as error:
                tries += 1
                self.counts["tries"] += 1
                if error.code not in AWAY and self.version:  # before the first release there is nothing to score with
                    self._complain(f"{error.code}: {error}")
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self._check(reply, expected, tries)
                return

    def _check(self, reply: Scores, expected: np.ndarray, tries: int) -> None:
        """Each point has one answer, and each score is that of the version that the answer names."""
        if self._life != self._device.lives:  # what it knew of its series may be older than its last answer
            self._life, self._unsure = self._device.lives, FORGOTTEN * len(SERIES)
        for i, status in enumerate(reply.status_names):
            if status == "OK":
                self.counts["scored"] += 1
                self._check_score(float(reply.scores[i]), float(expected[i]), int(reply.point_versions[i]))
            elif status == "WARMING_UP":
                self.counts["warming_up"] += 1
            elif status in AGAIN and tries:
                self.counts["answered_before"] += 1
            else:
                self.counts["lost"] += 1
                self._complain(f"a point was {status}")
        self.version = reply.version
        self._unsure = max(self._unsure - len(expected), 0)

    def _check_score(self, score: float, distance: float, version: int) -> None:
        if version not in self._published:
            self._complain(f"version {version} scores, which was never published")
        if self._unsure:
            self.counts["unchecked"] += 1
            return
        self.counts["checked"] += 1
        wanted = fault_bundles.gain(version) * distance
        if abs(score - wanted) > TOLERANCE * max(wanted, 0.01):
            self.counts["wrong"] += 1
            self._complain(f"version {version} gave {score:.5f} in the place of {wanted:.5f}")

    def _complain(self, words: str) -> None:
        if len(self.complaints) < 50:
            self.complaints.append(f"{self._device.name}: {words}")


def dealt(kinds: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """So many faults, as many of each kind, in an order of chance."""
    faults = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(faults)
    return faults
