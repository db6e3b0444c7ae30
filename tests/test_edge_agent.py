"""A device and its hub: enrolled, served, released to, heard of; real gRPC on both sides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from agents import Points, agent
from conftest import eventually
from device_hub import CLASS, DeviceHub, pump
from graphs import ewma_scores

from detectors.errors import PreconditionError
from server.edge.device import Device
from server.releases import ReleaseSettings


async def test_a_device_enrols_runs_what_is_released_and_proves_it(tmp_path: Path) -> None:
    """One token, once; the release is fetched, tried, proven, and every state of it is told."""
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            points = Points()
            reply = await points.send(running, 60)
            served = await hub.state("SERVING")
            await eventually(lambda: asyncio.sleep(0, len(hub.events()) == 2))
            assert running.metrics.registry.get_sample_value("prunewatch_hub_connected") == 1

    np.testing.assert_allclose(reply.scores, ewma_scores(points.rows(60)[:, 0]), rtol=1e-5)
    assert hub.devices.keys() == {"devices/north-7"}
    assert hub.tokens == {}
    assert hub.facts is not None
    assert hub.facts.cores >= 1
    assert (served.counter, served.points, served.bundle_hash) == (1, 60, pump().hash)
    assert 0 < served.step_p50_seconds < 1 or np.isnan(served.step_p50_seconds)
    assert hub.events() == [(1, "TRYING"), (1, "SERVING")]
    assert hub.statuses[-1].resident_bytes > 1e7
    assert (tmp_path / "store" / "device.key").stat().st_mode & 0o777 == 0o600


async def test_a_token_that_is_refused_ends_the_agent_with_what_to_do(tmp_path: Path) -> None:
    """Nothing is served, so nothing is lost by saying it at once."""
    token = tmp_path / "token"
    async with DeviceHub() as hub:
        token.write_text("wrong." + "0" * 16)
        with pytest.raises(PreconditionError, match="does not enrol") as caught:
            async with agent(tmp_path, hub.address, token=token):
                pass

    assert caught.value.field == "--token-file"


async def test_a_hub_that_the_token_does_not_name_is_not_trusted(tmp_path: Path) -> None:
    """The keys must be vouched for by the key whose fingerprint is in the token."""
    async with DeviceHub() as hub:
        token = hub.token(tmp_path)
        (secret,) = hub.tokens
        forged = secret.rpartition(".")[0] + "." + "0" * 16
        hub.tokens[forged] = CLASS
        token.write_text(forged)
        with pytest.raises(PreconditionError, match="not signed by the hub"):
            async with agent(tmp_path, hub.address, token=token):
                pass

    assert not (tmp_path / "store" / "trust.json").exists()


async def test_a_store_is_that_of_one_device(tmp_path: Path) -> None:
    """Name and class are known from the store; others are refused."""
    async with DeviceHub() as hub, agent(tmp_path, hub.address, token=hub.token(tmp_path)):
        pass

    for other in ({"name": "south-1"}, {"device_class": "pi3"}):
        with pytest.raises(PreconditionError, match="is that of"):
            Device.open(tmp_path / "store", **other)
    again = Device.open(tmp_path / "store")
    assert (again.identity.name, again.identity.device_class, again.is_enrolled) == ("north-7", "pi4", True)
    again.close()


async def test_a_swap_on_the_device_loses_nothing(tmp_path: Path) -> None:
    """Points that are scored all the while warm up once; the threshold of a release comes with it."""
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            points, done = Points(), asyncio.Event()
            flowing = asyncio.create_task(points.flow(running, done.is_set))
            await hub.state("SERVING")
            other = ReleaseSettings(false_alarm_rate=0.01, time="index")
            await hub.desire(hub.release(hub.offer(pump(2, alpha=0.2), tmp_path), version=2, settings=other))
            await hub.state("SERVING", counter=2)
            done.set()
            replies = await flowing

    statuses = np.concatenate([it.statuses for it in replies])
    assert (statuses[3:] == 1).all()
    assert len(statuses) == points.at
    assert replies[0].version == 1
    assert (replies[-1].version, replies[-1].threshold) == (2, 2.0)


async def test_going_back_needs_no_download_and_no_trial(tmp_path: Path) -> None:
    """A newer release of a hash that lies in the other slot serves at once; a detector that is gone stops."""
    async with DeviceHub() as hub:
        first = hub.offer(pump(), tmp_path)
        await hub.desire(hub.release(first))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            points = Points()
            await points.send(running, 60)
            await hub.state("SERVING", counter=1)
            await hub.desire(hub.release(hub.offer(pump(2), tmp_path), version=2))
            await hub.state("TRYING", counter=2)
            await points.send(running, 60)
            await hub.state("SERVING", counter=2)
            downloads = len(hub.downloads)
            await hub.desire(hub.release(first))
            served = await hub.state("SERVING", counter=3)
            reply = await points.send(running, 1)
            await hub.desire()
            await eventually(lambda: asyncio.sleep(0, len(running.host) == 0))

    assert (served.bundle_hash, reply.version) == (first, 1)
    assert len(hub.downloads) == downloads
    assert hub.events()[-1] == (3, "SERVING")
