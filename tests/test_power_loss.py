"""Power loss at any call that changes a file or a name: the store opens, and what was promised is there."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fits import fitted, machine
from graphs import ewma_bundle
from quick_trainer import facts
from recording import Call, Recording, recorded, remove

from detectors.bundle import Bundle, fsync_folder, write_bundle, write_durably
from detectors.errors import CorruptBundleError
from detectors.training.stretches import Stretches
from pruning.frontier_facts import FrontierFacts
from pruning.outcome import Sized
from pruning.parent_gate import Golden
from server.config import DetectorConfig
from server.frontiers import write_frontier
from server.golden import inherit_golden, read_golden, write_golden
from server.history import History
from server.publish import publish_cycle, publish_fit
from server.reservoir import is_reservoir
from server.store import Store

SEEDS = int(os.environ.get("PRUNEWATCH_SEEDS", "1"))
DRAWN = 3
"""Images of each moment that chance makes, beside the one without all that was not fsynced."""
CONFIG = DetectorConfig(
    features=["f1", "f2"], history={"max_rows": 500, "reservoir_rows": 100}, versions={"keep": 1}
).model_dump(mode="json")


@dataclass(frozen=True)
class Promised:
    """What somebody was told that it is durable.

    Attributes:
        version: That serves; 0: none.
        points: Stamps of points that were flushed.
        golden: Parents with a golden set.
    """

    version: int = 0
    points: frozenset[int] = frozenset()
    golden: frozenset[str] = frozenset()


class Work:
    """A store at work, as the service does it, step after step."""

    def __init__(self, store: Store, recording: Recording) -> None:
        self.store = store
        self.recording = recording
        self.promised = Promised()
        store.catalog.create_detector("pump", CONFIG, ["f1", "f2"])
        self.history: History = store.history("pump")
        self.stamp = 0

    def told(self, **changes: Any) -> None:
        """Somebody is told."""
        self.promised = replace(self.promised, **changes)
        self.recording.note = self.promised

    def fit(self) -> None:
        """A new parent serves."""
        version = self.store.catalog.next_version("pump")
        parent = self._made(version, "parent")
        publish_fit(self.store, "pump", {"outcome": "adopted", "parent": facts(parent), "rows": 100})
        self.told(version=version)

    def cycle(self) -> None:
        """A child of the newest parent serves."""
        catalog = self.store.catalog
        cycle = catalog.begin_cycle("pump", "hub", "manual")
        version = catalog.next_version("pump")
        parent = self.store.read_bundle(catalog.versions("pump")[-1].parent_hash)
        made = {"parent": facts(parent), "child": facts(self._made(version, "hub")), "outcome": "adopted"}
        publish_cycle(self.store, "pump", "hub", made, cycle=cycle)
        self.told(version=version)

    def roll_back(self) -> None:
        """The version before serves."""
        self.told(version=self.store.catalog.rollback("pump", "hub").version)

    def stream(self, n: int) -> None:
        """Points become durable; old ones go."""
        stamps = np.arange(self.stamp, self.stamp + n)
        self.stamp += n
        values = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
        self.history.append(["a"] * n, stamps, values, np.zeros(n, np.float32), np.zeros(n, np.bool_))
        began, calls = len(self.recording.calls), self.recording.calls
        self.history.flush()
        kept = {stamp for path in self.history.paths() for stamp in pq.read_table(path)["stamp"].to_pylist()}
        still = replace(self.promised, points=self.promised.points & kept)  # others were meant to go meanwhile
        calls[began:] = [replace(call, note=still) for call in calls[began:]]
        self.promised = still
        self.told(points=frozenset(still.points | (kept & set(stamps.tolist()))))

    def frontier(self) -> None:
        """Children for budgets to come."""
        parent = self.store.catalog.versions("pump")[-1].parent_hash
        known = Sized(**facts(self.store.read_bundle(parent)))
        write_frontier(self.store.root, parent, FrontierFacts(64, known, (), "l2", 0), [], 1.0)

    def golden(self) -> None:
        """What later parents are judged by: kept for the first, inherited by the others."""
        root, parent = self.store.root, self.store.catalog.versions("pump")[-1].parent_hash
        if not self.promised.golden:
            write_golden(root, "pump", parent, Golden(fitted("isolation_forest"), Stretches.of([machine(200)]), seed=0))
        for before in self.promised.golden:
            inherit_golden(root, "pump", before, parent)
        self.told(golden=self.promised.golden | {parent})

    def _made(self, version: int, device_class: str) -> Bundle:
        bundle = ewma_bundle("pump", version, gain=1.0 + version, device_class=device_class)
        write_bundle(bundle, self.store.bundle_folder(bundle.hash))
        return bundle


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A life of a store."""
    return lived(tmp_path_factory.mktemp("recorded"))


