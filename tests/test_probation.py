"""Candidates on live points: before they may serve, after they do, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings
from graphs import ewma_scores
from quick_trainer import BROKEN, FLOOD, HIGH, SLOW

from prunewatch.client import Client
from server.adoptions import back_off_until
from server.app import Hub
from server.records import AdoptionRow
from server.triggers import allowed

RNG = np.random.default_rng(9)
POINTS = RNG.normal(scale=0.3, size=(20000, 4, 2)).astype(np.float32)
SERIES = ["a", "b", "c", "d"]
NO_SHADOW = {"shadow_points": 0}


class Stream:
    """Sends live points of four series until it is stopped; remembers what came back."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent = 0
        self.replies: list[tuple[int, np.ndarray]] = []

    async def send(self, rows: int) -> None:
        """So many points of each series."""
        for _ in range(rows):
            row = self._sent
            self._sent += 1
            reply = await self._client.score(
                "pump", series=SERIES, stamps=np.full(4, NOW + row), values=POINTS[row], contributions=False
            )
            self.replies.append((reply.version, reply.scores))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.send(1)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def streaming(tmp_path: Path, **probation: Any) -> AsyncIterator[tuple[Hub, Client, Stream]]:
    """A hub with a detector that was fitted, and points that flow into it."""
    detector = {"features": ["f1", "f2"], "probation": {"seconds": "1h", **probation}}
    settings = hub_settings(tmp_path, device_classes={"hub": {"p99": "2ms"}}, detectors={"pump": detector})
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        values = RNG.normal(size=(100, 2)).astype(np.float32)
        fit = await client.fit_upload("pump", features=["f1", "f2"], stamps=NOW - 100 + np.arange(100), values=values)
        await client.wait_operation(fit)
        stream = Stream(client)
        await stream.send(40)
        flowing = asyncio.create_task(stream.run())
        try:
            yield hub, client, stream
        finally:
            flowing.cancel()
            await asyncio.gather(flowing, return_exceptions=True)
    await hub.stop()


async def pruned(client: Client, seed: int | None = None) -> dict[str, Any]:
    """One cycle that somebody asked for."""
    return await client.wait_operation(await client.prune("pump", speedup=2, seed=seed))


async def newest(client: Client) -> dict[str, Any]:
    """The newest cycle."""
    return (await client.cycles("pump"))[0]


async def decided(client: Client, state: str) -> bool:
    """Whether the newest cycle's version has come to be in a state."""
    return (await newest(client))["adoption"] == state


def count_of_adoptions(hub: Hub) -> dict[str, float]:
    """How many probations have ended, and how."""
    return {it.labels["state"]: it.value for it in hub.metrics.adoptions.collect().samples}


@pytest.mark.parametrize(
    ("seed", "reason"),
    [(FLOOD, "alarm flood"), (BROKEN, "no numbers"), (SLOW, "times as long"), (HIGH, "error up")],
)
async def test_a_candidate_that_misbehaves_on_live_points_never_serves(tmp_path: Path, seed: int, reason: str) -> None:
    """It scores beside what serves, is rejected with what it did, and nobody has seen its scores."""
    async with streaming(tmp_path, shadow_points=400, shadow_seconds="20s") as (_, client, stream):
        result = await pruned(client, seed)
        cycle = await newest(client)

    assert result["outcome"] == "rejected"
    assert reason in result["reason"]
    assert (cycle["outcome"], cycle["adoption"]) == ("rejected", "")
    assert {version for version, _ in stream.replies} == {1}


async def test_a_candidate_that_behaves_comes_to_serve_and_is_kept(tmp_path: Path) -> None:
    """It was in the shadow for as many live points as the settings say; after its probation it is kept."""
    async with streaming(tmp_path, shadow_points=80, points=200) as (_, client, _stream):
        seen: list[str] = []
        operation = await client.prune("pump", speedup=2)
        result = await client.wait_operation(operation, lambda _stage, _done, message: seen.append(message))
        on_probation = (await newest(client))["adoption"]
        await eventually(lambda: decided(client, "kept"))

    assert result["outcome"] == "adopted"
    assert on_probation == "probation"
    assert any("live points scored" in message or "beside what serves" in message for message in seen)


