"""What devices measure: tables of classes, children that wait for canaries, what serves. A real hub, quick trainer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK_TRAINER, Hub, eventually, hub_settings, publish
from graphs import ewma_bundle
from quick_trainer import REJECT

from detectors.failpoints import VARIABLE
from prunewatch.client import Client
from pruning.costs import Table
from server.config import Budget
from server.fleet.measuring import Measuring
from server.fleet.reports import ProbeReport
from server.fleet.verdicts import corrected, verdict
from server.measuring_settings import Measuring as Settings
from server.records import CycleRow
from server.releases import KeySet, Probe, Signed, SigningKey, Trust, TrustedKey
from server.waiting import Waiting

CLASSES = {"pi4": {"p50": "100us", "batch": 64}, "hub": {}}
KEY = SigningKey.generate()
TRUST = Trust.of(KeySet(counter=1, keys=[TrustedKey(public_key=KEY.public.hex(), created=0)]))


@dataclass
class Clock:
    """A wall clock that is set."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


@dataclass
class Fleet:
    """Devices of pi4 at the seam of links and files: who is connected, what was sent, what can be fetched."""

    devices: dict[str, float] = field(default_factory=dict)
    """How many microseconds a step of the parent takes on each; a child takes half."""
    sent: list[tuple[Probe, list[str]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def connected(self, device_class: str) -> list[str]:
        """All of them."""
        return sorted(self.devices) if device_class == "pi4" else []

    def send_probe(self, device_class: str, signed: Signed, devices: Sequence[str]) -> int:
        """Takes a probe that verifies."""
        probe = TRUST.probe(signed)
        assert probe.device_class == device_class
        self.sent.append((probe, list(devices)))
        return len(devices)

    def add(self, sha256: str, content: bytes | Path) -> None:
        """Takes a file that is what its name says."""
        self.files[sha256] = content if isinstance(content, bytes) else content.read_bytes()
        assert hashlib.sha256(self.files[sha256]).hexdigest() == sha256

    def answers(self, share: float = 0.5) -> list[ProbeReport]:
        """What devices answer to all that was sent; `share`: of the first graph's time that the others take."""
        found = []
        for probe, devices in self.sent:
            for device in devices:
                microseconds = self.devices[device]
                costs = {
                    graph.sha256: (1e-6 * microseconds * (share if i else 1), 2e-6 * microseconds * (share if i else 1))
                    for i, graph in enumerate(probe.graphs)
                }
                conditions = {"runtime": "1.32.0"}
                found.append(ProbeReport(device, probe.id, probe.batch, costs, conditions, "", 0))
        self.sent.clear()
        return found


@dataclass
class Bench:
    """A hub with devices."""

    hub: Hub
    fleet: Fleet
    clock: Clock
    measuring: Measuring
    adopted: list[tuple[str, str, int]]

    async def answered(self, share: float = 0.5) -> None:
        """Everything that was asked is answered, and looked at."""
        for report in self.fleet.answers(share):
            self.measuring.on_probe("pi4", report)
        await self.measuring.look()

    async def settled(self) -> None:
        """The table is there and what serves is measured: what is asked from now on is about a child."""
        for _ in range(3):
            await self.measuring.look()
            await eventually(self.idle)
            await self.answered()
        assert self.fleet.sent == []

    async def idle(self) -> bool:
        """Whether no trainer works."""
        return not self.hub.maintenance.is_busy("pump")

    async def pruned(self, seed: int = 1) -> CycleRow:
        """A cycle for the devices, as the book has it."""
        await self.hub.maintenance.prune("pump", "pi4", self.hub.roster.budget_of("pi4"), seed=seed)
        await eventually(self.idle)
        return self.cycles()[0]

    def cycles(self) -> list[CycleRow]:
        """The book, newest first."""
        return self.hub.store.catalog.cycles("pump")

    def serving(self) -> int:
        """The version of pi4."""
        served = self.hub.store.catalog.serving("pump", "pi4")
        assert served is not None
        return served.version


class Driven(Measuring):
    """The test looks, and nobody else."""

    async def run(self) -> None:
        """Does nothing until cancelled."""
        await asyncio.Event().wait()


class TestedHub(Hub):
    """A hub whose own measuring, with links that no device of these tests has, does nothing."""

    __test__ = False

    async def start(self) -> None:
        """Hosts and listens."""
        self.measuring = measuring_of(self, Fleet({}), Clock(), [])
        await super().start()


def measuring_of(hub: Hub, fleet: Fleet, clock: Clock, adopted: list[tuple[str, str, int]], **fields: Any) -> Measuring:
    """As the composition root puts it together."""
    return Driven(
        hub.roster,
        hub.maintenance,
        fleet,
        fleet,
        lambda probe: KEY.sign("probe", probe),
        enrolled=lambda device_class: len(fleet.devices) if device_class == "pi4" else 0,
        class_of=lambda device: "pi4" if device in fleet.devices else None,
        metrics=hub.metrics,
        settings=Settings(**fields),
        adopted=lambda *what: adopted.append(what),
        clock=clock,
    )


async def stocked(hub: Hub) -> None:
    """A detector with points and a parent for pi4 alone."""
    await publish(hub, ewma_bundle("pump"), device_classes=["pi4"], time="index")
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.score("pump", series=["a"], values=np.zeros((300, 2), np.float32))
    await hub.host.flush()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A hub with three devices, which have measured nothing yet."""
    clock, fleet, adopted = Clock(), Fleet({"north": 150.0, "south": 160.0, "west": 170.0}), []
    hub = TestedHub(hub_settings(tmp_path, device_classes=CLASSES), trainer=QUICK_TRAINER, clock=clock)
    await hub.start()
    try:
        await stocked(hub)
        yield Bench(hub, fleet, clock, measuring_of(hub, fleet, clock, adopted), adopted)
    finally:
        await hub.stop()


# Tables


async def test_a_class_with_devices_gets_its_table(bench: Bench) -> None:
    """Graphs are drawn, signed, offered by hash and measured; the table lies where cycles look for it."""
    await bench.measuring.look()
    await eventually(bench.idle)
    await bench.measuring.look()
    tables = [probe for probe, _ in bench.fleet.sent if len(probe.graphs) == 3]
    asked = {device for probe, devices in bench.fleet.sent if len(probe.graphs) == 3 for device in devices}
    await bench.answered()

    known = bench.measuring.grids.known("pump", "pi4")

    assert asked == set(bench.fleet.devices)
    assert {graph.sha256 for probe in tables for graph in probe.graphs} <= bench.fleet.files.keys()
    assert known is not None
    assert len(known.counted) == 3
    kept = Table.from_json((bench.hub.store.root / "tables" / f"{known.grid.key}.json").read_text())
    assert kept.levels[0].whole.p50_seconds == pytest.approx(160e-6)


async def test_a_table_is_that_of_the_next_parent_of_the_same_shape(bench: Bench) -> None:
    """Its graphs have other hashes, for its scale is in them; devices do not measure all of them anew for that."""
    await bench.settled()
    before = bench.measuring.grids.known("pump", "pi4")
    await bench.hub.maintenance.fit("pump")
    await eventually(bench.idle)

    await bench.measuring.look()
    await eventually(bench.idle)
    await bench.measuring.look()
    known = bench.measuring.grids.known("pump", "pi4")

    assert before is not None
    assert known is not None
    assert known.parent != before.parent
    assert known.counted == before.counted
    assert [len(probe.graphs) for probe, _ in bench.fleet.sent if len(probe.graphs) == 3] == []


async def test_a_table_is_measured_anew_when_it_is_old(bench: Bench) -> None:
    """And not before; devices that were asked and have not answered are asked again after a while."""
    await bench.settled()
    bench.clock.now += 89 * 86400
    await bench.measuring.look()
    before = len(bench.fleet.sent)
    bench.clock.now += 2 * 86400
    await bench.measuring.look()
    first = [it for it in bench.fleet.sent if len(it[0].graphs) == 3]
    await bench.measuring.look()
    at_once = [it for it in bench.fleet.sent if len(it[0].graphs) == 3]
    bench.clock.now += 3601
    await bench.measuring.look()

    assert before == 0
    assert sorted(first[0][1]) == sorted(bench.fleet.devices)
    assert at_once == first
    assert len([it for it in bench.fleet.sent if len(it[0].graphs) == 3]) == 2


async def test_a_new_parent_has_graphs_drawn_and_keeps_what_is_known_of_its_shape(bench: Bench) -> None:
    """Weights do not matter: nobody measures again."""
    await bench.settled()
    await publish(bench.hub, ewma_bundle("pump", 2, alpha=0.3), device_classes=["pi4"])

    await bench.measuring.look()
    await eventually(bench.idle)
    await bench.measuring.look()

    known = bench.measuring.grids.known("pump", "pi4")
    assert known is not None
    assert known.parent == bench.hub.store.catalog.versions("pump")[-1].parent_hash
    assert len(known.counted) == 3
    assert [probe for probe, _ in bench.fleet.sent if len(probe.graphs) == 3] == []


async def test_answers_of_strangers_and_of_other_classes_are_not_used(bench: Bench) -> None:
    """They are counted."""
    await bench.measuring.look()
    await eventually(bench.idle)
    await bench.measuring.look()
    (report, *_) = [it for it in bench.fleet.answers() if len(it.costs) == 3]
    stranger = ProbeReport("stranger", report.probe_id, 64, report.costs, {}, "", 0)

    bench.measuring.on_probe("pi4", stranger)
    bench.measuring.on_probe("hub", report)
    await bench.measuring.look()

    known = bench.measuring.grids.known("pump", "pi4")
    assert known is not None
    assert known.answers == {}
    count = bench.hub.metrics.registry.get_sample_value
    assert count("prunewatch_probes_total", {"device_class": "pi4", "outcome": "unused"}) == 1


async def test_a_class_without_devices_is_as_it_was(bench: Bench) -> None:
    """Nothing is asked or drawn, and its child is adopted on the hub's own times."""
    bench.fleet.devices.clear()
    await bench.measuring.look()

    row = await bench.pruned()

    assert row.outcome == "adopted"
    assert bench.serving() == 2
    assert bench.fleet.sent == []


# Children that wait


async def test_a_child_waits_until_canaries_have_measured_it(bench: Bench) -> None:
    """Published, served nowhere, the cycle not ended; in budget on the devices it serves, with what they measured."""
    await bench.settled()
    waiting = await bench.pruned()
    before = bench.serving()
    await bench.measuring.look()
    (probe, devices) = bench.fleet.sent[0]
    await bench.answered()
    (row,) = bench.cycles()

    assert (waiting.outcome, waiting.ended, before) == ("awaiting_device", None, 1)
    assert sorted(devices) == ["north", "south", "west"]
    assert [it.sha256 for it in probe.graphs] == [waiting.result["waiting"][it] for it in ("parent", "child")]
    assert (row.outcome, bench.serving(), row.ended) == ("adopted", 2, bench.clock.now)
    assert row.result["times"] == "measured on 3 devices of pi4"
    assert row.result["child"]["p50_seconds"] == pytest.approx(80e-6)
    (measured,) = [
        it for it in bench.hub.store.catalog.measurements(row.result["child"]["hash"]) if it.device_class == "pi4"
    ]
    assert (measured.batch, measured.p50_seconds) == (64, pytest.approx(80e-6))
    assert bench.adopted == [("pump", "pi4", 2)]
    assert [it.state for it in bench.hub.store.catalog.adoptions("pump")] == ["kept"]


async def test_the_detector_is_free_while_a_child_waits(bench: Bench) -> None:
    """Another cycle runs; its child takes the place of the one that waits."""
    await bench.settled()
    first = await bench.pruned(seed=1)
    second = await bench.pruned(seed=2)
    await bench.measuring.look()
    await bench.answered()

    rows = {row.id: row for row in bench.cycles()}

    assert (rows[first.id].outcome, rows[first.id].reason) == ("rejected", "a newer child took its place")
    assert (rows[second.id].outcome, bench.serving()) == ("adopted", 3)


async def test_some_canaries_are_enough_after_a_while(bench: Bench) -> None:
    """One of three answers: it is waited for the others as long as patience says."""
    await bench.settled()
    await bench.pruned()
    await bench.measuring.look()
    (report, *_) = bench.fleet.answers()
    bench.measuring.on_probe("pi4", report)
    await bench.measuring.look()
    early = bench.serving()
    bench.clock.now += 3601
    await bench.measuring.look()

    assert (early, bench.serving()) == (1, 2)
    assert bench.cycles()[0].result["times"] == "measured on 1 device of pi4"


async def test_a_child_that_no_device_measures_is_given_up(bench: Bench) -> None:
    """After the time in the settings, by the clock; what serves goes on."""
    await bench.settled()
    await bench.pruned()
    bench.clock.now += 7 * 86400 - 1
    await bench.measuring.look()
    before = bench.cycles()[0].outcome
    bench.clock.now += 2
    await bench.measuring.look()
    (row,) = bench.cycles()

    assert before == "awaiting_device"
    assert (row.outcome, row.reason, bench.serving()) == ("rejected", "no device answered", 1)


async def test_a_child_that_misses_the_budget_is_made_narrower_and_then_given_up(bench: Bench) -> None:
    """The trainer is asked with a budget that makes up for it, three times; then the best that was reached is told."""
    await bench.settled()
    await bench.pruned()
    for _ in range(4):
        await bench.measuring.look()
        await bench.answered(share=0.8)  # 128 us of the 100 that may be
        await eventually(bench.idle)
    rows = bench.cycles()[::-1]

    assert [row.outcome for row in rows] == ["corrected", "corrected", "corrected", "rejected"]
    assert rows[0].reason == "measured on 3 devices: p50 128 us (budget 100 us)"
    assert [row.cause.partition("; ")[2] for row in rows[1:]] == [
        f"correction {i} of 3 after cycle {row.id}" for i, row in enumerate(rows[:3], start=1)
    ]
    assert rows[-1].result["best_reachable"]["p50_seconds"] == pytest.approx(128e-6)
    assert "Measured on 3 devices" in rows[-1].result["best_reachable"]["hint"]
    assert bench.serving() == 1


async def test_a_narrower_child_that_fits_is_adopted(bench: Bench) -> None:
    """The first misses, the second keeps the budget."""
    await bench.settled()
    await bench.pruned()
    await bench.measuring.look()
    await bench.answered(share=0.8)
    await eventually(bench.idle)
    await bench.measuring.look()
    await bench.answered(share=0.5)

    assert [row.outcome for row in bench.cycles()] == ["adopted", "corrected"]
    assert bench.serving() == 3


async def test_what_has_changed_meanwhile_is_not_undone(bench: Bench) -> None:
    """Another version has come to serve on the class: the child is given up, and so it is where the class is pinned."""
    await bench.settled()
    await bench.pruned()
    await publish(bench.hub, ewma_bundle("pump", 3), device_classes=["pi4"])
    await bench.measuring.look()
    overtaken = bench.cycles()[0]
    await bench.settled()
    await bench.pruned()
    bench.hub.store.catalog.pin("pump", "pi4")
    await bench.measuring.look()
    await bench.answered()
    pinned = bench.cycles()[0]

    assert (overtaken.outcome, overtaken.reason) == ("rejected", "another version has come to serve meanwhile")
    assert pinned.outcome == "rejected"
    assert "pinned" in pinned.reason
    assert bench.serving() == 3


async def test_one_lying_canary_decides_nothing(bench: Bench) -> None:
    """Figures that can not be true, a hundredfold, nothing at all, the same again: the others decide."""
    bench.fleet.devices["liar"] = 150.0
    await bench.settled()
    await bench.pruned()
    for _ in range(3):
        await bench.measuring.look()
        for report in bench.fleet.answers():
            lie = {it: (p50 * 50, p99 * 50) for it, (p50, p99) in report.costs.items()}
            told = report if report.device != "liar" else ProbeReport("liar", report.probe_id, 64, lie, {}, "", 0)
            bench.measuring.on_probe("pi4", told)
            bench.measuring.on_probe("pi4", told)
        await bench.measuring.look()

    assert bench.cycles()[0].outcome == "adopted"


async def test_a_round_adopts_for_the_hub_and_waits_for_devices(tmp_path: Path) -> None:
    """One cycle for both makes one version: the hub's child serves at once, the devices' when it is measured."""
    clock, fleet, adopted = Clock(), Fleet({"north": 150.0}), []
    classes = {"pi4": CLASSES["pi4"], "hub": {"p50": "1s"}}
    hub = TestedHub(hub_settings(tmp_path, device_classes=classes), trainer=QUICK_TRAINER, clock=clock)
    await hub.start()
    await publish(hub, ewma_bundle("pump"), device_classes=["hub", "pi4"], time="index", probation={"shadow_points": 0})
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.score("pump", series=["a"], values=np.zeros((300, 2), np.float32))
    await hub.host.flush()
    bench = Bench(hub, fleet, clock, measuring_of(hub, fleet, clock, adopted), adopted)
    await bench.settled()

    await hub.maintenance.cycle("pump", ["hub", "pi4"], trigger="schedule")
    await eventually(bench.idle)
    outcomes = {row.device_class: row.outcome for row in bench.cycles()}
    serving = {it.device_class: it.version for it in hub.store.catalog.all_serving("pump")}
    await bench.measuring.look()
    await bench.answered()

    assert outcomes == {"hub": "adopted", "pi4": "awaiting_device"}
    assert serving == {"hub": 2, "pi4": 1}
    assert bench.serving() == 2
    await hub.stop()


async def test_a_child_that_the_gate_rejects_does_not_wait(bench: Bench) -> None:
    """Devices are not asked about what may not serve anyway."""
    await bench.settled()

    row = await bench.pruned(seed=REJECT)
    await bench.measuring.look()

    assert row.outcome == "rejected"
    assert bench.fleet.sent == []


async def test_nothing_begins_by_itself_for_a_class_whose_child_waits(bench: Bench) -> None:
    """It would take the place of the one that is being measured."""
    from server.triggers import allowed

    catalog, config = bench.hub.store.catalog, bench.hub.roster.config_of("pump")
    await bench.settled()
    before = allowed(catalog, "pump", config, ["pi4"], bench.clock.now)
    await bench.pruned()

    assert before == ["pi4"]
    assert allowed(catalog, "pump", config, ["pi4"], bench.clock.now) == []


async def test_what_waits_waits_on_over_a_restart(bench: Bench, tmp_path: Path) -> None:
    """The book has it, its bundles stay, an answer that came before counts, the probe is known."""
    await bench.settled()
    row = await bench.pruned()
    await bench.measuring.look()
    first, *others = bench.fleet.answers()
    bench.measuring.on_probe("pi4", first)
    await bench.measuring.look()
    await bench.hub.stop()  # again in the fixture, which does no harm

    again = TestedHub(hub_settings(tmp_path, device_classes=CLASSES), trainer=QUICK_TRAINER, clock=bench.clock)
    await again.start()
    again.store.tidy()
    measuring = measuring_of(again, bench.fleet, bench.clock, bench.adopted)
    (kept,) = again.store.catalog.awaiting()
    await measuring.look()
    for report in others:
        measuring.on_probe("pi4", report)
    await measuring.look()
    served = again.store.catalog.serving("pump", "pi4")
    await again.stop()

    assert kept.id == row.id
    assert list(Waiting.of(kept).answers) == [first.device]
    assert served is not None
    assert served.version == 2
    assert again.store.root.joinpath("bundles", row.result["child"]["hash"]).is_dir()


LIFE = """
import asyncio, sys
from pathlib import Path
from test_measuring import life
asyncio.run(life(Path(sys.argv[1])))
"""


async def life(folder: Path) -> None:
    """A hub whose child waits, is asked about, measured and adopted, unless it dies before."""
    clock, fleet, adopted = Clock(), Fleet({"north": 150.0}), []
    hub = TestedHub(hub_settings(folder, device_classes=CLASSES), trainer=QUICK_TRAINER, clock=clock)
    await hub.start()
    await stocked(hub)
    bench = Bench(hub, fleet, clock, measuring_of(hub, fleet, clock, adopted), adopted)
    await bench.settled()
    await bench.pruned()
    await bench.measuring.look()
    await bench.answered()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("publish.committed:2", "awaiting_device"),  # the first publication is the fit's
        ("candidate.asked", "awaiting_device"),
        ("candidate.adopted", "adopted"),
    ],
)
async def test_a_crash_loses_nothing_that_waits(step: str, outcome: str, tmp_path: Path) -> None:
    """Kill -9 at each step: the child is gone, waits, or serves; what waits is measured by the next process."""
    dead = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LIFE, str(tmp_path)),
        env={**os.environ, VARIABLE: step, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert await asyncio.wait_for(dead.wait(), 60) == -signal.SIGKILL

    clock, fleet, adopted = Clock(), Fleet({"north": 150.0}), []
    hub = TestedHub(hub_settings(tmp_path, device_classes=CLASSES), trainer=QUICK_TRAINER, clock=clock)
    await hub.start()
    bench = Bench(hub, fleet, clock, measuring_of(hub, fleet, clock, adopted), adopted)
    found = bench.cycles()[0].outcome
    await bench.measuring.look()
    await bench.answered()
    serving = bench.serving()
    await hub.stop()

    assert found == outcome
    assert serving == 2


# What serves


async def test_what_serves_is_measured_and_asks_for_a_cycle_where_it_misses_the_budget(bench: Bench) -> None:
    """The parent takes 160 us of the 100: `missed_budget` sees it for the class of the devices."""
    from server.triggers import measured_above

    await bench.settled()
    catalog = bench.hub.store.catalog
    serving = catalog.all_serving("pump")

    found = measured_above(
        serving, {it.bundle_hash: catalog.measurements(it.bundle_hash) for it in serving}, bench.hub.roster.budget_of
    )

    assert list(found) == ["pi4"]
    assert "160 us; 100 may be" in found["pi4"]


async def test_steps_in_use_miss_a_budget_by_the_median_of_devices(bench: Bench) -> None:
    """Of five statuses each; one device, a step that can not be and another bundle make no missed budget."""
    from server.fleet.in_service import InService

    clock = Clock()
    seen = InService(bench.hub.roster, None, Settings(), clock)  # type: ignore[arg-type]  (nobody is asked)
    budget = Budget.model_validate({"p99": "1ms"})

    def hears(device: str, p99: float, bundle: str = "b2") -> None:
        seen.hear(device, "pi4", "pump", bundle, p99 / 2, p99)

    for _ in range(5):
        hears("slow", 3e-3)
        hears("quick", 0.5e-3)
        hears("steady", 0.6e-3)
        hears("steady", float("nan"))
        hears("older", 9e-3, "b1")
        seen.hear("idle", "pi4", "pump", "b2", None, None)
    met = seen.missed("pump", "pi4", "b2", budget)
    for _ in range(5):
        hears("quick", 2e-3)
    missed = seen.missed("pump", "pi4", "b2", budget)
    clock.now += 86401

    assert met == ""
    assert missed == "steps in use on 3 devices of pi4 have a p99 of 2000 us; 1000 may be"
    assert seen.missed("pump", "pi4", "b2", budget) == ""


async def test_slow_steps_in_use_have_what_was_measured_inside_the_budget_measured_anew(bench: Bench) -> None:
    """In use a step is slower than measured. That begins no cycle after the other: measuring decides, once more."""
    await bench.settled()
    await bench.pruned()
    await bench.measuring.look()
    await bench.answered()
    seen, budget = bench.measuring.in_service, bench.hub.roster.budget_of("pi4")
    serving = bench.hub.store.catalog.serving("pump", "pi4")
    assert serving is not None
    assert serving.version == 2

    for _ in range(5):
        for device in ("north", "south", "west"):
            seen.hear(device, "pi4", "pump", serving.bundle_hash, 9e-3, 9e-3)
    await bench.settled()
    asked_at_once = list(bench.fleet.sent)
    bench.clock.now += Settings().ask_again + 1
    await bench.measuring.look()
    asked_later = [len(probe.graphs) for probe, _ in bench.fleet.sent]
    await bench.answered(share=5.0)

    assert seen.missed("pump", "pi4", serving.bundle_hash, budget) == ""
    assert (asked_at_once, asked_later) == ([], [1])
    newest = max(bench.hub.store.catalog.measurements(serving.bundle_hash), key=lambda it: it.measured)
    assert newest.measured == bench.clock.now


# Verdicts


def waiting_with(budget: dict[str, float | None], costs: dict[str, tuple[float, float]]) -> Waiting:
    """A child that one device has measured."""
    full = {"p50_seconds": None, "p99_seconds": None, "speedup": None, "size_bytes": None, "batch": 64, **budget}
    return Waiting(full, "p", "c", 1, 0.0, answers={"north": costs})


@pytest.mark.parametrize(
    ("budget", "key", "asked"),
    [
        ({"p50_seconds": 110e-6}, "p50", 110e-6 * 100 / 130),
        ({"p99_seconds": 200e-6}, "p99", 200e-6 * 150 / 260),
        ({"speedup": 2.5}, "speedup", 2.5 * 3.0 / (260 / 130)),
    ],
)
def test_a_missed_budget_is_asked_for_as_much_tighter_as_was_foretold_wrongly(
    budget: dict[str, float | None], key: str, asked: float
) -> None:
    """The child was to take 100 us (p99 150) beside a parent of 300, and takes 130 (260) beside one of 260."""
    waiting = waiting_with(budget, {"p": (260e-6, 400e-6), "c": (130e-6, 260e-6)})
    result = {
        "parent": {"p50_seconds": 300e-6, "p99_seconds": 400e-6},
        "child": {"p50_seconds": 100e-6, "p99_seconds": 150e-6},
    }

    found = verdict(waiting, 1000)

    assert not found.fits
    assert getattr(corrected(waiting, found, result), key) == pytest.approx(asked)


def test_a_verdict_asks_for_every_limit() -> None:
    """Bytes too, which devices do not measure."""
    costs = {"p": (260e-6, 400e-6), "c": (90e-6, 100e-6)}
    waiting = waiting_with({"p50_seconds": 1e-4, "p99_seconds": 1e-4, "speedup": 2.5, "size_bytes": 1000}, costs)

    assert verdict(waiting, 1000).fits
    assert not verdict(waiting, 1001).fits
