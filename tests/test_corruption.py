"""A corrupt bundle is never served: however a version is damaged, it is refused and the old one serves on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, hub_settings, publish
from graphs import ewma_bundle

from detectors.bundle import GRAPH, MANIFEST, write_bundle
from detectors.errors import CorruptBundleError
from prunewatch.client import Client, ServiceError
from server.app import Hub
from server.publish import publish_fit

DAMAGES = 1000
SEED = 20
VALUES = np.random.default_rng(SEED).normal(size=(20, 2)).astype(np.float32)


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, other: Path, rng: random.Random) -> None:
    """It ends early."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def grow(path: Path, other: Path, rng: random.Random) -> None:
    """It goes on."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 5000)))


def blank(path: Path, other: Path, rng: random.Random) -> None:
    """A block was never written."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) - 8)
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """It is that of another version, whole and sound."""
    shutil.copy(other / path.name, path)


def lose(path: Path, other: Path, rng: random.Random) -> None:
    """It is gone."""
    path.unlink()


KINDS: tuple[Callable[[Path, Path, random.Random], None], ...] = (flip, flip, truncate, grow, blank, swap, lose)


async def scored(client: Client) -> tuple[int, bytes]:
    """The version that serves, and its scores."""
    stamps = NOW + np.arange(len(VALUES))
    reply = await client.score("pump", series=["a"], stamps=stamps, values=VALUES, ephemeral=True)
    return reply.version, reply.scores.tobytes()


@pytest.mark.promise("R3")
@pytest.mark.slow
async def test_a_damaged_version_is_never_gone_back_to(hub: Hub, client: Client) -> None:
    """A thousand damages are refused over a real connection, and not one score changes meanwhile."""
    for version in (1, 2):
        await publish(hub, ewma_bundle("pump", version, gain=float(version)))
    one, two = (hub.store.bundle_folder(row.parent_hash) for row in hub.store.catalog.versions("pump"))
    sound = {name: (one / name).read_bytes() for name in (MANIFEST, GRAPH)}
    before = await scored(client)
    rng = random.Random(SEED)

    for number in range(DAMAGES):
        name = rng.choice([MANIFEST, GRAPH])
        kind = rng.choice(KINDS)
        kind(one / name, two, rng)
        damaged = not (one / name).exists() or (one / name).read_bytes() != sound[name]
        if damaged:  # a block of zeros may have been one before
            with pytest.raises(ServiceError) as caught:
                await client.roll_back("pump", 1)
            assert caught.value.code == "DATA_LOSS", (SEED, number, kind)
        (one / name).write_bytes(sound[name])

    assert await scored(client) == before
    assert (await client.roll_back("pump", 1))["served"][0]["version"] == 1


@pytest.mark.promise("R3")
@pytest.mark.parametrize("kind", dict.fromkeys(KINDS))
@pytest.mark.parametrize("name", [MANIFEST, GRAPH])
async def test_a_damaged_version_is_never_published(hub: Hub, client: Client, name: str, kind) -> None:
    """What the trainer wrote is read back first; what served before serves on."""
    await publish(hub, ewma_bundle("pump"))
    before = await scored(client)
    bundle = ewma_bundle("pump", 2, gain=2.0)
    folder = hub.store.bundle_folder(bundle.hash)
    write_bundle(bundle, folder)
    (served,) = hub.store.catalog.all_serving("pump")
    kind(folder / name, hub.store.bundle_folder(served.bundle_hash), random.Random(SEED))

    sizes = {"p50_seconds": None, "p99_seconds": None, "error": 0.5}
    with pytest.raises(CorruptBundleError):
        publish_fit(hub.store, "pump", {"parent": {"hash": bundle.hash, "version": 2, **sizes}})

    assert await scored(client) == before
    assert [row["version"] for row in await client.versions("pump")] == [1]


@pytest.mark.promise("R3")
@pytest.mark.parametrize("kind", dict.fromkeys(KINDS))
async def test_a_version_that_was_damaged_while_the_hub_was_down_is_not_served(tmp_path: Path, kind) -> None:
    """The detector says what is wrong and scores nothing with it; it serves again when it goes back to a sound one."""
    settings = hub_settings(tmp_path)
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    for version in (1, 2):
        await publish(hub, ewma_bundle("pump", version, gain=float(version)))
    one, two = (hub.store.bundle_folder(row.parent_hash) for row in hub.store.catalog.versions("pump"))
    await hub.stop()
    kind(two / GRAPH, one, random.Random(SEED))

    again = Hub(settings, trainer=QUICK_TRAINER)
    await again.start()
    async with Client(f"127.0.0.1:{again.listener.port}") as client:
        shown = await client.get("pump")
        with pytest.raises(ServiceError, match="can not score"):
            await scored(client)
        assert shown["state"] == "failed"
        assert "is missing" in shown["problem"] or "does not match its manifest" in shown["problem"]
        await client.roll_back("pump")
        assert (await scored(client))[0] == 1
    await again.stop()
