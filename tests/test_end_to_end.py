"""The whole loop with the real trainer: fit from an upload, prune and swap under a running stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from conftest import NOW, hub_settings

from detectors.stamps import Status
from prunewatch.client import Batch, Client
from server.app import Hub

SERIES = 16


def waves(n: int) -> np.ndarray:
    """Points of three features: waves of different lengths with some noise."""
    t = np.arange(n)
    noise = np.random.default_rng(0).normal(size=(n, 3)) * 0.1
    return np.stack([np.sin(t / 10), np.cos(t / 17), np.sin(t / 5)], axis=1) + noise


@pytest.mark.slow
async def test_a_detector_is_pruned_and_swapped_under_a_running_stream(tmp_path: Path) -> None:
    """A stream goes on through a cycle and its swap without error, gap or second warm-up; the child is smaller."""
    generous = {"error_ratio": 20.0, "alarm_jaccard": 0.0, "injected_drop": 1.0}
    detector = {"features": ["a", "b", "c"], "options": {"width": 64}, "gate": generous}
    hub = Hub(hub_settings(tmp_path, detectors={"pump": detector}))
    await hub.start()
    values, times = waves(20_000), NOW + np.arange(20_000) * 10**9
    versions, statuses = [], []
    pruned = asyncio.Event()

    async def batches():
        for t in range(1500, len(values)):
            names = [f"s{i}" for i in range(SERIES)] if t == 1500 else ()
            yield Batch(np.repeat(values[t : t + 1], SERIES, axis=0), stamps=[times[t]] * SERIES, series=names)
            await asyncio.sleep(0.005)
            if pruned.is_set():
                return

    async def stream(client: Client) -> None:
        async for reply in client.score_stream("pump", batches()):
            versions.append(reply.version)
            statuses.append(reply.statuses)

    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        upload = {"features": ["a", "b", "c"], "stamps": times[:1500], "values": values[:1500]}
        await client.wait_operation(await client.fit_upload("pump", **upload))
        streaming = asyncio.create_task(stream(client))
        await asyncio.sleep(1)
        result = await client.wait_operation(await client.prune("pump", speedup=1.5, batch=64))
        await asyncio.sleep(0.5)
        pruned.set()
        await streaming
        shown = await client.show("pump")
    await hub.stop()

    assert result["outcome"] == "adopted", result
    assert result["child"]["parameters"] < result["parent"]["parameters"]
    assert sorted(set(versions)) == [1, 2]
    assert versions == sorted(versions)
    assert {int(status) for row in statuses[50:] for status in row} == {Status.OK}
    assert [version["cause"] for version in shown["versions"]] == ["fit", "prune"]
