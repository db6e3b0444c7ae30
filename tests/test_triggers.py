"""What begins a cycle by itself, in a real hub: schedule, drift, missed budget, changed settings; and what holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle
from quick_trainer import REJECT

from prunewatch.client import Client
from server.app import Hub
from server.config import Budget
from server.records import AdoptionRow, CycleRow, Measurement, Serving
from server.schedule import ERROR_SECONDS, HOLD_SECONDS
from server.step_times import STEPS, StepTimes
from server.triggers import fruitless, in_words, measured_above

RNG = np.random.default_rng(8)
CLASSES: dict[str, Any] = {"hub": {"p99": "10s"}}
PUMP: dict[str, Any] = {"features": ["f1", "f2"], "probation": {"points": 0, "shadow_points": 0}}


class Clocks:
    """Both clocks of a hub."""

    def __init__(self) -> None:
        self.wall, self.steady = NOW / 1e9, 0.0

    def pass_by(self, seconds: float) -> None:
        """Lets time pass."""
        self.wall += seconds
        self.steady += seconds


class Driven:
    """A hub without loops of its own: what is due is looked at when a test says so."""

    def __init__(self, hub: Hub, clocks: Clocks) -> None:
        self.hub = hub
        self.clocks = clocks
        self.sent = 0

    async def look(self) -> list[CycleRow]:
        """Looks once, waits for what began; all cycles, newest first."""
        await self.hub.scheduler.look()
        await eventually(lambda: asyncio.sleep(0, not self.hub.maintenance.is_busy("pump")))
        return self.hub.store.catalog.cycles("pump")

    async def later(self, seconds: float) -> list[CycleRow]:
        """The same after a time."""
        self.clocks.pass_by(seconds)
        return await self.look()

    async def send(self, client: Client, n: int, *, shift: float = 0.0) -> None:
        """Streams normal points, moved by `shift`."""
        stamps = NOW + 1 + self.sent + np.arange(n)
        values = RNG.normal(size=(n, 2)).astype(np.float32) + np.float32(shift)
        await client.score("pump", series=["a"], stamps=stamps, values=values, contributions=False)
        self.sent += n


@asynccontextmanager
async def driven(
    folder: Path, clocks: Clocks | None = None, classes: dict[str, Any] | None = None, **pump: Any
) -> AsyncIterator[tuple[Driven, Client]]:
    """A hub with `pump`, which is fitted unless the store has it already."""
    clocks = clocks or Clocks()
    settings = hub_settings(
        folder, device_classes=classes or CLASSES, detectors={"pump": {**PUMP, **pump}}, drain_seconds=0.1
    )
    hub = Hub(settings, trainer=QUICK_TRAINER, clock=lambda: clocks.wall, monotonic=lambda: clocks.steady)
    hub.store.catalog.clock = lambda: clocks.wall
    await hub.start()
    next(loop for loop in hub._loops if "Scheduler" in repr(loop)).cancel()  # a test looks when it wants to
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        if not hub.store.catalog.versions("pump"):
            values = RNG.normal(size=(100, 2)).astype(np.float32)
            fit = await client.fit_upload(
                "pump", features=["f1", "f2"], stamps=NOW - 100 + np.arange(100), values=values
            )
            await client.wait_operation(fit)
        yield Driven(hub, clocks), client
    await hub.stop()


def told(cycles: list[CycleRow]) -> list[tuple[str, str]]:
    """Trigger and device class, oldest first."""
    return [(cycle.trigger, cycle.device_class) for cycle in reversed(cycles)]


async def test_one_cycle_for_all_device_classes_that_are_due(tmp_path: Path) -> None:
    """A period later one operation prunes for each class, and says that the schedule asked, and how often it does."""
    classes = {**CLASSES, "pi4": {"p99": "1s"}}
    schedule = {"prune_every": "1h", "jitter": 0}
    async with driven(tmp_path, classes=classes, device_classes=["hub", "pi4"], schedule=schedule) as (it, _):
        early = await it.later(3599)
        due = await it.later(1)

    assert early == []
    assert told(due) == [("schedule", "hub"), ("schedule", "pi4")]
    assert len({cycle.operation for cycle in due}) == 1
    assert {(cycle.cause, cycle.outcome) for cycle in due} == {("every 3600.0s", "adopted")}


async def test_points_count_over_restarts(tmp_path: Path) -> None:
    """With `prune_every: 100 points` 60 points before a restart and 40 after it make one cycle, and 99 more none."""
    counts = []
    schedule = {"prune_every": "100 points", "jitter": 0}
    async with driven(tmp_path, schedule=schedule) as (it, client):
        await it.send(client, 60)
        counts.append(len(await it.look()))
        sent = it.sent
    for points in (39, 1, 99):
        async with driven(tmp_path, schedule=schedule) as (it, client):
            it.sent = sent
            await it.send(client, points)
            counts.append(len(await it.look()))
            sent = it.sent

    assert counts == [0, 0, 1, 1]


@pytest.mark.promise("R8")
@pytest.mark.parametrize("jump", [-3600.0, 3600.0, -86_400.0 * 400])
async def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, jump: float) -> None:
    """A wall clock that jumps within the life of a hub neither hastens nor holds up a cycle."""
    async with driven(tmp_path, schedule={"prune_every": "1h", "jitter": 0}) as (it, _):
        await it.later(1800)
        it.clocks.wall += jump
        counts = [len(await it.later(seconds)) for seconds in (1799, 1, 3599, 1)]

    assert counts == [0, 1, 1, 2]


async def test_frozen_nothing_begins(tmp_path: Path) -> None:
    """A frozen detector begins no cycle, however long it is due; unfrozen it begins one."""
    async with driven(tmp_path, schedule={"prune_every": "1h", "refit_every": "90m", "jitter": 0}) as (it, client):
        await client.freeze("pump")
        frozen = [len(await it.later(3600)) for _ in range(3)]
        versions = len(await client.versions("pump"))
        await client.unfreeze("pump")
        thawed = await it.later(HOLD_SECONDS)
        thawed_versions = len(await client.versions("pump"))

    assert (frozen, versions) == ([0, 0, 0], 1)
    assert (thawed, thawed_versions) == ([], 2)  # the refit comes first


async def test_a_pinned_class_is_left_out(tmp_path: Path) -> None:
    """A class that is pinned gets no cycle, the others do; where all are pinned nothing begins, and nothing fails."""
    classes = {**CLASSES, "pi4": {"p99": "1s"}}
    schedule = {"prune_every": "1h", "jitter": 0}
    async with driven(tmp_path, classes=classes, device_classes=["hub", "pi4"], schedule=schedule) as (it, client):
        await client.pin("pump", "pi4")
        one = told(await it.later(3600))
        await client.pin("pump", "hub")
        none = told(await it.later(7200))

    assert (one, none) == ([("schedule", "hub")], [("schedule", "hub")])


async def test_after_a_roll_back_nothing_begins_for_a_while(tmp_path: Path) -> None:
    """A version that went back by itself holds up the next cycle for `back_off`."""
    probation = {**PUMP["probation"], "points": 1000, "back_off": "2h"}
    async with driven(tmp_path, schedule={"prune_every": "1h", "jitter": 0}, probation=probation) as (it, _):
        await it.later(3600)
        (adopted,) = it.hub.store.catalog.adoptions("pump")
        it.hub.store.catalog.take_back(adopted, "alarm flood")
        held = len(await it.later(3700))
        again = len(await it.later(3600))

    assert isinstance(adopted, AdoptionRow)
    assert (held, again) == (1, 2)


async def test_a_changed_budget_begins_a_cycle_after_the_restart(tmp_path: Path) -> None:
    """With `config_change` the class whose budget was changed gets one, once, and the cause names both budgets."""
    triggers = {"config_change": True}
    async with driven(tmp_path, triggers=triggers) as (it, _):
        same = await it.look()
    classes = {"hub": {"p99": "5s"}, "pi4": {"p99": "1s"}}
    async with driven(tmp_path, classes=classes, device_classes=["hub", "pi4"], triggers=triggers) as (it, _):
        changed = await it.look()
        settled = await it.later(7200)

    assert same == []
    assert told(changed) == [("config_change", "hub"), ("config_change", "pi4")]
    assert "the budget of hub was p99 1e+07us, batch 256 and is p99 5e+06us, batch 256" in changed[0].cause
    assert settled == changed


async def test_drift_begins_a_cycle_and_the_cool_down_holds_the_next(tmp_path: Path) -> None:
    """Errors that stay high begin one cycle for all classes; no other before `cool_down`, also after a restart."""
    clocks = Clocks()
    triggers = {"drift": True, "drift_window": 40, "cool_down": "1h"}
    async with driven(tmp_path, clocks, triggers=triggers) as (it, client):
        await it.look()
        await it.send(client, 200, shift=50.0)
        drifted = await it.look()
        await it.send(client, 200, shift=50.0)
        held = await it.later(HOLD_SECONDS)
        sent = it.sent
    async with driven(tmp_path, clocks, triggers=triggers) as (it, client):
        it.sent = sent
        for _ in range(2):
            await it.send(client, 200, shift=50.0)
            await it.later(HOLD_SECONDS)
        restarted = await it.look()
        again = await it.later(3600)

    assert told(drifted) == [("drift", "hub")]
    assert drifted[0].cause.startswith("errors are higher than calibrated")
    assert len(held) == len(restarted) == 1
    assert told(again) == [("drift", "hub")] * 2


async def test_what_stays_flagged_begins_a_fit(tmp_path: Path) -> None:
    """Once half of so many points were flagged, not before; not while it is frozen, nor again before the cool-down."""
    fits = []

    async with driven(tmp_path, triggers={"shift": 100, "cool_down": "1h"}) as (it, client):

        async def counted(seconds: float = HOLD_SECONDS) -> None:
            await it.later(seconds)
            fits.append(sum(row.cause == "fit" for row in it.hub.store.catalog.versions("pump")))

        await it.send(client, 100)
        await it.send(client, 40, shift=1e6)
        await counted()  # fewer than half
        await client.freeze("pump")
        await it.send(client, 60, shift=1e6)
        await counted()  # frozen
        await client.unfreeze("pump")
        await counted()
        await it.send(client, 100, shift=1e9)
        await counted()  # cools down
        await counted(3600)
        await it.send(client, 40, shift=1e12)
        await counted(3600)  # the new version has scored too few points

    assert fits == [1, 1, 2, 2, 3, 3]


async def test_nothing_is_fitted_to_what_stays_flagged_unless_asked_for(tmp_path: Path) -> None:
    """By default it stays out for good."""
    async with driven(tmp_path) as (it, client):
        await it.send(client, 100)
        await it.send(client, 400, shift=1e6)
        await it.later(3600)
        versions = it.hub.store.catalog.versions("pump")

    assert len(versions) == 1


async def test_a_budget_missed_in_use_begins_a_cycle(tmp_path: Path) -> None:
    """Steps of a full batch that take longer than the budget, 200 of them; smaller steps do not count."""
    classes = {"hub": {"p50": "1us", "batch": 8}}
    async with driven(tmp_path, classes=classes, triggers={"missed_budget": True}) as (it, client):
        sentry = it.hub.scheduler.sentry  # of what cycles measured nothing is known
        sentry._measured["pump"], sentry._budgets = (it.clocks.steady, {}), dict(it.hub.roster.device_classes)
        counts = []
        for width in (2, 8):
            for turn in range(STEPS):
                names = [f"s{i}" for i in range(width)]
                stamps = np.full(width, NOW + 1000 * width + turn)
                await client.score("pump", series=names, stamps=stamps, values=np.zeros((width, 2), np.float32))
            counts.append(told(await it.look()))
        (cycle,) = it.hub.store.catalog.cycles("pump")

    assert counts == [[], [("missed_budget", "hub")]]
    assert cycle.cause.startswith("half of the last 200 steps took ")


async def test_what_comes_to_nothing_waits_twice_as_long(tmp_path: Path) -> None:
    """A budget that no cycle meets begins one after 1 h, 1 h, then 2 h: not for ever at the same pace."""
    classes = {"hub": {"p50": "1us", "batch": 256}}
    pump = {"triggers": {"missed_budget": True, "cool_down": "1h"}, "seed": REJECT}
    async with driven(tmp_path, classes=classes, **pump) as (it, _):
        it.hub.store.catalog.record_measurement(
            Measurement(it.hub.store.catalog.serving("pump", "hub").bundle_hash, "hub", 256, 1.0, 1.0, it.clocks.wall)
        )
        counts = [len(await it.later(seconds)) for seconds in (61, 3599, 1 + HOLD_SECONDS, 3605, 3605)]

    assert counts == [1, 1, 2, 2, 3]


async def test_what_can_not_start_does_not_hold_up_others(tmp_path: Path) -> None:
    """A detector without points fails to begin, and is tried again later; the next one begins its cycle."""
    schedule = {"prune_every": "1h", "jitter": 0}
    async with driven(tmp_path, schedule=schedule) as (it, _):
        await publish(it.hub, ewma_bundle("apart"), schedule=schedule)
    async with driven(tmp_path, schedule=schedule) as (it, _):
        begun = told(await it.later(3600))
        failed = [it.hub.store.catalog.cycles("apart")]
        await publish_points(it.hub, "apart")
        for seconds in (ERROR_SECONDS - 1, 1):
            await it.later(seconds)
            await eventually(lambda: asyncio.sleep(0, not it.hub.maintenance.is_busy("apart")))
            failed.append(it.hub.store.catalog.cycles("apart"))

    assert begun == [("schedule", "hub")]
    assert [len(cycles) for cycles in failed] == [0, 0, 1]


async def publish_points(hub: Hub, name: str) -> None:
    """Points of a file in the history of a detector."""
    await hub.host.get(name).keep_import(NOW + np.arange(50), RNG.normal(size=(50, 2)).astype(np.float32))


def test_step_times_count_where_they_say_something() -> None:
    """Half a batch to a whole one; a median above p50 or one step in twenty above p99 misses, and only over 200."""
    budget = Budget(p50=1e-3, p99=2e-3, batch=64)
    times = StepTimes(64)
    for size in (31, 65):
        for _ in range(STEPS):
            times.add(1.0, size)
    assert times.missed(budget) == ""

    for step in range(STEPS):
        times.add(5e-3 if step % 20 == 0 else 0.5e-3, 32)
    assert times.missed(budget) == ""
    for _ in range(2):  # the first of them pushes out one that was slow too
        times.add(5e-3, 64)
    assert times.missed(budget) == "6% of the last 200 steps took more than the 2000 us of the p99"
    for _ in range(STEPS // 2 + 1):
        times.add(1.5e-3, 64)
    assert times.missed(budget) == "half of the last 200 steps took 1500 us and more; 1000 may be"
    times.clear()
    assert times.missed(budget) == ""


def test_the_newest_measurement_of_a_device_class_decides() -> None:
    """Other batches, other classes and older measurements say nothing."""
    serving = Serving("pump", "pi4", 3, "abc", pinned=False, previous_version=None)
    slow, quick = (Measurement("abc", "pi4", 64, it, it, when) for it, when in ((3e-3, 2.0), (1e-3, 1.0)))
    elsewhere = Measurement("abc", "hub", 64, 9.0, 9.0, 9.0)

    def above(*measured: Measurement, batch: int = 64) -> dict[str, str]:
        return measured_above([serving], {"abc": measured}, lambda _: Budget(p99=2e-3, batch=batch))

    assert above(slow, quick, elsewhere) == {"pi4": "version 3 was measured on pi4 with a p99 of 3000 us; 2000 may be"}
    assert above(quick, elsewhere) == above(slow, batch=32) == above() == {}


def test_fruitless_cycles_are_counted_by_operation() -> None:
    """One that was adopted for any class ends the row; what the schedule or a person asked for does not count."""

    def row(operation: str, outcome: str, trigger: str = "drift") -> CycleRow:
        return CycleRow(1, "pump", "hub", trigger, 0.0, 1.0, outcome, operation=operation)

    rejected = [row("c", "rejected"), row("c", "rejected"), row("b", "failed"), row("m", "adopted", "manual")]

    assert fruitless([*rejected, row("a", "rejected"), row("a", "adopted"), row("0", "rejected")]) == 2
    assert fruitless(rejected) == 2
    assert fruitless([]) == 0


def test_budgets_in_words_tell_them_apart() -> None:
    """Every limit and the batch are in it; no limit is no budget."""
    assert in_words(Budget()) == in_words(Budget(batch=8)) == ""
    assert in_words(Budget(p50=1e-3, p99=2e-3, speedup=4, size=1024, batch=8)) == (
        "p50 1000us, p99 2000us, speedup 4, size 1024B, batch 8"
    )
