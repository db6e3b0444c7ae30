"""What a step of graphs costs here: measured in the runtime that scores, while scoring always goes first.

Graphs take turns (`detectors.timing`) in a thread of their own, pinned to a core. A turn ends at once when points come,
is thrown away, and repeated when they have been answered; where they come often turns get shorter. A few graphs are
loaded at a time; the first one of the probe is loaded with each group of them, and times are told by their ratio to it,
so that groups measured at different moments compare.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnxruntime

from detectors.errors import PrunewatchError
from detectors.runtime import Runtime
from detectors.timing import Call, Times, counted, order, quantiles, stepping, turn, uncollected
from server.edge.conditions import readings
from server.releases import Probe

Condition = float | int | str
THREADS = 1
FEWEST_STEPS = 10
"""Of a turn, however often it was disturbed."""
PATIENCE = 3
"""Turns in a row that scoring may disturb until they get shorter."""
ENOUGH_TURNS = 3
"""Of a graph whose probe ended early; or all that were asked for."""


@dataclass(frozen=True)
class ProbeOutcome:
    """What came of a probe.

    Attributes:
        costs: p50 and p99 of a step in seconds by the graph's sha256, of those that could be measured.
        conditions: What explains them.
        problem: Why some or all are missing; empty: none is.
    """

    costs: dict[str, tuple[float, float]]
    conditions: dict[str, Condition]
    problem: str = ""


@dataclass(frozen=True)
class ProbeLimits:
    """What a probe may take of a device.

    Attributes:
        seconds: All of it, with the time in which scoring went first.
        at_once: Graphs that are loaded together, beside the reference.
        file_bytes: Of graphs that are loaded together.
        step_bytes: Of the points and the state of a step.
        turn_seconds: A turn, where nothing comes between.
        pause_seconds: Until it is looked again whether scoring has ended.
    """

    seconds: float = 900.0
    at_once: int = 7
    file_bytes: int = 16 << 20
    step_bytes: int = 16 << 20
    turn_seconds: float = 0.03
    pause_seconds: float = 0.01


@dataclass
class _Measured:
    """A graph that takes its turns."""

    sha256: str
    call: Call
    count: int
    turns: list[Times] = field(default_factory=list)


class Prober:
    """Measures graphs on this device.

    Args:
        busy: Whether scoring is under way; asked after every step.
        conditions: What is noted before and after.
        limits: What it may take.
        monotonic: Seconds that only ever pass.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        conditions: Callable[[], Mapping[str, Condition]] = readings,
        limits: ProbeLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy = busy
        self._conditions = conditions
        self._limits = limits or ProbeLimits()
        self._monotonic = monotonic
        self._one_at_a_time = asyncio.Lock()

    async def measure(self, probe: Probe, graphs: Mapping[str, bytes]) -> ProbeOutcome:
        """Measures the graphs of a probe; the event loop stays free.

        Args:
            probe: Verified. Its first graph is the reference.
            graphs: Bytes by sha256.

        Returns:
            Costs, or why there are none: what is wrong with a graph is no error.
        """
        async with self._one_at_a_time:
            run = _Run(probe, graphs, self._busy, self._limits, self._monotonic)
            before = dict(await asyncio.to_thread(self._conditions))
            with ThreadPoolExecutor(1, "probe") as thread:  # one: who makes a session flushes subnormals in it
                await self._through(run, thread)
            after = dict(await asyncio.to_thread(self._conditions))
            return ProbeOutcome(run.costs(), {**_both(before, after), **run.conditions()}, run.problem())

    async def _through(self, run: _Run, thread: ThreadPoolExecutor) -> None:
        """Slice by slice; who cancels waits for the one that is under way, some milliseconds."""
        loop, slices = asyncio.get_running_loop(), run.slices()
        while True:
            under_way = loop.run_in_executor(thread, next, slices, None)
            try:
                pause = await asyncio.shield(under_way)
            except asyncio.CancelledError:
                await asyncio.wait({under_way})
                slices.close()
                raise
            if pause is None:
                return
            await asyncio.sleep(pause)


