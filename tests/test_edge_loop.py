"""The loop over devices, whole: a hub with the real trainer, and agents that score, measure and tell by real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import settings_of
from conftest import Hub, eventually, hub_settings
from fits import FOUR, machine

from prunewatch.client import Client
from server.app import Hub as RealHub
from server.edge.agent import Agent, AgentOptions
from server.edge.deployment import Window
from server.edge.link import Tempo
from server.records import AWAITING, CORRECTED, CycleRow

NAMES = ("north", "south", "west")
SERIES = 64
PATIENT = Tempo(look=0.05, first=0.05, longest=0.4, again=0.3)
LONGEST = 240.0
"""Seconds that a step of the loop may take where the machine is busy with other things."""
DETECTOR: dict[str, Any] = {
    "network": "lstm",
    "options": {"layers": 2, "width": 64},
    "features": list(FOUR),
    "device_classes": ["hub", "pi4"],
    "time": "index",
    "triggers": {"missed_budget": True, "cool_down": "1s"},
    "gate": {"error_ratio": 2.0, "alarm_jaccard": 0.0, "tail_agreement": -1.0, "injected_drop": 0.1},
    "probation": {"shadow_points": 0, "points": 0},
}
FLEET = {"status_every": "0.5s", "rollout": {"window": "1s", "canaries": 3, "alarm_flood": 1000, "slower": 20}}
MEASURING = {"table_graphs": 16, "canaries": 3, "patience": "30s"}


class Fleet:
    """A hub, its devices, and points that come to each of them."""

    def __init__(self, hub: Hub, client: Client, agents: Sequence[Agent]) -> None:
        self.hub, self.client, self.agents = hub, client, agents
        self._rows = machine(20_000, seed=3)
        self.at = 0

    async def flow(self) -> None:
        """Points of all series to every device until cancelled: always the next ones, with a breath between."""
        async with AsyncExitStack() as stack:
            ports = [it.listener.port for it in self.agents]
            clients = [await stack.enter_async_context(Client(f"127.0.0.1:{port}")) for port in ports]
            while True:
                rows = (self.at + 37 * np.arange(SERIES)) % len(self._rows)
                for client in clients:
                    await client.score(
                        "machine",
                        series=[f"s{i}" for i in range(SERIES)],
                        series_index=np.arange(SERIES),
                        stamps=np.full(SERIES, self.at),
                        values=self._rows[rows],
                    )
                self.at += 1
                await asyncio.sleep(0.3)

    def cycles(self) -> list[CycleRow]:
        """Of the class of the devices, newest first."""
        return [row for row in self.hub.store.catalog.cycles("machine") if row.device_class == "pi4"]

    async def adopted(self) -> None:
        """Waits until the newest cycle has a child that serves, and says what there was where it never has."""
        end = time.monotonic() + LONGEST
        while (book := [(it.outcome, it.reason) for it in self.cycles()]) == [] or book[0][0] != "adopted":
            assert time.monotonic() < end, book
            assert book == [] or book[0][0] in {"running", AWAITING, CORRECTED}, book
            await asyncio.sleep(0.1)

    def measured(self) -> float | None:
        """The p50 in seconds of what serves on the devices, as they have measured it."""
        serving = self.hub.store.catalog.serving("machine", "pi4")
        assert serving is not None
        known = [it for it in self.hub.store.catalog.measurements(serving.bundle_hash) if it.device_class == "pi4"]
        return max(known, key=lambda it: it.measured).p50_seconds if known else None

    async def all_serve(self, version: int) -> None:
        """Waits until every device says that it serves a version, proven."""
        serving = self.hub.store.catalog.serving("machine", "pi4")
        assert serving is not None
        assert serving.version == version

        async def do() -> bool:
            served = [it["served"] for it in await self.client.fleet.devices()]
            return len(served) == len(NAMES) and all(
                [(it["bundle"], it["state"]) for it in each] == [(serving.bundle_hash, "serving")] for each in served
            )

        await eventually(do, LONGEST)


@asynccontextmanager
async def fleet_of(folder: Path) -> AsyncIterator[Fleet]:
    """A fitted detector of 2 x 64 units for three devices that are enrolled."""
    async with AsyncExitStack() as stack:
        hub = RealHub(hub_settings(folder, fleet=FLEET, measuring=MEASURING, page=False))
        await hub.start()
        stack.push_async_callback(hub.stop)
        address = f"127.0.0.1:{hub.listener.port}"
        client = await stack.enter_async_context(Client(address))
        await client.fleet.create_device_class("pi4", {"batch": SERIES})
        await hub.roster.create("machine", DETECTOR)
        upload = {"features": FOUR, "stamps": np.arange(1500), "values": machine(1500)}
        await client.wait_operation(await client.fit_upload("machine", **upload))
        agents = []
        for name in NAMES:
            token = folder / f"{name}.token"
            token.write_text((await client.fleet.create_token("pi4", device=name))["token"])
            options = AgentOptions(folder / name, address, name, "pi4", token)
            agent = Agent(
                settings_of(folder / name), options, tempo=PATIENT, window=Window(points=200, look_seconds=0.1)
            )
            await agent.start()
            stack.push_async_callback(agent.stop)
            agents.append(agent)
        await eventually(lambda: asyncio.sleep(0, all(len(it.host) for it in agents)), LONGEST)
        yield Fleet(hub, client, agents)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_devices_come_inside_their_budget_by_themselves(tmp_path: Path) -> None:
    """A missed p50 is reported and begins one cycle; its child is measured on the devices and delivered to all."""
    async with fleet_of(tmp_path) as fleet:
        flowing = asyncio.create_task(fleet.flow())
        try:
            await fleet.all_serve(1)
            parent = await eventually(lambda: asyncio.sleep(0, fleet.measured()), LONGEST)
            await eventually(lambda: has_table(fleet), LONGEST)
            await fleet.client.fleet.update_device_class("pi4", {"p50_seconds": 0.7 * parent})

            await eventually(
                lambda: asyncio.sleep(0, [it.outcome for it in fleet.cycles()][:1] == ["adopted"]), LONGEST
            )
            begun, adopted = fleet.cycles()[-1], fleet.cycles()[0]
            await fleet.all_serve(adopted.result["child"]["version"])
            await asyncio.sleep(2)  # in which nothing more begins
            measured, outcomes = fleet.measured(), [it.outcome for it in fleet.cycles()]
            rollouts = await fleet.client.fleet.rollouts("machine", "pi4")
        finally:
            flowing.cancel()
            await asyncio.gather(flowing, return_exceptions=True)

    assert begun.trigger == "missed_budget"
    assert "was measured on pi4" in begun.cause
    assert set(outcomes[1:]) <= {CORRECTED}  # a child that was foretold wrongly is made narrower, within the one cycle
    assert AWAITING not in outcomes
    assert adopted.result["times"].startswith("measured on 3 devices")
    assert measured is not None
    assert measured <= 0.7 * parent
    assert adopted.result["child"]["parameters"] < adopted.result["parent"]["parameters"]
    assert [it["stage"] for it in rollouts] == ["complete"]
    print(f"p50 {1e6 * parent:.0f} us before, {1e6 * measured:.0f} us after; outcomes {outcomes}")


async def has_table(fleet: Fleet) -> bool:
    """Whether cycles plan on what all devices have measured."""
    known = fleet.hub.measuring.grids.known("machine", "pi4")
    return known is not None and len(known.counted) == len(NAMES)
