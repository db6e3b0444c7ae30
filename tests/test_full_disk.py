"""A disk that is full: cycles stop, scoring does not, and all goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from crashing import FEATURES, NAME, Node

from prunewatch.client import Client, Scores, ServiceError

SIZE = "8m"
SMALL_DISK = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"', "sh")


def can_mount(folder: Path) -> bool:
    """Whether a process may have a small disk of its own here."""
    command = [*SMALL_DISK, SIZE, str(folder), "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def fill(disk: Path) -> None:
    """Leaves no byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 8, 1):
            with pytest.raises(OSError, match="No space left"):
                _write_for_ever(file, bytes(size))


def _write_for_ever(file: BinaryIO, content: bytes) -> None:
    while True:
        file.write(content)


async def scored(client: Client, count: int, first: int) -> list[Scores]:
    """Replies to so many requests, one after the other; what fails is raised."""
    values = np.random.default_rng(first).normal(size=(8, len(FEATURES)))
    replies = []
    for at in range(first, first + 8 * count, 8):
        replies.append(await client.score(NAME, values=values, series=["a"], stamps=list(range(at, at + 8))))
        await asyncio.sleep(0.01)
    return replies


@pytest.mark.slow
@pytest.mark.promise("R4")
async def test_a_full_disk_stops_cycles_and_not_scoring(tmp_path: Path) -> None:
    """No Score fails; a cycle says what is wrong; with room again a cycle works and the points become durable."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    detectors = {NAME: {"features": FEATURES, "probation": {"shadow_points": 0}}}
    before = (*SMALL_DISK, SIZE, str(disk))
    node = Node(disk / "store", tmp_path / "log.txt", before=before, detectors=detectors)
    node.start()
    assert node.process is not None
    inside = Path(f"/proc/{node.process.pid}/root{disk}")
    training = {
        "features": FEATURES,
        "stamps": np.arange(100),
        "values": np.random.default_rng(0).normal(size=(100, 2)),
    }
    try:
        async with Client(node.address) as client:
            await client.wait_operation(await client.fit_upload(NAME, **training))
            fill(inside)
            full = asyncio.create_task(scored(client, 200, 1000))
            with pytest.raises(ServiceError, match="full") as refused:
                await client.wait_operation(await client.prune(NAME, speedup=1.5))
            replies = await full
            during = await client.get(NAME)
            (inside / "filler").unlink()
            result = await client.wait_operation(await client.prune(NAME, speedup=1.5))
            replies += await scored(client, 50, 100_000)
            await asyncio.sleep(1)
            after = await client.get(NAME)
    finally:
        node.kill()

    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert len(replies) == 250
    assert all(len(reply.scores) == 8 for reply in replies)
    assert [it["version"] for it in during["served"]] == [1]
    assert result["outcome"] == "adopted"
    assert after["history_points"] == 100 + 250 * 8