class _Run:
    """One probe, cut into slices."""

    def __init__(
        self,
        probe: Probe,
        graphs: Mapping[str, bytes],
        busy: Callable[[], bool],
        limits: ProbeLimits,
        monotonic: Callable[[], float],
    ) -> None:
        self._probe, self._graphs, self._busy, self._limits = probe, graphs, busy, limits
        self._monotonic = monotonic
        self._began = monotonic()
        self._groups: list[list[_Measured]] = []
        """With the reference first in each."""
        self._problems: dict[str, str] = {}
        self._core = -1
        self._thrown_away = 0
        self._late = False

    def slices(self) -> Generator[float, None, None]:
        """Does the work, a few milliseconds at a time; yields how long to let others go first."""
        self._core = _pinned()
        reference, *others = dict.fromkeys(graph.sha256 for graph in self._probe.graphs)
        for names in self._grouped(others) or [[]]:
            group: list[_Measured] = []
            for sha256 in (reference, *names):
                loaded = self._load(sha256)
                yield 0.0
                if loaded is not None:
                    group.append(loaded)
                elif sha256 == reference:
                    return
            self._groups.append(group)
            yield from self._rounds(group)
            for it in group:
                it.call = _gone  # and with it the session
            if self._late:
                return

    def _grouped(self, names: Sequence[str]) -> list[list[str]]:
        """Graphs that are loaded together: few, and few bytes."""
        groups: list[list[str]] = []
        room = 0
        for name in names:
            size = len(self._graphs.get(name, b""))
            if not groups or len(groups[-1]) == self._limits.at_once or size > room:
                groups.append([])
                room = self._limits.file_bytes
            groups[-1].append(name)
            room -= size
        return groups

    def _load(self, sha256: str) -> _Measured | None:
        """A graph, warmed up; None, with a note, where it can not be run."""
        try:
            call = self._stepping(sha256)
            return _Measured(sha256, call, counted(call, self._limits.turn_seconds))
        except PrunewatchError as error:
            self._problems[sha256] = error.problem
        except Exception as error:  # noqa: BLE001  (the runtime's own exceptions share no public base class)
            self._problems[sha256] = f"a step of it fails ({type(error).__name__})."
        return None

    def _stepping(self, sha256: str) -> Call:
        graph = self._graphs.get(sha256)
        if graph is None:
            raise PrunewatchError("it was not fetched.")
        if hashlib.sha256(graph).hexdigest() != sha256:
            raise PrunewatchError("it is not what its name says.")
        if len(graph) > self._limits.file_bytes:
            raise PrunewatchError(f"it has {len(graph)} bytes; this device measures {self._limits.file_bytes}.")
        runtime = Runtime(graph, threads=THREADS)
        needed = self._probe.batch * (4 * runtime.stride * runtime.n_features + runtime.state_bytes)
        if needed > self._limits.step_bytes:
            raise PrunewatchError(f"a step of it takes {needed} bytes; this device measures {self._limits.step_bytes}.")
        return stepping(runtime, self._probe.batch)

    def _rounds(self, group: list[_Measured]) -> Iterator[float]:
        for number in range(self._probe.rounds):
            for i in order(len(group), number):
                yield from self._turn(group[i])
                if self._late:
                    return

    def _turn(self, measured: _Measured) -> Iterator[float]:
        """One turn that nothing disturbed."""
        disturbed = 0
        while not self._is_late():
            if self._busy():
                yield self._limits.pause_seconds
                continue
            with uncollected():
                taken = turn(measured.call, measured.count, self._busy)
            if taken is not None:
                measured.turns.append(taken)
                yield 0.0
                return
            self._thrown_away += 1
            disturbed += 1
            if disturbed % PATIENCE == 0:
                measured.count = max(measured.count // 2, FEWEST_STEPS)
            yield self._limits.pause_seconds

    def _is_late(self) -> bool:
        self._late = self._late or self._monotonic() - self._began > self._limits.seconds
        return self._late

    def costs(self) -> dict[str, tuple[float, float]]:
        """Of graphs that had turns enough, by their ratio to the reference of their group."""
        enough = min(ENOUGH_TURNS, self._probe.rounds)
        groups = [[it for it in group if len(it.turns) >= enough] for group in self._groups]
        groups = [group for group, whole in zip(groups, self._groups, strict=True) if group and group[0] is whole[0]]
        if not groups:
            return {}
        taken = {id(it): quantiles(it.turns) for group in groups for it in group}
        usual = float(np.median([taken[id(group[0])][0] for group in groups]))
        found: dict[str, tuple[float, float]] = {}
        for group in groups:
            scale = usual / taken[id(group[0])][0]
            for it in group[1:]:
                p50, p99 = taken[id(it)]
                found[it.sha256] = p50 * scale, p99 * scale
        late = [taken[id(group[0])][1] * usual / taken[id(group[0])][0] for group in groups]
        return {groups[0][0].sha256: (usual, float(np.median(late))), **found}

    def problem(self) -> str:
        """Why some or all figures are missing."""
        said = [f"graph {sha256[:12]}: {problem}" for sha256, problem in self._problems.items()]
        if self._late:
            said.append(
                f"{self._limits.seconds:g} s were not enough: {self._thrown_away} turns were thrown away because "
                "points came."
            )
        return " ".join(said[:5])

    def conditions(self) -> dict[str, Condition]:
        """What explains the figures, beside what was read."""
        rounds = min((len(it.turns) for group in self._groups for it in group), default=0)
        return {
            "threads": THREADS,
            "core": self._core,
            "rounds": rounds,
            "turns_thrown_away": self._thrown_away,
            "seconds": round(self._monotonic() - self._began, 3),
            "runtime": onnxruntime.__version__,
        }


def _pinned() -> int:
    """Keeps the calling thread on one core, the last that it may use; -1: the system can not."""
    with suppress(AttributeError, OSError):
        core = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        return core
    return -1


def _gone() -> None:
    raise RuntimeError("its turns are over")


def _both(before: Mapping[str, Condition], after: Mapping[str, Condition]) -> dict[str, Condition]:
    """Numbers as they were before and after, words as they are, both where they changed."""
    found: dict[str, Condition] = {}
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        if isinstance(was, str) or isinstance(now, str):
            found[name] = str(now) if was in (None, now) else f"{was}, then {now}"
            continue
        for when, value in (("before", was), ("after", now)):
            if value is not None:
                found[f"{name}_{when}"] = value
    return found
