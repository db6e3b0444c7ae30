"""What the page costs the process that scores: `python benchmarks/page_cost.py`, under a minute.

Three things: what keeping the newest scores adds to a request, how long an overview of many detectors takes (on the
loop, and in its thread) and how large it is, and what calls take while a page is asked for all the time beside them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from conftest import publish
from graphs import ewma_bundle
from page_scene import hub_on

from prunewatch.client import Client
from server.app import Hub
from server.recent import Recent

DETECTORS, SERIES, CYCLES = 100, 10_000, 2_000
ROUNDS, SECONDS = 6, 2.0
POINTS = 64


def keeping() -> float:
    """Seconds that `Recent.take` adds to a request of `POINTS` points: the least of several runs."""
    recent, scores = Recent(), np.random.default_rng(0).random(POINTS).astype(np.float32)
    runs = []
    for _ in range(7):
        began = time.perf_counter()
        for i in range(20_000):
            recent.take(i * 10**7, scores, 0)
        runs.append((time.perf_counter() - began) / 20_000)
    return min(runs)


async def full(hub: Hub, client: Client) -> None:
    """A hub with everything it may hold."""
    for i in range(DETECTORS):
        await publish(hub, ewma_bundle(f"d{i:03d}", warm_up_points=0))
        recent = hub.host.get(f"d{i:03d}").recent
        for second in range(240):
            recent.take(time.time_ns() - (240 - second) * 10**9, np.ones(4, np.float32), int(second % 50 == 0))
    names, now = [f"s{i}" for i in range(SERIES)], time.time_ns()
    for first in range(0, SERIES, 1000):
        some = names[first : first + 1000]
        await client.score("d000", series=some, stamps=np.full(len(some), now), values=np.ones((len(some), 2)))

    def cycles() -> None:
        result = {"report": {"much": "x" * 20_000}}
        for _ in range(CYCLES):
            hub.store.catalog.end_cycle(
                hub.store.catalog.begin_cycle("d000", "hub", "manual"), "rejected", "slow", result
            )

    await asyncio.to_thread(cycles)


async def made(gather: Any) -> dict[str, float]:
    """Milliseconds on the loop and in the thread, and bytes, of an answer; medians."""
    on_loop, in_thread = [], []
    for _ in range(9):
        began = time.perf_counter()
        make = await gather()
        then = time.perf_counter()
        body = json.dumps(await asyncio.to_thread(make)).encode()
        on_loop.append(then - began)
        in_thread.append(time.perf_counter() - then)
    sizes = {"bytes": len(body), "compressed_bytes": len(gzip.compress(body, 1))}
    return {"loop_ms": 1e3 * statistics.median(on_loop), "thread_ms": 1e3 * statistics.median(in_thread), **sizes}


async def called(client: Client, start: int) -> list[float]:
    """How long calls of `POINTS` points take, one after the other."""
    series, values, took = [f"c{i}" for i in range(POINTS)], np.ones((POINTS, 2)), []
    end, turn = time.monotonic() + SECONDS, start
    while time.monotonic() < end:
        turn += 1
        began = time.perf_counter()
        await client.score("d001", series=series, stamps=np.full(POINTS, time.time_ns()), values=values)
        took.append(time.perf_counter() - began)
    return took


async def looked(port: int) -> None:
    """Asks for the overview as three open pages do, again and again."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/overview HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        await reader.read()
        writer.close()
        await asyncio.sleep(0.66)


async def beside(hub: Hub, client: Client) -> dict[str, float]:
    """Call times without and with somebody who looks, in turns of one run; medians of the turns."""
    alone: list[list[float]] = []
    watched: list[list[float]] = []
    for turn in range(2 * ROUNDS):
        looking = asyncio.create_task(looked(hub.listener.admin_port)) if turn % 2 else None
        (watched if looking else alone).append(await called(client, turn))
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def of(turns: list[list[float]], percent: float) -> float:
        return 1e3 * statistics.median(float(np.percentile(it, percent)) for it in turns)

    return {
        f"{who}_p{percent}_ms": of(turns, percent)
        for who, turns in (("alone", alone), ("watched", watched))
        for percent in (50, 99)
    }


async def main() -> None:
    """All three, as JSON."""
    print(json.dumps({"keeping_us": round(1e6 * keeping(), 2)}))
    with tempfile.TemporaryDirectory() as folder:
        async with hub_on(Path(folder), max_detectors=DETECTORS) as (hub, client):
            await full(hub, client)
            site = hub.listener._admin._site  # noqa: SLF001  (the views are what is measured)
            view = site._view  # noqa: SLF001
            rounded = lambda told: {key: round(value, 3) for key, value in told.items()}  # noqa: E731
            print(json.dumps({"overview": rounded(await made(view.overview))}))
            print(json.dumps({"detector": rounded(await made(lambda: view.detector("d000")))}))
            print(json.dumps({"calls": rounded(await beside(hub, client))}))


if __name__ == "__main__":
    asyncio.run(main())
