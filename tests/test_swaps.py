"""A hundred swaps under open streams: nothing is lost, and every score is that of the version named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle

from detectors.stamps import Status
from prunewatch.client import Batch, Client, Scores
from server.app import Hub

VERSIONS = 51
STREAMS, SERIES, ROWS = 3, 4, 2
"""Streams that are open at once, series of each, and points of each series in a message."""
RING, WARM_UP = 64, 3
LONGEST = 50_000
BETWEEN = 300
"""Points of a series that may arrive while a version is catching up; the first of its replay is so old at most."""
RNG = np.random.default_rng(17)


def constants(version: int) -> dict[str, float]:
    """No two versions score alike; all remember longer than the ring holds."""
    return {"alpha": 0.01 + 0.002 * (version % 7), "gain": 0.1 + 0.02 * version}


def carried(points: np.ndarray, alpha: float) -> np.ndarray:
    """[N, 2]: the mean that a version has before each of N points [N, 2] of a series that it scored from the first."""
    means = np.zeros(points.shape)
    for row, point in enumerate(points[:-1]):
        means[row + 1] = means[row] + alpha * (point - means[row])
    return means


@dataclass
class Stream:
    """An open stream: what is sent on it and what came back."""

    number: int
    points: np.ndarray = field(default_factory=lambda: RNG.normal(size=(LONGEST, SERIES, 2)).astype(np.float32))
    sent: int = 0
    replies: list[Scores] = field(default_factory=list)

    async def run(self, client: Client, done: asyncio.Event) -> None:
        """Sends without a pause until all swaps are done, and a little longer; a reply with an error is raised."""
        async for reply in client.score_stream("pump", self._batches(done)):
            self.replies.append(reply)

    async def _batches(self, done: asyncio.Event) -> AsyncIterator[Batch]:
        names = [f"{self.number}-{i}" for i in range(SERIES)]
        index = np.tile(np.arange(SERIES), ROWS)
        after = 5
        while after:
            rows = np.arange(self.sent, self.sent + ROWS)
            self.sent += ROWS
            yield Batch(
                self.points[rows].reshape(-1, 2),
                stamps=np.repeat(NOW + rows, SERIES),
                series=names if rows[0] == 0 else (),
                series_index=index,
            )
            await asyncio.sleep(0.003)
            after -= done.is_set()

    @property
    def scores(self) -> np.ndarray:
        """[N, SERIES]."""
        return np.concatenate([it.scores for it in self.replies]).reshape(-1, SERIES)

    @property
    def versions(self) -> np.ndarray:
        """[N, SERIES]; that scored each point."""
        return np.concatenate([it.point_versions for it in self.replies]).reshape(-1, SERIES)


async def swap(hub: Hub, client: Client, streams: list[Stream]) -> None:
    """Every version comes to serve and goes back to the first; points arrive in between."""

    async def scored_by(version: int) -> bool:
        return all(it.replies[-1].version == version for it in streams)

    for version in range(2, VERSIONS + 1):
        await publish(hub, ewma_bundle("pump", version, **constants(version)))
        await eventually(lambda version=version: scored_by(version))
        await client.roll_back("pump", 1)
        await eventually(lambda: scored_by(1))


def tenures(versions: np.ndarray) -> list[tuple[int, int, int]]:
    """First row, row after the last, and version of each stretch of one series that one version scored."""
    changes = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
    return [(start, end, int(versions[start])) for start, end in pairwise(changes)]


def unlike(scores: np.ndarray, points: np.ndarray, versions: np.ndarray) -> list[str]:
    """Stretches of one series whose scores are not those of their version over the ring it began with, and on."""
    means = {alpha: carried(points, alpha) for alpha in {constants(it)["alpha"] for it in versions.tolist()}}
    wrong = []
    for start, end, version in tenures(versions):
        alpha, gain = (constants(version)[it] for it in ("alpha", "gain"))
        rows, mean = np.arange(start, end)[:, None], means[alpha]
        begun = np.arange(max(start - RING - BETWEEN, 0), max(start - RING, 0) + 1)
        forgotten = (1 - alpha) ** (rows - begun)[..., None] * mean[begun]  # what came before it began anew
        offline = gain * np.abs(points[rows] - (mean[rows] - forgotten)).mean(axis=2)
        apart = np.nanmax(np.abs(offline - scores[rows]) / gain, axis=0).min()
        if not apart < 1e-4:
            wrong.append(f"rows {start} to {end} of version {version} are {apart:.1e} away")
    return wrong


@pytest.mark.slow
@pytest.mark.promise("R5")
async def test_a_hundred_swaps_under_open_streams_lose_nothing(tmp_path: Path) -> None:
    """No error, every point answered in order, and each score is what the version named gives offline over its ring."""
    hub = Hub(hub_settings(tmp_path, ring_points=RING), trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump", 1, **constants(1)), versions={"keep": VERSIONS})
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        done, streams = asyncio.Event(), [Stream(i) for i in range(STREAMS)]
        flowing = [asyncio.create_task(it.run(client, done)) for it in streams]
        await eventually(lambda: asyncio.sleep(0, all(len(it.replies) > RING for it in streams)))
        swaps = asyncio.create_task(swap(hub, client, streams))
        await asyncio.wait({swaps, *flowing}, return_when=asyncio.FIRST_COMPLETED)
        done.set()
        await asyncio.gather(swaps, *flowing)
    kept = hub.host.get("pump").points_kept
    await hub.stop()

    assert kept == sum(it.sent for it in streams) * SERIES
    for stream in streams:
        assert [it.sequence for it in stream.replies] == list(range(1, len(stream.replies) + 1))
        assert len(stream.scores) == stream.sent
        statuses = np.concatenate([it.statuses for it in stream.replies]).reshape(-1, SERIES)
        assert (statuses[:WARM_UP] == Status.WARMING_UP).all()
        assert (statuses[WARM_UP:] == Status.OK).all()
        for series in range(SERIES):
            versions = stream.versions[:, series]
            assert len(tenures(versions)) == 101
            assert unlike(stream.scores[:, series], stream.points[:, series], versions) == []
