"""Damaged input by the million: the messages of every call, graphs, manifests, CSV and settings. `make fuzz` runs it.

`PRUNEWATCH_FUZZ` says how many inputs altogether (a million), `PRUNEWATCH_SEEDS` how many seeds share them; the seeds
and the counts are printed. Whatever comes in, the answer is one that was meant: a status, or an error of ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
from conftest import publish
from fits import SMALL
from google.protobuf.message_factory import GetMessageClass
from graphs import ewma_bundle
from test_graph_check import exported
from test_robustness import EXPECTED, FORBIDDEN, call, good_request, methods, mutated

from detectors.bundle import decode_manifest
from detectors.errors import PrunewatchError
from detectors.graph_check import check_graph
from server.app import Hub
from server.config import load_settings
from server.csv_input import read_csv
from server.statuses import UNEXPECTED

INPUTS = int(os.environ.get("PRUNEWATCH_FUZZ", "1000000"))
SEEDS = range(int(os.environ.get("PRUNEWATCH_SEEDS", "1")))
SHARES = {"calls": 0.3, "graph": 0.35, "manifest": 0.3, "csv": 0.04, "settings": 0.01}
"""Of the inputs; what takes longer gets fewer."""
AT_ONCE = 100
LASTING = ("Watch", "WatchCycles", "Connect", "WaitOperation", "ScoreStream", "ModelStreamInfer")
"""Calls that may wait until their time is over: one in fifty."""
LOCALLY = "Locally cancelled by application!"
"""What gRPC's client says of an upload that was answered while it was still writing: it has lost the answer."""
CSV = b"timestamp,flow,heat,label\n" + b"2026-01-01T00:00:00Z,1.5,2e3,0\n2026-01-01T00:00:01Z,,nan,yes\n" * 3
YAML = b"""listen: 127.0.0.1:8001
store: ./store
device_classes: {hub: {p99: 2ms, batch: 256}, pi4: {p99: 2ms, size: 200KiB}}
detectors:
  pump: {network: lstm, features: [flow, heat], schedule: {prune_every: 7d}, triggers: {drift: true}}
"""
Reader = Callable[[bytes], object]


def share(kind: str) -> int:
    """Inputs of a kind for one seed."""
    return int(INPUTS * SHARES[kind] / len(SEEDS))


def told(kind: str, seed: int, ends: Counter[str], began: float) -> None:
    """One line for the record."""
    seconds = time.monotonic() - began
    print(f"\nfuzz {kind}: seed {seed}, {ends.total()} inputs in {seconds:.0f} s: {dict(ends.most_common())}")


def from_file(read: Callable[[Path], object], path: Path) -> Reader:
    """A reader of bytes by way of a file."""

    def reader(raw: bytes) -> object:
        path.write_bytes(raw)
        return read(path)

    return reader


@pytest.mark.long
@pytest.mark.promise("I4")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["graph", "manifest", "csv", "settings"])
def test_damaged_files_are_read_or_refused(kind: str, seed: int, tmp_path: Path) -> None:
    """Each is taken or refused with an error of ours; nothing else is raised, none takes a second."""
    manifest = ewma_bundle("pump").manifest.model_dump_json().encode()
    sound: dict[str, list[bytes]] = {
        "graph": [exported(it) for it in SMALL],
        "manifest": [manifest, json.dumps(json.loads(manifest), indent=1).encode()],
        "csv": [CSV],
        "settings": [YAML],
    }
    readers: dict[str, Reader] = {
        "graph": lambda raw: check_graph(raw, 10_000),
        "manifest": lambda raw: decode_manifest(raw, tmp_path),
        "csv": from_file(read_csv, tmp_path / "points.csv"),
        "settings": from_file(load_settings, tmp_path / "settings.yaml"),
    }
    rng, ends, began, longest = random.Random(f"{kind} {seed}"), Counter[str](), time.monotonic(), 0.0
    for _ in range(share(kind)):
        raw = mutated(rng.choice(sound[kind]), rng)
        before = time.process_time()
        try:
            readers[kind](raw)
            ends["taken"] += 1
        except PrunewatchError as error:
            ends[type(error).__name__] += 1
        except Exception:
            (tmp_path / "culprit").write_bytes(raw)
            print(f"seed {seed}, input {ends.total()}: {raw[:2000]!r}")
            raise
        longest = max(longest, time.process_time() - before)
    told(kind, seed, ends, began)

    assert longest < 1
    assert len(ends) > 1, "some are taken, some refused"


@pytest.mark.long
@pytest.mark.promise("I4")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_damaged_messages_are_answered(hub: Hub, seed: int) -> None:
    """Messages of every call on a running hub: statuses that were meant, no words that were not, and it serves on."""
    await publish(hub, ewma_bundle("pump"))
    rng, ends, began = random.Random(f"calls {seed}"), Counter[str](), time.monotonic()
    every = methods()
    requests = {path: good_request(GetMessageClass(it.input_type)).SerializeToString() for path, it in every}
    quick = [it for it in every if not it[0].endswith(LASTING)]

    async def one(channel: grpc.aio.Channel) -> None:
        path, method = rng.choice(every if rng.random() < 0.02 else quick)
        raw = mutated(requests[path], rng)
        code, words = await call(channel, path, method, raw)
        if words.endswith(LOCALLY):
            ends["ended by the client"] += 1
            return
        assert code in EXPECTED | {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}, (
            path,
            raw,
            code,
            words,
        )
        assert UNEXPECTED not in words, (path, raw)
        assert not [it for it in (*FORBIDDEN, str(hub.store.root)) if it in words], (path, raw, words)
        ends[code.name] += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        while ends.total() < share("calls"):
            await asyncio.gather(*(one(channel) for _ in range(AT_ONCE)))
        with suppress(PrunewatchError):
            await hub.roster.create("pump", {})
        score = next(it for it in every if it[0].endswith("/GetDetector"))
        code, _ = await call(channel, *score, requests[score[0]])
    told("calls", seed, ends, began)

    assert code in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    assert ends["OK"]
    assert ends["INVALID_ARGUMENT"]
    assert ends["ended by the client"] < ends.total() / 100
