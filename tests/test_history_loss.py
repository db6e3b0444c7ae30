"""A crash costs the points of the last flush period, no more: a real server that is killed in mid-stream."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ports import free_address

from prunewatch.client import Client, ServiceError
from server.config import DetectorConfig
from server.store import Store
from server.stretches import read_stretches

FLUSH_SECONDS = 0.5
WRITE_SECONDS = 1.0  # that making points durable may take on a busy machine


def started(root: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server on a store, and its address."""
    address = free_address()
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--store", str(root)]
    environment = {**os.environ, "PRUNEWATCH__HISTORY_FLUSH_SECONDS": str(FLUSH_SECONDS)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--listen", address, "--admin", "127.0.0.1:0"], stderr=file, env=environment
        )
    return process, address


async def stream_until_killed(
    address: str, process: subprocess.Popen[bytes], first: int, seconds: float
) -> list[float]:
    """Sends one point after another, kills the server after so many seconds; when each was answered."""
    answered: list[float] = []
    async with Client(address) as client:
        while True:
            stamp = first + len(answered)
            try:
                await client.score("pump", series=["a"], stamps=[stamp], values=[[stamp, 0]])
            except ServiceError as error:
                if error.code != "UNAVAILABLE":
                    raise
                if answered:
                    return answered
                await asyncio.sleep(0.05)  # it is still starting
                assert process.poll() is None
                continue
            answered.append(time.monotonic())
            if answered[-1] - answered[0] > seconds:
                process.send_signal(signal.SIGKILL)
                process.wait(30)
            await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_a_kill_loses_at_most_the_last_flush_period(tmp_path: Path) -> None:
    """What is left is everything up to some point, and that point was answered a flush period ago at most; twice."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        config = DetectorConfig(time="index", features=["f1", "f2"])
        store.catalog.create_detector("pump", config.model_dump(mode="json"), config.features)
    kept = 0
    for turn in range(2):
        process, address = started(root, tmp_path / f"{turn}.log")
        try:
            answered = await stream_until_killed(address, process, first=kept, seconds=2.3)
        finally:
            process.kill()
            process.wait(30)
        with Store.open(root) as store:
            stretches = read_stretches(store.history("pump").paths(), ["f1", "f2"])
        stamps = np.concatenate([stretch.stamps for stretch in stretches])
        assert stamps.tolist() == list(range(len(stamps)))
        assert (np.concatenate([stretch.values[:, 0] for stretch in stretches]) == stamps).all()

        lost = answered[len(stamps) - kept :]
        assert len(stamps) > kept
        assert not lost or answered[-1] - lost[0] <= FLUSH_SECONDS + WRITE_SECONDS
        kept = len(stamps)
