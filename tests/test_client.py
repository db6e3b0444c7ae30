"""What the client promises on top of the service."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import publish
from graphs import ewma_bundle

from detectors.archive import load_bundle
from prunewatch.client import UNANSWERED, Batch, Client, ServiceError
from server.app import Hub
from server.config import DetectorConfig, Settings
from server.describe import describe
from server.edge import Edge


async def test_show_is_what_the_command_line_shows(hub: Hub, client: Client) -> None:
    """`show` over the service and `describe` on the store give the same object."""
    await publish(hub, ewma_bundle("pump"))

    assert await client.show("pump") == describe(hub.store, "pump")


async def test_a_fast_source_waits_for_the_service(hub: Hub, client: Client) -> None:
    """No more than a few messages of a stream are unanswered at any time."""
    await publish(hub, ewma_bundle("pump"), time="index")
    taken = answered = most = 0

    def batches():
        nonlocal taken, most
        for i in range(200):
            taken += 1
            most = max(most, taken - answered)
            yield Batch(np.zeros((64, 2)), series=["a"] if not i else ())

    async for _ in client.score_stream("pump", batches()):
        answered += 1

    assert answered == 200
    assert most <= UNANSWERED + 1


async def test_a_source_that_fails_ends_the_stream_with_its_error(hub: Hub, client: Client) -> None:
    """What the caller's own source raises comes out of `score_stream`."""
    await publish(hub, ewma_bundle("pump"), time="index")

    async def batches():
        yield Batch(np.zeros((1, 2)), series=["a"])
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        async for _ in client.score_stream("pump", batches()):
            pass


async def test_a_bad_batch_is_raised_unless_told_otherwise(hub: Hub, client: Client) -> None:
    """A message that can not be used raises by default."""
    await publish(hub, ewma_bundle("pump"))

    with pytest.raises(ServiceError) as caught:
        async for _ in client.score_stream("pump", [Batch(np.zeros((1, 2)), series=["a"])]):
            pass

    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "stamps")


async def test_leaving_a_stream_early_ends_it(hub: Hub, client: Client) -> None:
    """A caller that stops reading leaves nothing running."""
    await publish(hub, ewma_bundle("pump"), time="index")

    def endless():
        yield Batch(np.zeros((1, 2)), series=["a"])
        while True:
            yield Batch(np.zeros((1, 2)))

    replies = client.score_stream("pump", endless())
    await anext(replies)
    await replies.aclose()
    await asyncio.sleep(0.05)

    assert [task for task in asyncio.all_tasks() if "_write_batches" in repr(task)] == []


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    """No server: UNAVAILABLE, and what to do."""
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ServiceError) as caught:
            await client.get("pump")

    assert (caught.value.code, caught.value.hint) == ("UNAVAILABLE", "Start one: prunewatch serve.")


async def test_values_must_be_a_table(client: Client) -> None:
    """Values with one or three dimensions are refused before anything is sent."""
    with pytest.raises(ServiceError) as caught:
        await client.score("pump", values=np.zeros(3))

    assert caught.value.field == "values"


def imported_by(module: str) -> set[str]:
    """Top-level packages that importing a module brings in."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_client_needs_no_server_packages() -> None:
    """Importing the client imports neither the server nor a framework."""
    others = {"server", "detectors", "torch", "pandas", "onnxruntime", "sqlalchemy", "pydantic"}

    assert not imported_by("prunewatch.client") & others


async def test_a_device_scores_as_the_hub_does(hub: Hub, client: Client, tmp_path: Path) -> None:
    """The edge serves one bundle with the same path, so the same points get the same scores; nothing else is there."""
    await publish(hub, ewma_bundle("pump"), time="index")
    folder = hub.store.bundle_folder(hub.store.catalog.serving("pump", "hub").bundle_hash)
    settings = Settings(listen="127.0.0.1:0", admin="127.0.0.1:0", drain_seconds=0.5)
    edge = Edge(load_bundle(folder), settings, config=DetectorConfig(time="index"))
    await edge.start()
    values = np.random.default_rng(1).normal(size=(20, 2))
    async with Client(f"127.0.0.1:{edge.listener.port}") as device:
        there = await device.score("pump", values=values)
        with pytest.raises(ServiceError) as caught:
            await device.list()
    await edge.stop()

    here = await client.score("pump", values=values)
    np.testing.assert_array_equal(there.scores, here.scores)
    assert caught.value.code == "UNIMPLEMENTED"


def test_the_edge_needs_no_hub_packages() -> None:
    """The device side imports no training framework, no data frames and no database."""
    others = {"torch", "pandas", "pyarrow", "onnx", "sqlalchemy", "pyod"}

    assert not imported_by("server.edge") & others
