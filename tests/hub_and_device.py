"""A real hub and a real agent that is enrolled to it, in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agents import Points, agent
from conftest import QUICK_TRAINER, Hub, eventually, hub_settings, publish
from fleet_hub import CLASSES
from graphs import ewma_bundle

from server.edge.agent import Agent

QUIET = {"status_every": "0.5s"}


async def token_for(hub: Hub, folder: Path, device_class: str = "pi4", name: str = "token") -> Path:
    """A file with a token for one device, as an operator hands it over."""
    made = await asyncio.to_thread(hub.fleet.enrolment.make_token, device_class)
    path = folder / name
    path.write_text(made.text)
    return path


@asynccontextmanager
async def hub_and_device(folder: Path, **fields: Any) -> AsyncIterator[tuple[Hub, Agent]]:
    """Both, and `pump` serves on both: it has proven itself on the device."""
    settings = hub_settings(folder, device_classes=CLASSES, fleet=QUIET, **fields)
    hub = Hub(settings, trainer=QUICK_TRAINER, clock=time.time)
    await hub.start()
    try:
        await publish(hub, ewma_bundle("pump", gain=1.0, warm_up_points=3), device_classes=["hub", "pi4"], time="index")
        await hub.fleet.settle(["pump"])
        token = await token_for(hub, folder)
        async with agent(folder / "device", f"127.0.0.1:{hub.listener.port}", token=token) as device:

            async def serves() -> bool:
                return "pump" in device.host

            await eventually(serves)
            await Points().send(device, 60)

            async def proven() -> bool:
                return all(it.slots.state.trial is None for it in device.convergence.deployments.values())

            await eventually(proven)
            yield hub, device
    finally:
        await hub.stop()
