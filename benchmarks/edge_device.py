"""An edge process as a device runs it: its bundle, its start, its memory."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import harness
import numpy as np
from scoring_client import free_ports

FEATURES, LAYERS, WIDTH = 38, 2, 32
DETECTOR = "machine"
FIT_POINTS, FIT_UPDATES = 1500, 60
"""Enough for a sound bundle: neither its size nor its speed depends on how well it has learned."""
START_SECONDS = 120.0
LOOK_SECONDS = 0.002
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def packed_bundle(folder: Path, kind: str = "lstm") -> Path:
    """What `prunewatch export` writes of a detector of 38 features, an LSTM 2x32, fitted to drawn points."""
    from detectors.archive import pack_bundle
    from detectors.bundle import Lineage, write_bundle
    from detectors.training.export import to_bundle
    from detectors.training.fit import FitOptions, fit
    from detectors.training.stretches import Stretches

    rows = harness.drawn(FIT_POINTS, 1, FEATURES, seed=2)[:, 0]
    names = [f"f{i + 1}" for i in range(FEATURES)]
    options = {"layers": LAYERS, "width": WIDTH} if kind == "lstm" else {}
    fitted = fit(kind, Stretches.of([rows]), names, seed=0, options=options, how=FitOptions(updates=FIT_UPDATES))
    lineage = Lineage(cause="fit", seed=0, data_rows=len(rows))
    bundle = to_bundle(fitted, detector=DETECTOR, version=1, device_class="device", lineage=lineage)
    write_bundle(bundle, folder / kind)
    pack_bundle(folder / kind, bundle.hash, folder / f"{kind}.tar")
    return folder / f"{kind}.tar"


def edge_command(bundle: Path, port: int, admin: int) -> list[str]:
    """The command line of an edge."""
    addresses = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    return [*harness.CLI, "edge", "--bundle", str(bundle), *addresses]


@contextmanager
def edge(bundle: Path, core: int, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """An edge on one core: its process, and its port, where nothing answers yet."""
    port, admin = free_ports(2)
    command = harness.pinned(core, edge_command(bundle, port, admin))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    with harness.running(command, log, environment) as process:
        yield process, port


def score(port: int, values: np.ndarray, series: Sequence[str], seconds: float = 30.0) -> np.ndarray:
    """Scores [N] of points [N, F], one of each series or all of one, over gRPC; NaN while warming up."""
    from prunewatch.v1 import scoring_pb2, scoring_pb2_grpc

    now = time.time_ns()
    stamps = range(now - len(values) + 1, now + 1) if len(series) == 1 else [now] * len(values)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = scoring_pb2.ScoreRequest(
            detector=f"detectors/{DETECTOR}",
            series=series,
            packed_values=np.ascontiguousarray(values, "<f4").tobytes(),
            n_features=values.shape[1],
            stamps=stamps,
            series_index=range(len(series)) if len(series) > 1 else (),
        )
        reply = scoring_pb2_grpc.ScoringServiceStub(channel).Score(request, timeout=seconds)
    return np.frombuffer(reply.packed_scores, "<f4")


def seconds_to_first_score(port: int, began: float, values: np.ndarray, problem: Path) -> float:
    """Seconds since `began` until the first score of an edge that is starting.

    Args:
        port: Of the edge.
        began: `time.monotonic()` when it was started.
        values: [N, F] of one series, enough to warm up: the last of them gets a score.
        problem: Its log, shown when it never answers.
    """
    while time.monotonic() - began < START_SECONDS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                scores = score(port, values, ["first"])
                assert np.isfinite(scores[-1])
                return time.monotonic() - began
        time.sleep(LOOK_SECONDS)
    raise harness.Skip(f"the edge never answered: {problem.read_text(errors='replace')[-500:]}")


def memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process now, and the most it ever had."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    return {name: 1024 * int(status[key].split()[0]) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def waiting_seconds(pid: int) -> float:
    """Time that the main thread of a process could have run in, but others had its core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("utf-8").split()[1]) / 1e9
