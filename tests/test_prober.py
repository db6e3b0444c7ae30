"""What graphs cost on a device: measured in the real runtime, behind scoring, in bounded time and memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from graphs import ewma_graph

from server.edge.conditions import readings
from server.edge.prober import ProbeLimits, ProbeOutcome, Prober
from server.releases import Probe, ProbeGraph

QUICK = ProbeLimits(turn_seconds=0.001, pause_seconds=0.001)
QUICK_GRAPH, SLOW_GRAPH = ewma_graph(2), ewma_graph(2, wasted=8)


def sha(graph: bytes) -> str:
    """Its name."""
    return hashlib.sha256(graph).hexdigest()


def probe_of(*graphs: bytes, batch: int = 4, rounds: int = 3) -> Probe:
    """A probe of graphs, the first one the reference."""
    return Probe(
        id="0" * 16,
        device_class="pi4",
        batch=batch,
        rounds=rounds,
        graphs=[ProbeGraph(sha256=sha(graph), bytes=max(len(graph), 1)) for graph in graphs],
        issued=0,
        expires=1,
    )


async def measured(*graphs: bytes, prober: Prober | None = None, batch: int = 4, rounds: int = 3) -> ProbeOutcome:
    """What comes of it where nothing is scored."""
    prober = prober or Prober(lambda: False, limits=QUICK)
    return await prober.measure(probe_of(*graphs, batch=batch, rounds=rounds), {sha(it): it for it in graphs})


async def test_a_slow_graph_costs_more_than_a_quick_one() -> None:
    """Every graph has a p50 and a p99 in seconds, in the order that they really have."""
    outcome = await measured(QUICK_GRAPH, SLOW_GRAPH)

    assert outcome.problem == ""
    assert outcome.costs.keys() == {sha(QUICK_GRAPH), sha(SLOW_GRAPH)}
    assert outcome.costs[sha(SLOW_GRAPH)][0] > 3 * outcome.costs[sha(QUICK_GRAPH)][0]
    assert all(0 < p50 <= p99 < 1 for p50, p99 in outcome.costs.values())


async def test_groups_of_graphs_compare_over_the_reference() -> None:
    """Where two graphs fit into memory at a time, each of twelve is measured beside the reference, none is left out."""
    graphs = [ewma_graph(2, alpha=0.01 * i) for i in range(1, 12)]
    limits = ProbeLimits(turn_seconds=0.001, at_once=2)

    outcome = await measured(SLOW_GRAPH, *graphs, prober=Prober(lambda: False, limits=limits))

    assert outcome.problem == ""
    assert outcome.costs.keys() == {sha(it) for it in (SLOW_GRAPH, *graphs)}
    assert max(outcome.costs[sha(it)][0] for it in graphs) < outcome.costs[sha(SLOW_GRAPH)][0]


async def test_what_explains_the_figures_is_noted() -> None:
    """Threads, core, rounds, runtime; temperature before and after, the governor; nothing that can not be sent."""
    warm = iter((40.0, 55.0))
    prober = Prober(
        lambda: False,
        conditions=lambda: {"temperature_celsius": next(warm), "governor": "powersave"},
        limits=QUICK,
    )

    outcome = await measured(QUICK_GRAPH, prober=prober)

    assert outcome.conditions["temperature_celsius_before"] == 40.0
    assert outcome.conditions["temperature_celsius_after"] == 55.0
    assert outcome.conditions["governor"] == "powersave"
    assert (outcome.conditions["threads"], outcome.conditions["rounds"]) == (1, 3)
    assert outcome.conditions["core"] in {-1, *range(os.cpu_count() or 1)}
    assert outcome.conditions["runtime"]


def test_conditions_come_from_the_system(tmp_path: Path) -> None:
    """The hottest zone and the governor, as Linux shows them; a system without them has neither."""
    for zone, text in enumerate(("41000\n", "56500\n", "not a number")):
        path = tmp_path / f"sys/class/thermal/thermal_zone{zone}/temp"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("ondemand\n")

    found = readings(tmp_path)

    assert (found["temperature_celsius"], found["governor"]) == (56.5, "ondemand")
    assert readings(tmp_path / "nothing").keys() <= {"load"}


class Scoring:
    """A device that scores for some of the questions whether it does."""

    def __init__(self, busy: set[int]) -> None:
        self.asked, self._busy = 0, busy

    def __call__(self) -> bool:
        """Whether it does now."""
        self.asked += 1
        return self.asked in self._busy


async def test_turns_that_scoring_disturbs_are_repeated() -> None:
    """They are thrown away, and counted; every graph has its rounds all the same."""
    scoring = Scoring({5, 20, 21, 22, 40, 90})

    outcome = await measured(QUICK_GRAPH, SLOW_GRAPH, prober=Prober(scoring, limits=QUICK))

    assert outcome.problem == ""
    assert 1 <= outcome.conditions["turns_thrown_away"] <= 6
    assert (outcome.conditions["rounds"], len(outcome.costs)) == (3, 2)


async def test_scoring_that_comes_often_gets_shorter_turns() -> None:
    """Points every fifteen steps leave turns of ten."""
    scoring = Scoring(set(range(0, 100_000, 15)))

    outcome = await measured(QUICK_GRAPH, prober=Prober(scoring, limits=QUICK))

    assert outcome.problem == ""
    assert sha(QUICK_GRAPH) in outcome.costs


async def test_a_device_that_only_scores_says_so_in_time() -> None:
    """It ends at the limit, with no figures and with the reason."""
    limits = ProbeLimits(seconds=0.2, turn_seconds=0.001, pause_seconds=0.001)

    outcome = await asyncio.wait_for(measured(QUICK_GRAPH, prober=Prober(lambda: True, limits=limits)), 20)

    assert outcome.costs == {}
    assert "0.2 s were not enough" in outcome.problem


TOO_LARGE = ewma_graph(70_000)


@pytest.mark.parametrize(
    ("graph", "batch", "problem"),
    [
        (b"no graph", 4, "this is no step graph"),
        (TOO_LARGE, 4096, "a step of it takes"),
        (SLOW_GRAPH + bytes(17 << 20), 4, "bytes; this device measures"),
    ],
    ids=["garbage", "a step too large", "a file too large"],
)
async def test_what_is_wrong_with_a_graph_is_told(graph: bytes, batch: int, problem: str) -> None:
    """The others are measured; nothing fails, and nothing is allocated for it."""
    outcome = await measured(QUICK_GRAPH, graph, batch=batch)

    assert outcome.costs.keys() == {sha(QUICK_GRAPH)}
    assert problem in outcome.problem
    assert sha(graph)[:12] in outcome.problem


async def test_without_its_reference_a_probe_says_nothing() -> None:
    """Ratios to it are what groups compare by."""
    outcome = await measured(b"no graph", QUICK_GRAPH)

    assert outcome.costs == {}
    assert sha(b"no graph")[:12] in outcome.problem


async def test_bytes_of_another_graph_are_not_measured() -> None:
    """What is loaded is what the probe names, or nothing."""
    prober = Prober(lambda: False, limits=QUICK)

    swapped = await prober.measure(
        probe_of(QUICK_GRAPH, SLOW_GRAPH), {sha(QUICK_GRAPH): QUICK_GRAPH, sha(SLOW_GRAPH): QUICK_GRAPH}
    )
    missing = await prober.measure(probe_of(QUICK_GRAPH, SLOW_GRAPH), {sha(QUICK_GRAPH): QUICK_GRAPH})

    assert "not what its name says" in swapped.problem
    assert "was not fetched" in missing.problem
    assert swapped.costs.keys() == missing.costs.keys() == {sha(QUICK_GRAPH)}


async def test_the_event_loop_stays_free_and_the_process_unpinned() -> None:
    """Others run between slices; only the measuring thread is pinned, and it is gone afterwards."""
    ticks, before = 0, os.sched_getaffinity(0)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await measured(QUICK_GRAPH, SLOW_GRAPH)
    ticking.cancel()

    assert ticks > 6  # there are six turns
    assert os.sched_getaffinity(0) == before
    assert not [it for it in threading.enumerate() if it.name.startswith("probe")]


async def test_a_probe_can_be_given_up() -> None:
    """Whoever cancels it is not kept waiting, and the next one is measured."""
    prober = Prober(lambda: False, limits=ProbeLimits(turn_seconds=0.002))
    long = asyncio.create_task(measured(QUICK_GRAPH, SLOW_GRAPH, prober=prober, rounds=100))
    await asyncio.sleep(0.05)

    long.cancel()
    ended = await asyncio.gather(long, return_exceptions=True)

    assert isinstance(ended[0], asyncio.CancelledError)
    assert (await measured(QUICK_GRAPH, prober=prober)).problem == ""


def test_a_device_measures_without_a_training_framework() -> None:
    """Neither torch nor pandas nor what the search needs is imported."""
    source = (
        "import sys, server.edge.prober\n"
        "print(sorted({'torch', 'pandas', 'pyarrow', 'matplotlib', 'sqlalchemy', 'onnx', 'pruning.table'}"
        " & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"