@pytest.mark.promise("R6")
@pytest.mark.parametrize(("seed", "reason"), [(FLOOD, "alarm flood"), (BROKEN, "no numbers"), (SLOW, "times as long")])
async def test_a_version_that_misbehaves_goes_back_by_itself(tmp_path: Path, seed: int, reason: str) -> None:
    """Within seconds and few points; no reply fails, scores before and after are those of the version named."""
    async with streaming(tmp_path, **NO_SHADOW) as (hub, client, stream):
        assert (await pruned(client, seed))["outcome"] == "adopted"
        began = len(stream.replies)
        await eventually(lambda: decided(client, "rolled_back"), seconds=30)
        await eventually(lambda: asyncio.sleep(0, stream.replies[-1][0] == 1), seconds=30)
        came_back = len(stream.replies)
        cycle, served = await newest(client), (await client.get("pump"))["served"][0]
        rows = hub.store.catalog.adoptions("pump")

    assert reason in cycle["adoption_reason"]
    assert served["version"] == 1
    assert (came_back - began) * len(SERIES) <= 6000
    assert [(it.version, it.state) for it in rows] == [(2, "rolled_back")]
    expected = ewma_scores(POINTS[: len(stream.replies), 0])
    got = np.array([scores[0] for _, scores in stream.replies])
    first = np.array([version == 1 for version, _ in stream.replies])
    np.testing.assert_allclose(got[first], expected[first], rtol=2e-3, atol=2e-3)


@pytest.mark.promise("R6")
async def test_a_version_is_not_excused_by_one_that_is_no_better(tmp_path: Path) -> None:
    """Two that flood follow each other before anybody looks: both go back at once, to the last that is proven."""
    async with streaming(tmp_path, **NO_SHADOW) as (hub, client, stream):
        next(loop for loop in hub._loops if "Probations" in repr(loop)).cancel()
        for _ in range(2):
            assert (await pruned(client, FLOOD))["outcome"] == "adopted"
            await stream.send(50)

        async def looked() -> bool:
            await hub.probations.look()
            return stream.replies[-1][0] == 1

        await eventually(looked, seconds=60)
        rows = hub.store.catalog.adoptions("pump")
        counts = count_of_adoptions(hub)

    assert [version for version, _ in groupby(stream.replies, lambda it: it[0])] == [1, 2, 3, 1]
    assert [(it.version, it.state) for it in rows] == [(3, "rolled_back"), (2, "rolled_back")]
    assert rows[1].reason.startswith(
        "it had not proven itself when version 3, which took over from it, went back: alarm flood"
    )
    assert counts == {"rolled_back": 2}


async def test_versions_that_follow_each_other_on_probation_are_kept_together(tmp_path: Path) -> None:
    """None is left on probation for ever: the ones before end with the last one."""
    async with streaming(tmp_path, **NO_SHADOW, points=300) as (hub, client, _):
        for _ in range(3):
            await pruned(client)
        await eventually(lambda: decided(client, "kept"), seconds=30)
        rows = hub.store.catalog.adoptions("pump")
        counts = count_of_adoptions(hub)

    assert [(it.version, it.state) for it in rows] == [(4, "kept"), (3, "kept"), (2, "kept")]
    assert counts == {"kept": 3}


async def test_what_was_rolled_back_is_not_adopted_again_by_itself(tmp_path: Path) -> None:
    """A cycle that nobody asked for and that makes the same again is rejected; who asks for it gets it."""
    async with streaming(tmp_path, **NO_SHADOW) as (hub, client, _):
        await pruned(client)
        await client.roll_back("pump")
        operation = await hub.maintenance.cycle("pump", ["hub"], trigger="drift")
        await client.wait_operation(operation.name)
        by_itself = await newest(client)
        await pruned(client)
        asked_for = await newest(client)

    assert by_itself["outcome"] == "rejected"
    assert by_itself["reason"] == "it is version 2 again, which was rolled back: somebody rolled it back"
    assert (asked_for["outcome"], asked_for["adoption"]) == ("adopted", "probation")


async def test_cycles_wait_after_a_version_went_back(tmp_path: Path) -> None:
    """Those that begin by themselves, for as long as the settings say."""
    async with streaming(tmp_path, back_off="2h", **NO_SHADOW) as (hub, client, _):
        config, now = hub.roster.config_of("pump"), hub.store.catalog.clock
        before = allowed(hub.store.catalog, "pump", config, ["hub"], now())
        await pruned(client, FLOOD)
        await eventually(lambda: decided(client, "rolled_back"), seconds=30)
        after = [allowed(hub.store.catalog, "pump", config, ["hub"], now() + wait) for wait in (0, 7100, 7300)]

    assert before == ["hub"]
    assert after == [[], [], ["hub"]]


def test_back_off_doubles_up_to_a_week_and_ends_with_a_version_that_is_kept() -> None:
    """In seconds since the epoch, by device class."""

    def row(state: str, ended: float, device_class: str = "hub") -> AdoptionRow:
        return AdoptionRow(1, "pump", device_class, 2, 1, 1, 0.0, ended, state)  # type: ignore[arg-type]

    assert back_off_until([], "hub", 60) == 0
    assert back_off_until([row("kept", 9), row("rolled_back", 5)], "hub", 60) == 0
    assert back_off_until([row("rolled_back", 100)] * 3 + [row("kept", 1)], "hub", 60) == 100 + 240
    assert back_off_until([row("rolled_back", 100)] * 50, "hub", 60) == 100 + 7 * 86400
    assert back_off_until([row("rolled_back", 100, "pi4")], "hub", 60) == 0


