"""R7: live series go on after a restart, as if nothing had been."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_TRAINER, bundle_facts, hub_settings, publish
from crashing import Node, connected
from graphs import ewma_bundle, ewma_scores

from detectors.bundle import write_bundle
from detectors.stamps import Status
from prunewatch.client import Client, Scores
from server.app import Hub
from server.history import History
from server.publish import publish_fit
from server.resume import newest_points
from server.store import Store

FEATURES = ["f1", "f2"]
SERIES = 40
POINTS = np.random.default_rng(3).normal(size=(160, SERIES, 2)).astype(np.float32)
FLUSH_SECONDS = 0.2
LOST_SECONDS = 10.0
NAMES = [f"s{i}" for i in range(SERIES)]


def hub(folder: Path, **detector: object) -> Node:
    """A hub with a version that serves, in a process of its own."""
    fields = {"features": FEATURES, "time": "index", **detector}
    node = Node(folder / "store", folder / "log.txt", detectors={"pump": fields}, history_flush_seconds=FLUSH_SECONDS)
    node.start()
    node.kill()
    with Store.open(folder / "store") as store:
        bundle = ewma_bundle("pump", 1)
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        publish_fit(store, "pump", {"parent": bundle_facts(bundle)})
    node.start()
    return node


async def send(client: Client, row: int) -> Scores:
    """One point of every series."""
    return await client.score("pump", series=NAMES, stamps=[row] * SERIES, values=POINTS[row])


@pytest.mark.slow
@pytest.mark.promise("R7")
async def test_after_a_kill_series_go_on(tmp_path: Path) -> None:
    """Nothing warms up, and scores are those of a detector that never stopped; what is sent again is known."""
    node = hub(tmp_path)
    try:
        async with connected(node) as client:
            for row in range(100):
                await send(client, row)
            await asyncio.sleep(5 * FLUSH_SECONDS)
        node.kill()
        node.start()
        async with connected(node) as client:
            again = await send(client, 99)
            replies = [await send(client, row) for row in range(100, 120)]
    finally:
        node.kill()

    assert set(again.statuses) == {Status.DUPLICATE}
    assert all((reply.statuses == Status.OK).all() for reply in replies)
    expected = np.stack([ewma_scores(POINTS[:120, i])[100:] for i in range(SERIES)], axis=1)
    np.testing.assert_allclose(np.stack([reply.scores for reply in replies]), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.promise("R7")
async def test_a_kill_in_mid_stream_costs_seconds(tmp_path: Path) -> None:
    """Of what was answered all but the last moments is known; every point after that is taken when it is sent again."""
    node = hub(tmp_path)
    answered: list[float] = []
    try:
        async with connected(node) as client:
            for row in range(120):
                await send(client, row)
                answered.append(asyncio.get_running_loop().time())
                await asyncio.sleep(0.01)
        killed = asyncio.get_running_loop().time()
        node.kill()
        node.start()
        async with connected(node) as client:
            statuses = [set((await send(client, row)).statuses) for row in range(120)]
    finally:
        node.kill()

    known = next((row for row, found in enumerate(statuses) if found == {Status.OK}), len(statuses))
    assert known > 0
    assert not any(Status.OK in found or Status.WARMING_UP in found for found in statuses[:known])
    assert all(found == {Status.OK} for found in statuses[known:])
    assert known == len(answered) or killed - answered[known] < LOST_SECONDS


@pytest.mark.promise("R7")
async def test_after_an_orderly_end_series_go_on_bit_by_bit(tmp_path: Path) -> None:
    """State, rings, stamps and counts are those they ended with; so are those of series that were on disk."""
    limit = "16KiB"  # room for seven of the forty
    detectors = {"pump": {"features": FEATURES, "time": "index", "series_memory": limit}}

    def standing(hub: Hub) -> dict[str, tuple[object, ...]]:
        scorer = hub.host.get("pump").live()
        found = {}
        for name in NAMES:  # those on disk come back for it
            (slot,) = slots = scorer.series.known([name])
            (seat,) = scorer.carried.seats(slots)
            state = b"".join(array[seat].tobytes() for array in scorer.carried.state)
            ring = scorer.series.recent(slot).tobytes()
            found[name] = (state, ring, int(scorer.series.last_stamp[slot]), int(scorer.series.seen[slot]))
        return found

    hub = Hub(hub_settings(tmp_path, detectors=detectors), trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump", 1))
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        for row in range(20):
            await send(client, row)
    before = standing(hub)
    await hub.stop()
    again = Hub(hub_settings(tmp_path, detectors=detectors), trainer=QUICK_TRAINER)
    await again.start()
    seated = hub.host.get("pump").live().series.seated
    after = standing(again)
    await again.stop()

    assert 0 < seated < SERIES
    assert before == after


def test_the_newest_points_of_each_series_are_found(tmp_path: Path) -> None:
    """Of streamed ones alone, behind the last gap, the last that was heard of first."""
    history = History(tmp_path, FEATURES)

    def add(name: str, stamps: list[int]) -> None:
        values = np.column_stack([stamps, stamps]).astype(np.float32)
        scores, flagged = np.zeros(len(stamps), np.float32), np.zeros(len(stamps), np.bool_)
        history.append([name] * len(stamps), np.array(stamps), values, scores, flagged)

    history.add_points(np.arange(50), np.zeros((50, 2), np.float32))
    add("a", [1, 2, 3])
    add("b", [1, 2, 20, 21])
    history.flush()
    add("a", [4, 5])
    history.flush()

    def found(points: int, max_gap: int | None = None) -> list[tuple[str, int, list[float]]]:
        every = newest_points(history.paths(), FEATURES, points, max_gap)
        return [(it.name, it.last_stamp, it.values[:, 0].tolist()) for it in every]

    assert found(3) == [("b", 21, [2, 20, 21]), ("a", 5, [3, 4, 5])]
    assert found(9, max_gap=5) == [("b", 21, [20, 21]), ("a", 5, [1, 2, 3, 4, 5])]
    assert list(newest_points([], FEATURES, 3, None)) == []