def lived(root: Path) -> Recording:
    """The life of a store in the folder `root`, from its making to a second opening."""
    with recorded(root) as recording:
        recording.note = Promised()
        with Store.open(root) as store:
            work = Work(store, recording)
            work.fit()
            work.stream(120)
            work.cycle()
            work.roll_back()
            work.frontier()
            work.golden()
            for n in (60, 200, 40, 250, 10):
                work.stream(n)
            work.fit()
            work.golden()
            work.cycle()
        Store.open(root).close()
    return recording


def problems(image: Path, promised: Promised) -> list[str]:
    """What is not as it was promised."""
    found = []
    with Store.open(image) as store:
        for bundle_hash in store.catalog.named_bundles():
            try:
                store.read_bundle(bundle_hash, weights=True)
            except CorruptBundleError as error:
                found.append(f"bundle: {error}")
        if promised.version:
            serving = store.catalog.serving("pump", "hub")
            if serving is None or serving.version < promised.version - 1:
                found.append(f"{serving} serves, not {promised.version}")
        found += ["no golden set" for it in promised.golden if read_golden(image, "pump", it) is None]
        if store.catalog.list_detectors():
            history = store.history("pump")
            stamps = [stamp for path in history.paths() for stamp in pq.read_table(path)["stamp"].to_pylist()]
            fresh = [
                stamp
                for path in history.paths()
                if not is_reservoir(path)
                for stamp in pq.read_table(path)["stamp"].to_pylist()
            ]
            if len(set(fresh)) != len(fresh):
                found.append("points are there twice")
            if promised.points - set(stamps):
                found.append(f"{len(promised.points - set(stamps))} points are lost")
            path = store.root / "detectors" / "pump.json"
            json.loads(path.read_bytes())
    return found


def shown(call: Call) -> str:
    """Where the power went."""
    return f"before {call.kind} {call.source and call.source + ' -> '}{call.path}"


CARELESS = {
    "detectors.bundle.write_durably": Path.write_bytes,
    "server.segments.fsync_folder": lambda _folder: None,
    "server.golden.make_folder": lambda folder: folder.mkdir(parents=True, exist_ok=True),
}
"""What a store might do in the place of what it does."""


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is such a disk: hundreds of stores are opened in it."""
    memory = Path("/dev/shm")
    folder = Path(mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield folder
    remove(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.promise("R2")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_power_loss_what_was_promised_is_there(recording: Recording, fast: Path, seed: int) -> None:
    """Whatever part of what was not fsynced is dropped, torn or reordered: every published bundle is whole."""
    rng = random.Random(seed)
    for at, call in enumerate(recording.calls):
        if at == 0:
            continue
        for chance in (None, *(rng,) * DRAWN):
            image = fast / "image"
            recording.image(at, image, chance)
            assert problems(image, call.note) == [], (seed, at, shown(call))
            remove(image)


def test_the_recording_sees_every_kind_of_call(recording: Recording) -> None:
    """A layer that sees nothing would find nothing: each file of a bundle, and its way into its place."""
    calls = [(call.kind, call.path, call.source) for call in recording.calls]
    bundles = {path for kind, path, source in calls if kind == "rename" and path.startswith("bundles/")}

    assert len(calls) > 100
    assert {kind for kind, _, _ in calls} == {"create", "mkdir", "rename", "link", "remove", "fsync", "end"}
    assert len(bundles) == 4
    for kind, path, source in calls:
        if kind == "rename" and path in bundles:
            synced = {it for other, it, _ in calls[: calls.index((kind, path, source))] if other == "fsync"}
            assert {source, f"{source}/manifest.json", f"{source}/step.onnx"} <= synced


@pytest.mark.slow
@pytest.mark.parametrize("careless", CARELESS)
def test_a_store_that_spares_an_fsync_is_found_out(
    tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch, careless: str
) -> None:
    """Of the files of a bundle, of the folder of a history, or of one that was made for a golden set."""
    monkeypatch.setattr(careless, CARELESS[careless])
    recording = lived(tmp_path)
    monkeypatch.undo()

    found = []
    for at, call in enumerate(recording.calls[1:], 1):
        recording.image(at, fast / "image", None)
        found += problems(fast / "image", call.note)
        remove(fast / "image")

    assert found


@pytest.mark.parametrize("durable", [True, False])
def test_the_recording_loses_what_was_not_made_durable(tmp_path: Path, durable: bool) -> None:
    """A file that is fsynced, with its folder, survives every power loss; another one not every one."""
    root, image = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    with recorded(root) as recording:
        if durable:
            write_durably(root / "partial", b"content")
        else:
            (root / "partial").write_bytes(b"content")
        (root / "partial").rename(root / "file")
        if durable:
            fsync_folder(root)

    rng, left = random.Random(0), set()
    for _ in range(50):
        recording.image(len(recording.calls) - 1, image, rng)
        left |= {(path.name, path.read_bytes()) for path in image.iterdir()} or {("", b"")}
        remove(image)

    assert (left == {("file", b"content")}) == durable
    assert ("file", b"content") in left