async def test_what_a_person_rolls_back_counts_as_rolled_back(tmp_path: Path) -> None:
    """The book says who it was, the probation is over, and cycles that begin by themselves wait as after any other."""
    async with streaming(tmp_path, **NO_SHADOW) as (hub, client, _):
        await pruned(client)
        await client.roll_back("pump")
        cycle = await newest(client)
        (row,) = hub.store.catalog.adoptions("pump")

        counts = count_of_adoptions(hub)
        await client.roll_back("pump")
        (later,) = hub.store.catalog.adoptions("pump")

    assert (cycle["adoption"], cycle["adoption_reason"]) == ("rolled_back", "somebody rolled it back")
    assert back_off_until([row], "hub", 60) == (row.ended or 0) + 60
    assert later == row
    assert counts == {"rolled_back": 1}


async def test_a_pinned_version_is_not_rolled_back(tmp_path: Path) -> None:
    """People come first: it stays, and the book says what it did."""
    async with streaming(tmp_path, **NO_SHADOW) as (_hub, client, _):
        await pruned(client, FLOOD)
        await client.pin("pump")
        await eventually(lambda: decided(client, "kept"), seconds=30)
        cycle, served = await newest(client), (await client.get("pump"))["served"][0]

    assert served["version"] == 2
    assert "alarm flood" in cycle["adoption_reason"]
    assert "pinned" in cycle["adoption_reason"]


async def test_a_probation_goes_on_after_a_restart(tmp_path: Path) -> None:
    """A version that is adopted while points are few is watched by the next process too, and goes back there."""
    detector = {"features": ["f1", "f2"], "probation": {"seconds": "1h", **NO_SHADOW}}
    settings = hub_settings(tmp_path, device_classes={"hub": {"p99": "2ms"}}, detectors={"pump": detector})
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        values = RNG.normal(size=(100, 2)).astype(np.float32)
        await client.wait_operation(
            await client.fit_upload("pump", features=["f1", "f2"], stamps=NOW - 100 + np.arange(100), values=values)
        )
        await pruned(client, FLOOD)
    await hub.stop()
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        before = (await client.get("pump"))["served"][0]["version"]
        flowing = asyncio.create_task(Stream(client).run())
        await eventually(lambda: decided(client, "rolled_back"), seconds=30)
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
        after = (await client.get("pump"))["served"][0]["version"]
    await hub.stop()

    assert (before, after) == (2, 1)


async def test_a_version_that_can_not_be_loaded_any_more_goes_back(tmp_path: Path) -> None:
    """Its bundle was damaged while it was on probation and the server down: the version before serves again."""
    detector = {"features": ["f1", "f2"], "probation": {"seconds": "1h", **NO_SHADOW}}
    settings = hub_settings(tmp_path, device_classes={"hub": {"p99": "2ms"}}, detectors={"pump": detector})
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        values = RNG.normal(size=(100, 2)).astype(np.float32)
        await client.wait_operation(
            await client.fit_upload("pump", features=["f1", "f2"], stamps=NOW - 100 + np.arange(100), values=values)
        )
        await pruned(client)
        bundle = hub.store.bundle_folder((await client.get("pump"))["served"][0]["bundle_hash"])
    await hub.stop()
    (bundle / "step.onnx").write_bytes(b"damaged")
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await eventually(lambda: decided(client, "rolled_back"), seconds=30)

        async def scores_again() -> bool:
            return (await client.get("pump"))["problem"] == ""

        await eventually(scores_again)
        detector_now = await client.get("pump")
    await hub.stop()

    assert detector_now["served"][0]["version"] == 1


async def test_cycles_are_watched_as_they_happen(tmp_path: Path) -> None:
    """First those of the past, then each change: begun, its stages, ended, kept."""
    async with streaming(tmp_path, points=100, **NO_SHADOW) as (_, client, _stream):
        await pruned(client)
        seen: list[dict[str, Any]] = []

        async def watch() -> None:
            async for cycle in client.watch_cycles("pump", newest=5):
                seen.append(cycle)
                if cycle["id"] > seen[0]["id"] and cycle["adoption"] == "kept":
                    return

        watching = asyncio.create_task(watch())
        await eventually(lambda: asyncio.sleep(0, bool(seen)))
        await pruned(client)
        await asyncio.wait_for(watching, 30)

    ours = [it for it in seen if it["id"] > seen[0]["id"]]
    assert seen[0]["outcome"] == "adopted"
    assert ours[-1]["outcome"] == "adopted"
    assert ours[-1]["result"]["child"]["version"] == 3
    assert len({it["id"] for it in ours}) == 1
