"""S7 on the device: it takes only what is signed, fresh, whole and meant for it; whatever else comes, it runs on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Points, agent
from conftest import eventually
from device_hub import DeviceHub, pump
from graphs import ewma_bundle, ewma_graph

from detectors.bundle import GRAPH, MANIFEST, digest
from server.releases import Signed, SigningKey

Bad = Callable[[DeviceHub, Path], Signed]


def other_file(hub: DeviceHub, folder: Path, **fields: Any) -> str:
    """A bundle that nobody has seen."""
    return hub.offer(pump(2, alpha=0.3), folder)


def unsigned(hub: DeviceHub, folder: Path) -> Signed:
    """Whose signature is noise."""
    signed = hub.release(other_file(hub, folder), version=2)
    return Signed(signed.payload, signed.key_id, bytes(64))


def wrong_key(hub: DeviceHub, folder: Path) -> Signed:
    """Signed by somebody else."""
    return hub.release(other_file(hub, folder), version=2, key=SigningKey.generate())


def borrowed_name(hub: DeviceHub, folder: Path) -> Signed:
    """Signed by somebody else in the name of the hub's key."""
    signed = wrong_key(hub, folder)
    return Signed(signed.payload, hub.key.key_id, signed.signature)


def older(hub: DeviceHub, folder: Path) -> Signed:
    """A release from before the one that serves, sent again."""
    return hub.release(other_file(hub, folder), version=2, counter=hub.counter - 1)


def expired(hub: DeviceHub, folder: Path) -> Signed:
    """A release that nobody has taken in time."""
    return hub.release(other_file(hub, folder), version=2, expires=int(time.time()) - 1)


def of_another_class(hub: DeviceHub, folder: Path) -> Signed:
    """Meant for other devices."""
    return hub.release(other_file(hub, folder), version=2, device_class="pi3")


def of_another_kind(hub: DeviceHub, folder: Path) -> Signed:
    """A signed set of keys in place of a release."""
    return hub.keys(hub.key, counter=9)


def endless(hub: DeviceHub, folder: Path) -> Signed:
    """A file whose bytes never end."""
    hub.faults.endless = 1000
    return hub.release(other_file(hub, folder), version=2)


def too_long(hub: DeviceHub, folder: Path) -> Signed:
    """A file that says that it has a terabyte."""
    hub.faults.longer = 1000
    return hub.release(other_file(hub, folder), version=2)


def damaged(hub: DeviceHub, folder: Path) -> Signed:
    """A file with a bit flipped, each time."""
    hub.faults.corrupt = 1000
    return hub.release(other_file(hub, folder), version=2)


def mixed(hub: DeviceHub, folder: Path) -> Signed:
    """The manifest of one bundle with the graph of another in place of its own."""
    bundle = pump(2, alpha=0.3)
    found = hub.offer(bundle, folder)
    hub.files[bundle.manifest.files[GRAPH].sha256] = ewma_graph(2, 0.1)
    return hub.release(found, version=2)


def of_another_detector(hub: DeviceHub, folder: Path) -> Signed:
    """A release of the pump that names a bundle of the fan."""
    return hub.release(hub.offer(ewma_bundle("fan", 2), folder), version=2)


def no_manifest(hub: DeviceHub, folder: Path) -> Signed:
    """A hash that is that of no manifest."""
    content = b"[" * 2000
    hub.files[digest(content)] = content
    return hub.release(digest(content), version=2)


def no_graph(hub: DeviceHub, folder: Path) -> Signed:
    """A whole bundle whose graph is none."""
    bundle = pump(2)
    found = hub.offer(bundle, folder)
    content = b"no graph" * 100
    manifest = hub.files[found].replace(bundle.manifest.files[GRAPH].sha256.encode(), digest(content).encode())
    manifest = manifest.replace(f'"bytes": {bundle.size}'.encode(), f'"bytes": {len(content)}'.encode())
    hub.files |= {digest(manifest): manifest, digest(content): content}
    return hub.release(digest(manifest), version=2)


def other_width(hub: DeviceHub, folder: Path) -> Signed:
    """A bundle that takes other features than the series that are alive."""
    return hub.release(hub.offer(pump(2, n_features=3), folder), version=2)


