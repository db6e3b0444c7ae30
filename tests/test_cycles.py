"""Cycles that begin by themselves: one parent, a child for each device class, one version; and how they are listed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, hub_settings
from quick_trainer import REJECT
from typer.testing import CliRunner

from detectors.errors import PreconditionError
from prunewatch.client import Client
from server.app import Hub
from server.cli import app
from server.commands.cycles import brief

RNG = np.random.default_rng(3)
VALUES = RNG.normal(size=(400, 2)).cumsum(axis=0).astype(np.float32)
CLASSES = {"hub": {"p99": "2ms"}, "pi4": {"p99": "4ms", "batch": 64}, "spare": {}}


@asynccontextmanager
async def hosting(
    tmp_path: Path, trainer: tuple[str, ...] | None = QUICK_TRAINER, **fields: Any
) -> AsyncIterator[tuple]:
    """A hub with a fitted detector for a few device classes."""
    detector = {"features": ["f1", "f2"], "device_classes": list(CLASSES), **fields}
    settings = hub_settings(tmp_path, device_classes=CLASSES, detectors={"pump": detector})
    hub = Hub(settings, trainer=trainer) if trainer else Hub(settings)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        stamps = NOW - 400 + np.arange(400)
        await client.wait_operation(
            await client.fit_upload("pump", features=["f1", "f2"], stamps=stamps, values=VALUES)
        )
        yield hub, client
    await hub.stop()


async def test_a_cycle_makes_one_version_for_all_device_classes(tmp_path: Path) -> None:
    """One operation, one transaction; the book has a row for each class, with what began it and in which operation."""
    async with hosting(tmp_path) as (hub, client):
        row = await hub.maintenance.cycle("pump", ["hub", "pi4"], trigger="drift", cause="errors doubled")
        await client.wait_operation(row.name)
        cycles = await client.cycles("pump")
        (version,) = [it for it in hub.store.catalog.versions("pump") if it.version == 2]
        serving = {it.device_class: it.version for it in hub.store.catalog.all_serving("pump")}

    assert {it["device_class"] for it in cycles} == {"hub", "pi4"}
    assert {(it["trigger"], it["cause"], it["outcome"], it["operation"]) for it in cycles} == {
        ("drift", "errors doubled", "adopted", row.name)
    }
    assert set(version.bundles) == {"hub", "pi4"}
    assert serving == {"hub": 2, "pi4": 2, "spare": 1}


async def test_a_pinned_class_is_left_out_and_all_pinned_is_refused(tmp_path: Path) -> None:
    """What is pinned keeps what it serves; where nothing may be adopted no cycle begins."""
    async with hosting(tmp_path) as (hub, client):
        await client.pin("pump", "pi4")
        row = await hub.maintenance.cycle("pump", ["hub", "pi4"], trigger="schedule")
        await client.wait_operation(row.name)
        serving = {it.device_class: it.version for it in hub.store.catalog.all_serving("pump")}
        with pytest.raises(PreconditionError, match="pinned"):
            await hub.maintenance.cycle("pump", ["pi4"], trigger="schedule")
        cycles = await client.cycles("pump")

    assert serving == {"hub": 2, "pi4": 1, "spare": 1}
    assert [it["device_class"] for it in cycles] == ["hub"]


async def test_rejected_for_all_classes_publishes_nothing(tmp_path: Path) -> None:
    """Each row says why; the version that serves does not change."""
    async with hosting(tmp_path, seed=REJECT) as (hub, client):
        row = await hub.maintenance.cycle("pump", ["hub", "pi4"], trigger="schedule")
        await client.wait_operation(row.name)
        cycles = await client.cycles("pump")

    assert [(it["outcome"], it["reason"]) for it in cycles] == [("rejected", "nothing is fast enough")] * 2
    assert (await asyncio.sleep(0, cycles))[0]["adoption"] == ""


@pytest.mark.slow
async def test_the_real_trainer_updates_the_parent_once_for_all_classes(tmp_path: Path) -> None:
    """A class without a budget follows the parent; the others get children of it; all in one version."""
    network = {"network": "gru", "options": {"width": 16, "layers": 1}}
    async with hosting(tmp_path, None, **network) as (hub, client):
        moved = VALUES[-1] + RNG.normal(size=(600, 2)).cumsum(axis=0).astype(np.float32) * 1.5
        for start in range(0, 600, 100):
            stamps = NOW + np.arange(start, start + 100)
            await client.score("pump", series=["a"], stamps=stamps, values=moved[start : start + 100])
        row = await hub.maintenance.cycle("pump", list(CLASSES), trigger="schedule")
        await client.wait_operation(row.name)
        cycles = {it["device_class"]: it for it in await client.cycles("pump")}
        versions = {it.version: it for it in hub.store.catalog.versions("pump")}

    assert set(cycles) == set(CLASSES)
    parents = {it["result"]["parent"]["hash"] for it in cycles.values() if it["result"]}
    assert len(parents) == 1
    if 2 in versions:
        assert versions[2].parent_hash in parents
        assert {it for it, cycle in cycles.items() if cycle["outcome"] == "adopted"} >= set(versions[2].bundles) - {
            "spare"
        }


async def test_cycles_are_listed_by_the_command_line(tmp_path: Path) -> None:
    """From the server and from the store alike, as a table and as JSON."""
    runner = CliRunner()
    async with hosting(tmp_path) as (hub, client):
        row = await hub.maintenance.cycle("pump", ["hub"], trigger="missed_budget", cause="p99 3 ms, budget 2 ms")
        await client.wait_operation(row.name)
        address = f"127.0.0.1:{hub.listener.port}"
        table = await asyncio.to_thread(runner.invoke, app, ["cycles", "pump", "--server", address])
        asked = await asyncio.to_thread(runner.invoke, app, ["cycles", "pump", "--server", address, "--json"])
    stored = runner.invoke(app, ["cycles", "pump", "--store", str(tmp_path / "store"), "--json"])
    none = runner.invoke(app, ["cycles", "pump", "--store", str(tmp_path / "store"), "--follow"])

    assert "missed_budget: p99 3 ms, budget 2 ms" in table.stdout
    (found,) = json.loads(asked.stdout)["cycles"]
    assert (found["trigger"], found["version"], found["outcome"]) == ("missed_budget", 2, "adopted")
    assert {**json.loads(stored.stdout)["cycles"][0], "adoption": ""} == {**found, "adoption": ""}
    assert none.exit_code != 0
    assert "nothing to follow" in str(none.exception)


async def test_following_shows_what_happens(tmp_path: Path) -> None:
    """`--follow` prints the cycle that begins while it runs, and how it ended; it ends with the server."""
    async with hosting(tmp_path) as (hub, client):
        address = f"127.0.0.1:{hub.listener.port}"
        command = ["cycles", "pump", "--server", address, "--follow", "--json"]
        following = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, app, command))
        await asyncio.sleep(1)
        row = await hub.maintenance.cycle("pump", ["pi4"], trigger="schedule")
        await client.wait_operation(row.name)
        await asyncio.sleep(1.5)
    done = await asyncio.wait_for(following, 30)

    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines[-1]["outcome"] == "adopted"
    assert lines[-1]["device_class"] == "pi4"


def test_the_version_of_a_cycle_is_shown_only_where_it_was_adopted() -> None:
    """Planned and rejected ones have made none."""
    cycle = {
        **dict.fromkeys(("cause", "reason", "adoption", "adoption_reason"), ""),
        "id": 1,
        "device_class": "hub",
        "trigger": "manual",
        "started_seconds": 1.0,
        "ended_seconds": 2.0,
        "outcome": "planned",
        "result": {"version": 3, "parent": {"p50_seconds": 2.0}, "child": {"p50_seconds": 0.5}},
    }

    assert (brief(cycle)["version"], brief(cycle)["speedup"]) == (None, 4.0)
    assert brief({**cycle, "outcome": "adopted"})["version"] == 3
