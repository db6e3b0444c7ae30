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
import json
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
import harness
import numpy as np
import scoring_client as client
import scoring_environments as environments
import scoring_windows as windows
from scoring_models import FEATURES, SERIES, Store
from scoring_report import Part, at_least, rate, table
from window_graphs import WINDOW, Weights

PROGRAMS = client.HERE / "peers"
SERVICE = "/benchmark.Windowed/Stream"
TARGETS = {"parent": 100.0, "child": 16.0}
CHECKED = 4  # messages of one point of each series whose answers are compared
TOLERANCE = 1e-3  # of errors near 1; runtimes multiply in other orders
START_SECONDS = 120.0


class Contender(Protocol):
    """Something that is asked to score."""

    async def seconds(self, messages: int) -> float:
        """Seconds that so many messages take, several on their way."""


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


@dataclass(frozen=True)
class Network:
    """A bundle as peers serve it.

    Attributes:
        weights: For torch (.npz).
        graph: For ONNX Runtime (.onnx), in the form that is quicker here.
        lstmad: Of the same sizes, fitted (.npz).
        widths: Hidden units.
        errors: What is right of points [T, B, F].
    """

    weights: Path
    graph: Path
    lstmad: Path
    widths: list[int]
    errors: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What all contenders are given.

    Attributes:
        folder: For logs and files of this run.
        core: Of the services.
        points: [T, B, F], sent to everyone; also in `points_file`.
        points_file: `points` as a file (.npy).
        networks: By name: `parent`, `child`.
        cache: Of environments.
        install: Make environments that are missing.
        start_seconds: Who does not answer by then is left out.
    """

    folder: Path
    core: int
    points: np.ndarray
    points_file: Path
    networks: Mapping[str, Network]
    cache: Path
    install: bool
    start_seconds: float = START_SECONDS


class Streamed:
    """A contender with a gRPC stream of raw messages."""

    def __init__(self, call: Any, message: Callable[[], list[bytes]]) -> None:
        self._call, self._message = call, message

    async def seconds(self, messages: int) -> float:
        """See `Contender`."""
        sent = self._message()
        many = [sent[k % len(sent)] for k in range(messages)]
        began = time.perf_counter()
        await client.pipelined(self._call, many)
        return time.perf_counter() - began


class Ours:
    """The hub, which wants new stamps in each message."""

    def __init__(self, call: Any, messages: client.Messages) -> None:
        self._call, self._messages = call, messages

    async def seconds(self, messages: int) -> float:
        """See `Contender`."""
        many = self._messages.stream(messages)
        began = time.perf_counter()
        answer = await client.pipelined(self._call, many)
        taken = time.perf_counter() - began
        client.require_scored(answer)
        return taken


class Ordered:
    """A client of the Open Inference Protocol in its own process and environment."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def order(self, **order: Any) -> Any:
        """What it answers.

        Raises:
            harness.Skip: it has given up.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        answer = await self._process.stdout.readline()
        if not answer:
            raise harness.Skip("its client got no answer: see its log")
        return json.loads(answer)

    async def seconds(self, messages: int) -> float:
        """See `Contender`."""
        return float(await self.order(messages=messages, in_flight=client.IN_FLIGHT))


@contextlib.asynccontextmanager
async def ours(setting: Setting, store: Store) -> AsyncIterator[Contender]:
    """The pruned child with carried state through ScoreStream."""
    (port,) = client.free_ports(1)
    async with client.hub(client.serve_command(store.config, port), port, setting.folder, setting.core) as side:
        messages = client.Messages(store.detector)
        await client.require_scores(side, messages, store.graphs["child"])
        call = side.stream()
        await client.one_by_one(call, [messages.opening()])
        yield Ours(call, messages)
        await call.done_writing()


@contextlib.asynccontextmanager
async def bare_echo(setting: Setting) -> AsyncIterator[Contender]:
    """The ceiling: messages of the same sizes, and nothing done."""
    async with client.echo(setting.folder, setting.core) as side:
        messages, call = client.Messages(), side.stream()
        await client.one_by_one(call, messages.stream(20))
        yield Streamed(call, lambda: messages.stream(64))
        await call.done_writing()


@contextlib.asynccontextmanager
async def plain(setting: Setting, network: Network, way: str) -> AsyncIterator[Contender]:
    """The window in torch, ONNX Runtime or PyOD behind a plain gRPC service."""
    (port,) = client.free_ports(1)
    file = {"torch": network.weights, "onnx": network.graph, "lstmad": network.lstmad}[way]
    command = [sys.executable, str(PROGRAMS / "window_service.py"), "--port", str(port), "--with", way]
    command += ["--file", str(file), "--shape", str(WINDOW), str(SERIES), str(FEATURES)]
    log = setting.folder / f"{way}-{network.graph.stem}.log"
    with harness.running(harness.pinned(setting.core, command), log):
        async with client.connected(port, setting.start_seconds, log) as channel:
            call = channel.stream_stream(SERVICE)()
            if way == "lstmad":
                points = np.ascontiguousarray(setting.points[:, 0])  # of one series
                sent = [points[k : k + SERIES].tobytes() for k in range(0, len(points) - SERIES + 1, SERIES)]
                await call.write(sent[0])
                found = np.frombuffer(await call.read(), np.float32)
                require_same(found, windows.lstmad_reference(network.lstmad, points[:SERIES]))
            else:
                sent = [row.tobytes() for row in setting.points]
                found = []
                for first, last in spans():
                    await call.write(setting.points[first:last].tobytes())
                    found.append(np.frombuffer(await call.read(), np.float32))
                require_right(np.array(found), setting, network)
            yield Streamed(call, lambda: sent)
            call.cancel()


@contextlib.asynccontextmanager
async def mlserver(setting: Setting, network: Network) -> AsyncIterator[Contender]:
    """A custom runtime of MLServer in its own environment."""
    home = environments.MLSERVER.folder(setting.cache, install=setting.install)
    folder = setting.folder / f"mlserver-{network.graph.stem}"
    folder.mkdir()
    for program in ("mlserver_runtime.py", "windowed.py"):
        shutil.copy(PROGRAMS / program, folder)
    grpc_port, http_port, metrics_port = client.free_ports(3)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "metrics_endpoint": None,  # it does not count: favours it
        "parallel_workers": 0,  # there is one core: handing each message to another process would cost it time
    }
    model = {
        "name": "windowed",
        "implementation": "mlserver_runtime.Windowed",
        "parameters": {"uri": str(network.graph), "extra": {"shape": [WINDOW, SERIES, FEATURES]}},
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    command = [str(home / "bin" / "mlserver"), "start", str(folder)]
    with harness.running(
        harness.pinned(setting.core, command), folder / "server.log", environments.variables(home, os.environ)
    ):
        async with open_inference(setting, network, home, f"127.0.0.1:{grpc_port}", folder / "client.log") as peer:
            yield peer


@contextlib.asynccontextmanager
async def triton(setting: Setting, network: Network) -> AsyncIterator[Contender]:
    """Triton with its Python backend, from the package of PyTriton."""
    home = environments.TRITON.folder(setting.cache, install=setting.install)
    server = environments.site_packages(home) / "pytriton" / "tritonserver"
    folder = setting.folder / f"triton-{network.graph.stem}"
    model = folder / "models" / "windowed"
    (model / "1").mkdir(parents=True)
    shutil.copy(PROGRAMS / "triton_model.py", model / "1" / "model.py")
    shutil.copy(PROGRAMS / "windowed.py", model / "1")
    shutil.copy(network.graph, model / "1" / "window.onnx")
    (model / "config.pbtxt").write_text(
        f'name: "windowed"\nbackend: "python"\nmax_batch_size: 0\n'
        f'input [{{name: "POINTS", data_type: TYPE_FP32, dims: [-1, {SERIES}, {FEATURES}]}}]\n'
        f'output [{{name: "ERRORS", data_type: TYPE_FP32, dims: [{SERIES}]}}]\n'
        f"instance_group [{{count: 1, kind: KIND_CPU}}]\n"
        f'parameters {{key: "shape", value: {{string_value: "{WINDOW} {SERIES} {FEATURES}"}}}}\n',
        encoding="utf-8",
    )
    shutil.copytree(server / "backends", folder / "backends")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(server / "python_backend_stubs" / python / "triton_python_backend_stub", folder / "backends" / "python")
    libraries = [str(environments.site_packages(home) / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    env = environments.variables(home, os.environ, LD_LIBRARY_PATH=":".join(libraries))
    (port,) = client.free_ports(1)
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(folder / "models")]
    command += ["--backend-directory", str(folder / "backends"), "--grpc-address", "127.0.0.1"]
    command += ["--grpc-port", str(port), "--allow-http", "false", "--allow-metrics", "false"]
    with harness.running(harness.pinned(setting.core, command), folder / "server.log", env):
        async with open_inference(setting, network, home, f"127.0.0.1:{port}", folder / "client.log") as peer:
            yield peer


@contextlib.asynccontextmanager
async def open_inference(
    setting: Setting, network: Network, home: Path, address: str, log: Path
) -> AsyncIterator[Contender]:
    """A client beside a server of the Open Inference Protocol, once its answers are right."""
    command = [str(PROGRAMS / "open_inference_client.py"), "--address", address, "--model", "windowed"]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            str(home / "bin" / "python"),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=out,
            env=environments.variables(home, os.environ),
            limit=1 << 20,
        )
    try:
        peer = Ordered(process)
        await asyncio.wait_for(peer.order(points=str(setting.points_file)), setting.start_seconds)
        found = np.array(await peer.order(score=spans()), np.float32)
        require_right(found, setting, network)
        yield peer
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def spans() -> list[tuple[int, int]]:
    """Points that are sent as a message each before the clock starts: one fills the windows, the others are checked."""
    return [(0, WINDOW), *((t, t + 1) for t in range(WINDOW, WINDOW + CHECKED))]


def require_right(found: np.ndarray, setting: Setting, network: Network) -> None:
    """Compares the answers to `spans` with the bundle's own step graph.

    Raises:
        harness.Skip: they are not the same; a peer that answers something else is not timed.
    """
    for answer, (_, last) in zip(found, spans(), strict=True):
        require_same(answer, network.errors(setting.points[last - WINDOW : last]))


def require_same(found: np.ndarray, right: np.ndarray) -> None:
    """Compares scores.

    Raises:
        harness.Skip: they are not the same.
    """
    if found.shape != right.shape or not np.allclose(found, right, rtol=TOLERANCE, atol=TOLERANCE):
        raise harness.Skip(f"its answers are wrong: {found[:3]} instead of {right[:3]}")


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