BAD: dict[Bad, str] = {
    unsigned: "untrusted",
    wrong_key: "untrusted",
    borrowed_name: "untrusted",
    of_another_kind: "untrusted",
    older: "older",
    expired: "expired",
    of_another_class: "other_class",
    endless: "download",
    too_long: "download",
    damaged: "download",
    mixed: "download",
    of_another_detector: "content",
    no_manifest: "content",
    no_graph: "unable",
    other_width: "unable",
}


@pytest.mark.slow
@pytest.mark.promise("S7")
async def test_nothing_bad_is_taken_and_the_agent_runs_on(tmp_path: Path) -> None:
    """Each is refused and counted with its reason, no point is missed, and a good release is taken all the same."""
    refused: dict[str, float] = {}
    async with DeviceHub() as hub:
        await hub.desire(hub.release(first := hub.offer(pump(), tmp_path), counter=10))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            points, done = Points(), asyncio.Event()
            flowing = asyncio.create_task(points.flow(running, done.is_set))
            await hub.state("SERVING")
            for bad, reason in BAD.items():
                await hub.desire(bad(hub, tmp_path))
                await eventually(
                    lambda reason=reason: asyncio.sleep(0, count(running, reason) > refused.get(reason, 0))
                )
                refused[reason] = count(running, reason)
                hub.faults.endless = hub.faults.longer = hub.faults.corrupt = 0
                assert running.host.get("pump").served.bundle_hash == first
                await hub.desire(hub.release(first, counter=max(hub.counter, 10) + 1))
                await hub.state("SERVING", counter=hub.counter)
            good = hub.release(hub.offer(pump(3, alpha=0.4), tmp_path), version=3)
            await hub.desire(good)
            await hub.state("SERVING", counter=hub.counter)
            done.set()
            replies = await flowing

    statuses = np.concatenate([it.statuses for it in replies])
    assert (statuses[3:] == 1).all()
    assert replies[-1].version == 3
    assert {version for it in replies for version in np.unique(it.point_versions)} == {1, 3}


def count(running: Any, reason: str) -> float:
    """Releases that were refused for a reason."""
    registry = running.metrics.registry
    found = (
        registry.get_sample_value("prunewatch_releases_rejected_total", {"detector": name, "reason": reason})
        for name in ("pump", "unknown")
    )
    return sum(value or 0 for value in found)


@pytest.mark.promise("S7")
async def test_keys_rotate_and_what_old_ones_signed_serves_on(tmp_path: Path) -> None:
    """A newer set that a trusted key vouches for counts from then on, over restarts; strangers' sets never do."""
    second = SigningKey.generate()
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            await Points().send(running, 60)
            await hub.state("SERVING")
        first, hub.key = hub.key, second
        hub.key_set = hub.keys(first, second, counter=2)
        async with agent(tmp_path, hub.address) as running:
            await eventually(lambda: asyncio.sleep(0, second.key_id in running.device.trust.keys))
            assert running.host.get("pump").served.version == 1
            await hub.desire(hub.release(hub.offer(pump(2), tmp_path), version=2))
            await hub.state("TRYING", counter=2)
        stranger = SigningKey.generate()
        hub.key_set = hub.keys(stranger, stranger, counter=3)
        hub.statuses.clear()
        async with agent(tmp_path, hub.address) as running:
            await eventually(lambda: asyncio.sleep(0, "not trusted" in running.link.problem))
            assert not running.link.is_open
            assert running.host.get("pump").served.version == 2
            assert set(running.device.trust.keys) == {second.key_id}
        with pytest.raises(Exception, match="not trusted"):
            running.device.trust.release(hub.release(hub.offer(pump(3), tmp_path), key=first))

    assert hub.statuses == []


async def test_a_release_that_was_cut_short_changes_nothing_of_others(tmp_path: Path) -> None:
    """While one statement can not be read nobody knows what is missing from the list: nothing is stopped."""
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path)) as running:
            await hub.state("TRYING")
            await hub.desire(Signed(b"{}", hub.key.key_id, bytes(64)))
            await eventually(lambda: asyncio.sleep(0, count(running, "untrusted") > 0))

            assert len(running.host) == 1
            assert (tmp_path / "store/detectors/pump/a" / MANIFEST).exists()
