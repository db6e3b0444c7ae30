"""Everyone who takes part in the comparison of `scoring_peers.py`: how each is started, checked, asked and ended.

Each is a context manager: inside it the service listens on the core of the services and has given the right answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import harness
import numpy as np
import scoring_client as client
import scoring_environments as environments
import scoring_windows as windows
from scoring_models import FEATURES, SERIES, Store
from window_graphs import WINDOW

PROGRAMS = client.HERE / "peers"
SERVICE = "/benchmark.Windowed/Stream"
CHECKED = 4  # messages of one point of each series whose answers are compared
TOLERANCE = 1e-3  # of errors near 1; runtimes multiply in other orders
START_SECONDS = 120.0


class Contender(Protocol):
    """Something that is asked to score."""

    async def seconds(self, messages: int) -> float:
        """Seconds that so many messages take, several on their way."""


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
