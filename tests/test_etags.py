"""Etags and the freeze, over a real connection: nobody changes what somebody else has changed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from conftest import NOW, publish
from graphs import ewma_bundle

from detectors.errors import ConflictError
from prunewatch.client import Client, ServiceError
from server.app import Hub

Change = Callable[[Client, str], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "pin": lambda client, etag: client.pin("pump", etag=etag),
    "unpin": lambda client, etag: client.unpin("pump", etag=etag),
    "roll_back": lambda client, etag: client.roll_back("pump", etag=etag),
    "freeze": lambda client, etag: client.freeze("pump", etag=etag),
    "unfreeze": lambda client, etag: client.unfreeze("pump", etag=etag),
    "delete": lambda client, etag: client.delete("pump", etag=etag),
}


@pytest.fixture
async def other(hub: Hub) -> AsyncIterator[Client]:
    """A second person with a connection of their own."""
    async with Client(f"127.0.0.1:{hub.listener.port}") as connected:
        yield connected


@pytest.fixture
async def pump(hub: Hub) -> None:
    """`pump` with two versions, of which the second serves."""
    for version in (1, 2):
        await publish(hub, ewma_bundle("pump", version, gain=float(version)))


@pytest.mark.parametrize("name", CHANGES)
async def test_a_stale_change_is_aborted(pump: None, client: Client, other: Client, name: str) -> None:
    """Whoever has read the detector before somebody else changed it is told so, and nothing changes."""
    seen = (await client.get("pump"))["etag"]
    await other.freeze("pump")
    now = await other.get("pump")

    with pytest.raises(ServiceError) as caught:
        await CHANGES[name](client, seen)

    assert (caught.value.code, caught.value.field) == ("ABORTED", "etag")
    assert await client.get("pump") == now
    reply = await client.score("pump", series=["a"], stamps=[NOW], values=np.zeros((1, 2), np.float32))
    assert reply.version == 2


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_of_what_was_seen_is_made(pump: None, client: Client, name: str) -> None:
    """With the etag as it is, and without one."""
    seen = (await client.get("pump"))["etag"]

    await CHANGES[name](client, seen)

    if name == "delete":
        assert await client.list() == []
    else:
        await CHANGES[name](client, "")


async def test_of_changes_at_the_same_time_one_is_made(pump: None, client: Client, other: Client) -> None:
    """The etag is compared in the transaction that writes: of twenty who saw the same, one comes first."""
    seen = (await client.get("pump"))["etag"]

    ends = await asyncio.gather(
        *(who.roll_back("pump", etag=seen) for who in (client, other) * 10), return_exceptions=True
    )

    refused = [end for end in ends if isinstance(end, ServiceError)]
    assert [end.code for end in refused] == ["ABORTED"] * 19
    assert (await client.get("pump"))["served"][0]["version"] == 1


async def test_an_etag_changes_with_what_a_person_would_call_a_change(hub: Hub, pump: None, client: Client) -> None:
    """Pins, roll backs, the freeze and new versions; not points that are scored, and it comes back with what it was."""

    async def etag() -> str:
        return str((await client.get("pump"))["etag"])

    first = await etag()
    await client.score("pump", series=["a"], stamps=[NOW], values=np.zeros((1, 2), np.float32))
    assert await etag() == first
    etags = [first]
    await client.pin("pump")
    etags.append(await etag())
    await client.unpin("pump")
    assert await etag() == first
    await client.freeze("pump")
    etags.append(await etag())
    await client.roll_back("pump")
    etags.append(await etag())
    await publish(hub, ewma_bundle("pump", 3, gain=3.0))
    etags.append(await etag())
    assert len(set(etags)) == len(etags)


async def test_a_freeze_is_kept_and_shown(hub: Hub, pump: None, client: Client) -> None:
    """Whoever asks is told, also the catalog that the next start reads."""
    assert (await client.get("pump"))["frozen"] is False

    assert (await client.freeze("pump"))["frozen"] is True
    assert hub.store.catalog.get_detector("pump").frozen

    assert (await client.unfreeze("pump"))["frozen"] is False
    assert not hub.store.catalog.get_detector("pump").frozen


async def test_the_catalog_compares_for_everybody(hub: Hub, pump: None) -> None:
    """Not the transport: the command line and cycles are held to it as well."""
    with pytest.raises(ConflictError, match="changed since"):
        hub.store.catalog.pin("pump", "hub", etag="0" * 16)
