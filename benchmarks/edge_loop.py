"""The loop over a slowed device: a budget that is missed there, until the child that it runs is measured inside it.

The device is `prunewatch edge --hub` in a process of its own on one core, which it shares with a spinner: half of its
time goes to somebody else. That makes it late, not each of its steps slower, so a budget is missed by asking for it:
once the device has measured what it runs, the budget of its class becomes that time divided by 2, 5 or 4.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
from scoring_client import free_ports, two_cores
from scoring_report import Part, table, us

if TYPE_CHECKING:
    from prunewatch.client import Client
    from server.app import Hub
    from server.records import CycleRow

FEATURES, POINTS, QUICK_POINTS, SEED = 8, 3000, 1200, 0
GRAPHS, QUICK_GRAPHS = 64, 12
"""Networks of the table that the device measures, about."""
DETECTOR, CLASS, DEVICE = "machine", "slow", "north"
LOOK_SECONDS, PAUSE_SECONDS = 0.2, 0.2
LONGEST_SECONDS, QUICK_LONGEST_SECONDS = 1800.0, 600.0
EVENTS = 8
"""Of each kind of injected anomaly."""
SPIN = "while True: pass"


@dataclass(frozen=True)
class Case:
    """What is to come inside a budget.

    Attributes:
        network: Its kind.
        options: Its sizes.
        batch: Points in a step.
        missed_by: The parent's p50 over the budget.
    """

    network: str
    options: dict[str, int]
    batch: int
    missed_by: float


WIDE = {"layers": 2, "width": 128}
CASES = (
    Case("lstm", WIDE, 64, 2.0),
    Case("lstm", WIDE, 64, 5.0),
    Case("lstm_autoencoder", {"window": 16, "width": 64}, 1, 4.0),
)
QUICK = (Case("lstm", {"layers": 2, "width": 64}, 64, 2.0),)


def run(folder: Path, *, quick: bool) -> Part:
    """Each case with a hub and a device of its own.

    Raises:
        harness.Skip: there are no two cores, or a case came to no end.
    """
    core = two_cores()[1]
    figures, ratios, rows = {}, {}, []
    for case in QUICK if quick else CASES:
        name = f"{case.network}_batch_{case.batch}_by_{case.missed_by:g}"
        harness.say(name)
        (folder / name).mkdir()
        found = asyncio.run(_looped(folder / name, case, core, quick=quick))
        figures[name] = found
        ratios[f"{name}_p50_vs_budget"] = found["p50_seconds"] / found["budget_seconds"]
        ratios[f"{name}_average_precision_vs_parent"] = found["average_precision"] / found["parent_average_precision"]
        rows.append(_row(case, found))
    heads = [
        "network",
        "points a step",
        "p50 before",
        "budget",
        "cycles",
        "p50 after",
        "of the budget",
        "AP, parent",
        "outcome",
    ]
    return Part("The loop: a slowed device comes inside its budget by itself", figures, ratios, table(heads, rows))


def _row(case: Case, found: dict[str, Any]) -> list[str]:
    sizes = "x".join(str(it) for it in case.options.values())
    return [
        f"{case.network} {sizes}",
        str(case.batch),
        us(found["parent_p50_seconds"]),
        us(found["budget_seconds"]),
        f"{found['cycles']}, {found['corrections']} corrections",
        us(found["p50_seconds"]),
        f"{found['p50_seconds'] / found['budget_seconds']:.2f}x",
        f"{found['average_precision']:.3f}, {found['parent_average_precision']:.3f}",
        found["outcome"],
    ]


async def _looped(folder: Path, case: Case, core: int, *, quick: bool) -> dict[str, Any]:
    """One case, from the fit to a child that the device has measured inside its budget, or the best that there is."""
    end = time.monotonic() + (QUICK_LONGEST_SECONDS if quick else LONGEST_SECONDS)
    async with _fitted(folder, case, quick=quick) as (hub, client):
        token = folder / "token"
        token.write_text((await client.fleet.create_token(CLASS, device=DEVICE))["token"])
        port, admin = free_ports(2)
        command = [*harness.CLI, "edge", "--hub", f"127.0.0.1:{hub.listener.port}", "--store", str(folder / "device")]
        command += ["--device-class", CLASS, "--device", DEVICE, "--token-file", str(token)]
        command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
        spinner = harness.pinned(core, [sys.executable, "-c", SPIN])
        with (
            harness.running(spinner, folder / "spinner.log"),
            harness.running(harness.pinned(core, command), folder / "device.log"),
        ):
            flowing = asyncio.create_task(_flow(port, case.batch))
            try:
                parent = await _until(lambda: _measured(hub), end, "the device measured nothing")
                harness.say(f"the device measures {us(parent)}; now the table")
                await _until(lambda: _table_answers(hub), end, "the device measured no table")
                budget = parent / case.missed_by
                harness.say(f"the budget is {us(budget)}")
                await client.fleet.update_device_class(CLASS, {"p50_seconds": budget})
                book = await _until(lambda: _ended(hub), end, "no cycle ended")
            finally:
                flowing.cancel()
                await asyncio.gather(flowing, return_exceptions=True)
        last, p50 = book[0], _measured(hub)
        assert p50 is not None
        serving = hub.store.catalog.serving(DETECTOR, CLASS)
        assert serving is not None
        first = hub.store.catalog.versions(DETECTOR)[0].parent_hash
        return {
            "parent_p50_seconds": parent,
            "budget_seconds": budget,
            "p50_seconds": p50,
            "cycles": len(book),
            "corrections": sum(it.outcome == "corrected" for it in book),
            "outcome": last.outcome if not last.reason else f"{last.outcome}: {last.reason}",
            "parent_average_precision": _average_precision(hub, first),
            "average_precision": _average_precision(hub, serving.bundle_hash),
        }


@asynccontextmanager
async def _fitted(folder: Path, case: Case, *, quick: bool) -> AsyncIterator[tuple[Hub, Client]]:
    """A hub with a detector for the class of the device."""
    from prunewatch.client import Client
    from server.app import Hub
    from server.config import Settings

    fleet = {"status_every": "1s", "rollout": {"window": "5s"}}
    measuring = {"canaries": 1, "table_graphs": QUICK_GRAPHS if quick else GRAPHS}
    anywhere = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "page": False}
    hub = Hub(Settings(**anywhere, store=folder / "hub", fleet=fleet, measuring=measuring))
    names = [f"f{i + 1}" for i in range(FEATURES)]
    async with AsyncExitStack() as stack:
        await hub.start()
        stack.push_async_callback(hub.stop)
        client = await stack.enter_async_context(Client(f"127.0.0.1:{hub.listener.port}"))
        await client.fleet.create_device_class(CLASS, {"batch": case.batch})
        how = {"network": case.network, "options": case.options, "features": names, "time": "index", "seed": SEED}
        triggers = {"missed_budget": True, "cool_down": "1s"}
        await hub.roster.create(DETECTOR, {**how, "device_classes": ["hub", CLASS], "triggers": triggers})
        rows = harness.drawn(QUICK_POINTS if quick else POINTS, 1, FEATURES, seed=2)[:, 0]
        upload = {"features": names, "stamps": np.arange(len(rows)), "values": rows}
        await client.wait_operation(await client.fit_upload(DETECTOR, **upload))
        yield hub, client


async def _flow(port: int, batch: int) -> None:
    """Points of so many series to the device, until cancelled; before it has a detector, again and again the first."""
    from prunewatch.client import Client, ServiceError

    rows = harness.drawn(20_000, batch, FEATURES, seed=7)
    at = 0
    async with Client(f"127.0.0.1:{port}") as client:
        while True:
            try:
                await client.score(
                    DETECTOR,
                    series=[f"s{i}" for i in range(batch)],
                    series_index=np.arange(batch),
                    stamps=np.full(batch, at),
                    values=rows[at % len(rows)],
                )
                at += 1
            except ServiceError:
                pass
            await asyncio.sleep(PAUSE_SECONDS)


async def _until(look: Any, end: float, complaint: str) -> Any:
    while not (found := look()):
        if time.monotonic() > end:
            raise harness.Skip(f"{complaint} in time")
        await asyncio.sleep(LOOK_SECONDS)
    return found


def _measured(hub: Hub) -> float | None:
    """The p50 of what serves on the class, as the device has measured it."""
    serving = hub.store.catalog.serving(DETECTOR, CLASS)
    known = hub.store.catalog.measurements(serving.bundle_hash) if serving else []
    mine = [it for it in known if it.device_class == CLASS]
    return max(mine, key=lambda it: it.measured).p50_seconds if mine else None


def _table_answers(hub: Hub) -> int:
    known = hub.measuring.grids.known(DETECTOR, CLASS)
    return 0 if known is None else len(known.counted)


def _ended(hub: Hub) -> list[CycleRow]:
    """The book of the class, newest first, once the newest has ended; empty before."""
    book = [it for it in hub.store.catalog.cycles(DETECTOR) if it.device_class == CLASS]
    return book if book and book[0].outcome in {"adopted", "rejected", "failed"} else []


def _average_precision(hub: Hub, bundle_hash: str) -> float:
    """Of a bundle's own graph on points with injected anomalies that nobody has learned from."""
    from detectors.runtime import Runtime
    from detectors.training.calibrate import Scaler
    from detectors.training.stretches import Stretches
    from pruning.gate import Ranking
    from pruning.injection import inject

    bundle = hub.store.read_bundle(bundle_hash)
    warm_up, data = bundle.manifest.warm_up_points, Stretches.of([harness.drawn(POINTS, 1, FEATURES, seed=9)[:, 0]])
    rng = np.random.default_rng(SEED)
    events = inject(data.filled(), Scaler.fit(data.rows).scale, per_kind=EVENTS, warm_up=warm_up, rng=rng)
    runtime = Runtime(bundle.graph)
    state, scores = runtime.fresh(len(events.points)), []
    for points in np.moveaxis(events.points, 1, 0):
        step = runtime.step(np.ascontiguousarray(points, np.float32), state)
        state = step.state
        scores.append(step.score)
    score, labels = np.stack(scores, 1)[:, warm_up:], events.labels[:, warm_up:]
    return Ranking(score.ravel(), labels.ravel()).average_precision()
