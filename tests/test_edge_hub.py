"""A real hub and real agents: releases, roll-outs, keys, restarts, being let go, TLS. Small graphs, no trainer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Points, agent
from authority import Authority, put
from conftest import Hub, eventually, publish
from fleet_hub import fleet_hub
from graphs import ewma_bundle
from ports import free_port

from detectors.errors import InvalidInputError, PreconditionError
from prunewatch.client import Client
from prunewatch.credentials import Credentials
from server.edge.link import Tempo

FLEET: dict[str, Any] = {"status_every": "0.2s", "rollout": {"window": "0.2s"}}
CLASSES: dict[str, Any] = {"hub": {}, "pi4": {"batch": 64}}
PATIENT = Tempo(look=0.05, first=0.05, longest=0.4, again=0.3)


async def offer(hub: Hub, version: int = 1) -> str:
    """Publishes a version that scores a little otherwise, and settles; returns its hash."""
    bundle = ewma_bundle("pump", version, alpha=0.1 + 0.01 * version)
    await publish(hub, bundle, device_classes=["hub", "pi4"])
    await hub.fleet.settle(["pump"])
    return bundle.hash


@asynccontextmanager
async def running_hub(folder: Path, **fields: Any) -> AsyncIterator[tuple[Hub, Client]]:
    """A hub on the clock of the machine, and an operator."""
    async with (
        fleet_hub(folder / "hub", time.time, fleet=FLEET, device_classes=CLASSES, **fields) as hub,  # type: ignore[arg-type]
        Client(f"127.0.0.1:{hub.listener.port}") as client,
    ):
        yield hub, client


async def token_of(client: Client, folder: Path, name: str = "north-7") -> Path:
    """A file with a token for one device, as an operator makes it."""
    path = folder / "token"
    path.write_text((await client.fleet.create_token("pi4", device=name))["token"])
    return path


async def serves(client: Client, bundle_hash: str, name: str = "north-7") -> dict[str, Any]:
    """Waits until the hub knows that a device serves a bundle, proven; what it says of it."""

    async def does() -> dict[str, Any] | None:
        served = [each for it in await client.fleet.devices() if it["name"] == name for each in it["served"]]
        return next((it for it in served if (it["bundle"], it["state"]) == (bundle_hash, "serving")), None)

    found: dict[str, Any] = await eventually(does, 40)
    return found


async def test_a_device_follows_its_hub(tmp_path: Path) -> None:
    """First release, roll-out, roll back, rotated and retired keys, pin, a hub that starts anew: no point is missed."""
    listen = f"127.0.0.1:{free_port()}"
    points, done = Points(), asyncio.Event()
    async with running_hub(tmp_path, listen=listen) as (hub, client):
        first = await offer(hub)
        token = await token_of(client, tmp_path)
        stack = agent(tmp_path, listen, token=token, tempo=PATIENT)
        device = await stack.__aenter__()
        await eventually(lambda: asyncio.sleep(0, len(device.host)))
        flowing = asyncio.create_task(points.flow(device, done.is_set))
        await serves(client, first)
        second = await offer(hub, 2)
        taken = await serves(client, second)
        await eventually(lambda: _stage(client, "complete"), 40)
        await client.roll_back("pump", device_class="pi4")
        back = await serves(client, first)
        await client.fleet.rotate_signing_key(retire_older=True)
        third = await offer(hub, 3)
        await serves(client, third)
        trusted = [it["key_id"] for it in await client.fleet.signing_keys()]
        await client.pin("pump", "pi4")
        await offer(hub, 4)
    begun = points.at
    await asyncio.sleep(0.5)
    while_away = points.at - begun
    async with running_hub(tmp_path, listen=listen) as (hub, client):
        pinned = await serves(client, third)
        await client.unpin("pump", "pi4")
        fifth = await offer(hub, 5)
        await serves(client, fifth)
        done.set()
        replies = await flowing
        listed = await client.fleet.devices()
        keys_of_device = list(device.device.trust.keys)
        await stack.__aexit__(None, None, None)

    statuses = [int(it) for reply in replies for it in reply.statuses]
    assert set(statuses[3:]) == {1}
    assert while_away > 0
    assert taken["counter"] < back["counter"] < pinned["counter"]
    assert keys_of_device == trusted
    assert replies[-1].version == 5
    assert [(it["name"], it["connected"]) for it in listed] == [("north-7", True)]


async def _stage(client: Client, stage: str) -> bool:
    return [it["stage"] for it in await client.fleet.rollouts("pump", "pi4")][:1] == [stage]


async def test_a_device_that_was_let_go_comes_back_with_a_new_token(tmp_path: Path) -> None:
    """It scores on meanwhile; the store that it has is good enough, and the old token is not."""
    async with running_hub(tmp_path) as (hub, client):
        address = f"127.0.0.1:{hub.listener.port}"
        first = await offer(hub)
        token = await token_of(client, tmp_path)
        points = Points()
        async with agent(tmp_path, address, token=token, tempo=PATIENT) as device:
            await eventually(lambda: asyncio.sleep(0, len(device.host)))
            await points.send(device, 60)
            await serves(client, first)
            await client.fleet.delete_device("north-7")
            await eventually(lambda: asyncio.sleep(0, not device.link.is_open))
            await asyncio.sleep(1)  # several tries
            was_let_in = device.link.is_open
            alone = await points.send(device, 10)
        await token_of(client, tmp_path)
        async with agent(tmp_path, address, token=token, tempo=PATIENT) as device:
            await serves(client, first)
            again = await points.send(device, 10)

    assert not was_let_in
    assert (alone.statuses == 1).all()
    assert (again.statuses == 1).all()


async def test_an_enrolled_device_needs_its_token_no_more(tmp_path: Path) -> None:
    """Its service may name the file for ever: it may be gone."""
    async with running_hub(tmp_path) as (hub, client):
        address = f"127.0.0.1:{hub.listener.port}"
        token = await token_of(client, tmp_path)
        async with agent(tmp_path, address, token=token, tempo=PATIENT):
            pass
        token.unlink()
        async with agent(tmp_path, address, token=token, tempo=PATIENT) as device:
            await eventually(lambda: asyncio.sleep(0, device.link.is_open))


async def test_the_link_is_encrypted(tmp_path: Path) -> None:
    """With the authority of the hub's certificate; a hub that another one vouches for is not talked to."""
    authority, stranger = Authority.new(), Authority.new("stranger")
    certificate, key = put(tmp_path, *authority.issue())
    for name, it in (("ca.crt", authority), ("other.crt", stranger)):
        (tmp_path / name).write_bytes(it.pem)
    tls = {"certificate": certificate, "key": key}
    async with fleet_hub(tmp_path / "hub", time.time, fleet=FLEET, device_classes=CLASSES, tls=tls) as hub:  # type: ignore[arg-type]
        address, right = f"127.0.0.1:{hub.listener.port}", Credentials(ca=tmp_path / "ca.crt")
        async with Client(address, credentials=right) as client:
            first = await offer(hub)
            token = await token_of(client, tmp_path)
            async with agent(tmp_path, address, token=token, given={"credentials": right}, tempo=PATIENT) as device:
                await eventually(lambda: asyncio.sleep(0, len(device.host)))
                await Points().send(device, 60)
                await serves(client, first)
            for wrong in (Credentials(), Credentials(ca=tmp_path / "other.crt")):
                async with agent(tmp_path, address, given={"credentials": wrong}) as device:
                    await eventually(lambda device=device: asyncio.sleep(0, device.link.problem))
                    assert not device.link.is_open


@pytest.mark.parametrize("hub", ["hub.local:8001", "192.0.2.7:8001", "[2001:db8::1]:8001"])
async def test_plain_text_to_another_machine_has_to_be_asked_for(hub: str, tmp_path: Path) -> None:
    """The token would go there for everybody to read."""
    with pytest.raises(InvalidInputError, match="plain text") as caught:
        async with agent(tmp_path, hub):
            pass
    with pytest.raises(PreconditionError, match="not enrolled"):
        async with agent(tmp_path, hub, given={"insecure_hub": True}):
            pass

    assert "--ca" in caught.value.hint
