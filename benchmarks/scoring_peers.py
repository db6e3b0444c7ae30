"""prunewatch with carried state against services that run the same network over the last 50 points again.

Everything listens at the same time on one core, and is asked turn by turn by clients on another: messages of one point
of 8 features for each of 256 series. Who serves windows keeps the last 50 points beside its model, so that no peer pays
for sending them: that favours the peers. Before anything is timed, each must answer what the published bundle's own
step graph says of the same 50 points from a fresh state.

  ORT, torch        the network over windows in a plain asynchronous gRPC service: bytes in, bytes out
  MLServer, Triton  the same in ONNX Runtime, as a custom runtime and as a model of the Python backend; `tritonclient`
  LSTMAD            PyOD's `decision_function` in the plain service; it takes one series, so a message holds 256
                    points of one: all their windows go through its network at once, which favours it
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
import scoring_client as client
import scoring_windows as windows
from scoring_contenders import START_SECONDS, Contender, Network, Setting, bare_echo, mlserver, ours, plain, triton
from scoring_models import FEATURES, SERIES, Store
from scoring_report import Part, at_least, rate, table
from window_graphs import WINDOW, Weights

TARGETS = {"parent": 100.0, "child": 16.0}


@dataclass(frozen=True)
class Plan:
    """Of one contender.

    Attributes:
        name: Who it is.
        serves: `parent` or `child`.
        start: Starts it, checks its answers, and ends it.
    """

    name: str
    serves: str
    start: Callable[[], contextlib.AbstractAsyncContextManager[Contender]]


@dataclass
class Times:
    """Of one contender.

    Attributes:
        rates: Points a second, one a round.
        skipped: Why it does not take part.
    """

    rates: list[float] = field(default_factory=list)
    skipped: str = ""

    @property
    def median(self) -> float:
        """Points a second."""
        return float(np.median(self.rates))


def prepared(store: Store, setting_folder: Path, points: np.ndarray, cache: Path) -> dict[str, Network]:
    """Writes what peers serve: the parent and the child over windows, and LSTMAD of their sizes."""
    networks = {}
    for name in TARGETS:
        graph = store.graphs[name]
        weights = Weights.read(graph)
        files = {ending: setting_folder / f"{name}.{ending}" for ending in ("npz", "onnx")}
        np.savez(files["npz"], **windows.torch_arrays(weights))
        _, drawn = windows.quicker_graph(weights, np.ascontiguousarray(points[:WINDOW]), repeats=5)
        files["onnx"].write_bytes(drawn)
        width = min(weights.widths)  # LSTMAD has one width for all layers; the smaller one favours it
        detector = cache / f"lstmad-{width}.npz"
        if not detector.is_file():
            harness.say(f"fitting PyOD's LSTMAD 2x{width} for one epoch")
            cache.mkdir(parents=True, exist_ok=True)
            windows.lstmad(detector, harness.drawn(2000, 1, FEATURES, seed=2)[:, 0], width)
        networks[name] = Network(files["npz"], files["onnx"], detector, weights.widths, windows.reference(graph))
    return networks


async def compare(plans: list[Plan], rounds: int, seconds: float) -> dict[tuple[str, str], Times]:
    """Starts all, checks all, and times all, turn by turn; who fails is left out from there on.

    Args:
        plans: Who takes part.
        rounds: How often each is timed.
        seconds: About how long each time.
    """
    found = {(plan.name, plan.serves): Times() for plan in plans}
    async with contextlib.AsyncExitStack() as stack:
        ready: dict[tuple[str, str], tuple[Contender, int]] = {}
        for plan in plans:
            key = (plan.name, plan.serves)
            harness.say(f"starting {plan.name}, {plan.serves}")
            with left_out(found[key], key):
                contender = await stack.enter_async_context(plan.start())
                each = await timed(contender, client.IN_FLIGHT) / client.IN_FLIGHT
                ready[key] = contender, max(client.IN_FLIGHT, math.ceil(seconds / each))
        for turn in range(rounds):
            harness.say(f"round {turn + 1} of {rounds}")
            for key in sorted(ready, reverse=turn % 2 == 1):
                contender, messages = ready[key]
                with left_out(found[key], key):
                    found[key].rates.append(messages * SERIES / await timed(contender, messages))
                if found[key].skipped:
                    del ready[key]
    return found


async def timed(contender: Contender, messages: int) -> float:
    """Seconds of so many messages; a contender that hangs raises TimeoutError."""
    return await asyncio.wait_for(contender.seconds(messages), START_SECONDS)


@contextlib.contextmanager
def left_out(times: Times, key: tuple[str, str]) -> Iterator[None]:
    """Notes why a contender can not take part, and goes on."""
    try:
        yield
    except (harness.Skip, TimeoutError, OSError, grpc.aio.AioRpcError) as reason:
        told = reason.details() if isinstance(reason, grpc.aio.AioRpcError) else str(reason)
        times.skipped = " ".join((told or f"it did not answer within {START_SECONDS:.0f} s").split())  # for a table
        times.rates.clear()
        harness.say(f"SKIPPED {', '.join(key)}: {times.skipped}")


async def run(store: Store, folder: Path, core: int, *, quick: bool, cache: Path, install: bool) -> Part:
    """Everything that serves, in one run.

    Args:
        store: With parent and child.
        folder: For files and logs of this run.
        core: Of the services; this process should be on another.
        quick: Fewer and shorter rounds.
        cache: Of environments and of LSTMAD.
        install: Make environments that are missing.
    """
    points = harness.drawn(WINDOW + 3 * SERIES, SERIES, FEATURES, seed=5)
    np.save(folder / "points.npy", points)
    networks = prepared(store, folder, points, cache)
    setting = Setting(folder, core, points, folder / "points.npy", networks, cache, install)
    plans = [
        Plan("echo", "nothing", lambda: bare_echo(setting)),
        Plan("prunewatch", "child, carried", lambda: ours(setting, store)),
    ]
    starts = {
        "PyOD LSTMAD": lambda network: plain(setting, network, "lstmad"),
        "torch": lambda network: plain(setting, network, "torch"),
        "ONNX Runtime": lambda network: plain(setting, network, "onnx"),
        "MLServer": lambda network: mlserver(setting, network),
        "Triton": lambda network: triton(setting, network),
    }
    for serves, network in networks.items():
        plans += [Plan(who, serves, lambda start=start, it=network: start(it)) for who, start in starts.items()]
    found = await compare(plans, rounds=3 if quick else 9, seconds=0.4 if quick else 2.0)
    return _part(found, networks, store.units)


def _part(found: dict[tuple[str, str], Times], networks: dict[str, Network], units: str) -> Part:
    own, echo = found["prunewatch", "child, carried"], found["echo", "nothing"]
    for times in (own, echo):
        if times.skipped:
            sys.exit(f"there is nothing to compare with: {times.skipped}")
    figures: dict[str, Any] = {
        "prunewatch_points_per_second": own.median,
        "echo_points_per_second": echo.median,
        "rounds": len(own.rates),
        "child_units": units,
        "peers": {},
    }
    ratios = {"pruned_points_vs_echo_pipelined": own.median / echo.median}
    rows = [["echo: nothing is done", "", rate(echo.median), f"{own.median / echo.median:.2f}", ""]]
    rows.append([f"**prunewatch**, pruned child {units}, carried state", "1", rate(own.median), "", ""])
    for serves, network in networks.items():
        peers = {name: times for (name, what), times in found.items() if what == serves}
        timed = {name: times.median for name, times in peers.items() if times.rates}
        best = max(timed, key=timed.__getitem__)
        sizes = "-".join(map(str, network.widths))
        ratio = ratios[f"points_vs_windowed_{serves}"] = own.median / timed[best]
        for name, times in sorted(peers.items(), key=lambda it: -timed.get(it[0], 0)):
            size = sizes if name != "PyOD LSTMAD" else f"2x{min(network.widths)}"
            label = f"{name}, {serves} {size} over windows"
            if times.skipped:
                rows.append([label, "50", "skipped", "", times.skipped])
                continue
            target = at_least(ratio, TARGETS[serves], "x") if name == best else ""
            rows.append([label, "50", rate(times.median), f"{own.median / times.median:.1f}", target])
        figures["peers"][serves] = {
            "fastest": best,
            "points_per_second": timed,
            "skipped": {name: times.skipped for name, times in peers.items() if times.skipped},
        }
    heads = ["one core serves", "steps a point", "points/s", "prunewatch / this", "target, against the fastest"]
    return Part("Carried state against windows, behind gRPC", figures, ratios, table(heads, rows))
