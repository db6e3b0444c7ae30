"""kill -9 at every named step: what is served afterwards is one whole published version."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import bundle_facts
from crash_checks import check, check_replies
from crashing import FEATURES, NAME, DiedError, Memory, Node, connected, drive
from graphs import ewma_bundle

from detectors.bundle import write_bundle
from detectors.errors import PreconditionError
from detectors.failpoints import STEPS, VARIABLE
from prunewatch.client import ServiceError
from server.config import DetectorConfig
from server.layout import CATALOG, QUARANTINE
from server.publish import publish_fit
from server.store import Store

GENEROUS = {"error_ratio": 20.0, "alarm_jaccard": 0.0, "tail_agreement": -1.0, "injected_drop": 1.0}
SEEDS = int(os.environ.get("PRUNEWATCH_SEEDS", "1"))
READY_SECONDS = 5.0
DRIVES = 3
"""A step that is not reached in so many is never reached."""
OFTEN = {"catalog": 30, "file": 6, "folder": 6, "history": 3, "change": 4, "detector_file": 6, "swap": 4}
"""Steps of these are passed so often in a drive that any of the first passes may be drawn."""
WITH_A_BAD_VERSION = {"probation"}
AT_THE_START = {"file", "folder", "catalog", "detector_file", "store", "swap"}
"""Steps of these are passed by every start."""
REAL_TRAINER_ONLY = {"golden.before_rename", "table.before_rename"}
OFFLINE = {"backup.before_rename", "restore.before_catalog", "rebuild.before_rename"}
ON_A_DEVICE = {step for step in STEPS if step.partition(".")[0] in {"trust", "download", "slot"}}
"""See `test_edge_crash.py`."""
OF_DEVICES = {
    "reports.kept",
    "field.kept",
    "candidate.asked",
    "candidate.adopted",
}  # test_fleet_links, test_field_points, test_measuring
ELSEWHERE = REAL_TRAINER_ONLY | OFFLINE | OF_DEVICES | ON_A_DEVICE
IN_THE_TRAINER = ("trainer.trained", *sorted(REAL_TRAINER_ONLY))
SMALL = {"features": FEATURES, "options": {"layers": 1, "width": 8}, "gate": GENEROUS}


class Chain:
    """One store that is killed again and again."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder / "store", folder / "log.txt")
        self.memory = Memory()

    def restart(self, following: str) -> None:
        """Starts the hub after a crash; it must hold its promises. It is armed for what is to come, to save a start."""
        self.node.start(following)
        asyncio.run(check(self.node, self.memory))

    def crash(self, step: str, passes: int, seed: int) -> str:
        """Has the hub or its trainer die at a step; says which of them did, and where none did, nothing."""
        misbehave = step.partition(".")[0] in WITH_A_BAD_VERSION
        if not self.node.is_alive or self.node.armed != f"{step}:{passes}":
            self.node.kill()
            try:
                self.node.start(f"{step}:{passes}")
            except DiedError:
                return "hub"
        for turn in range(DRIVES):
            rng = random.Random(f"{step} {seed} {turn}")
            if died := asyncio.run(drive(self.node, self.memory, rng, misbehave=misbehave)):
                if died == "hub":
                    assert self.node.wait_dead()
                self.node.kill()
                return died
        return ""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A hub with the quick trainer; killed at the end, when it has to show that all replies were right."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    yield chain
    chain.node.kill()
    versions = check_replies(chain.node, chain.memory)
    assert versions > 10 or chain.memory.drives < len(CASES) / 2, "hardly any reply was looked at"


def draws(seed: int) -> list[tuple[str, int]]:
    """Each step with the pass at which to die."""
    rng = random.Random(seed)
    return [(step, rng.randint(1, OFTEN.get(step.split(".")[0], 1))) for step in STEPS if step not in ELSEWHERE]


CASES = [(seed, *drawn) for seed in range(SEEDS) for drawn in draws(seed)]
FOLLOWING = {CASES[i]: f"{step}:{passes}" for i, (_, step, passes) in enumerate(CASES[1:])}


def following(case: tuple[int, str, int]) -> str:
    """What the hub is armed for after a case; nothing where it would die before it could be looked at."""
    step = FOLLOWING.get(case, "")
    return "" if step.split(".")[0] in AT_THE_START else step


@pytest.mark.slow
@pytest.mark.promise("R1")
@pytest.mark.parametrize(("seed", "step", "passes"), CASES)
def test_after_a_crash_one_whole_version_serves(chain: Chain, seed: int, step: str, passes: int) -> None:
    """It is back in five seconds; golden inputs give its scores to the bit, and nothing is said to run any more."""
    died = chain.crash(step, passes, seed)
    chain.restart(following((seed, step, passes)))

    assert died, f"{step} was not reached {passes} times"
    assert chain.node.seconds < READY_SECONDS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A hub with the real trainer and a small network."""
    folder = tmp_path_factory.mktemp("trained")
    chain = Chain(folder)
    chain.node = Node(folder / "store", folder / "log.txt", trainer=None, detectors={NAME: SMALL})
    yield chain
    chain.node.kill()


async def asks(node: Node, *, prune: bool) -> None:
    """A fit, or a fit and a cycle."""
    values = np.random.default_rng(0).normal(size=(300, len(FEATURES)))
    async with connected(node) as client:
        stamps = np.arange(len(values))
        await client.wait_operation(await client.fit_upload(NAME, features=FEATURES, stamps=stamps, values=values))
        if prune:
            await client.wait_operation(await client.prune(NAME, speedup=1.01))


@pytest.mark.slow
@pytest.mark.promise("R1")
@pytest.mark.parametrize("step", IN_THE_TRAINER)
def test_after_a_crash_of_the_real_trainer_all_is_as_before(trained: Chain, step: str) -> None:
    """Its operation says so and the hub goes on; after another start the same can be asked for again."""
    trained.node.kill()
    trained.node.start(step)

    with pytest.raises(ServiceError, match="exit code -9"):
        asyncio.run(asks(trained.node, prune=step == "table.before_rename"))
    if step == "table.before_rename":
        trained.memory.allowed = {1}
    asyncio.run(check(trained.node, trained.memory))
    trained.node.kill()
    trained.restart("")
    if step == IN_THE_TRAINER[-1]:
        asyncio.run(asks(trained.node, prune=False))


def command(step: str, *arguments: str) -> int:
    """How `prunewatch` ends that is to die at a step."""
    code = [sys.executable, "-c", "from server.cli import main; main()", *arguments]
    return subprocess.run(code, env={**os.environ, VARIABLE: step}, capture_output=True, check=False).returncode


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that nobody has open, with two versions."""
    root = tmp_path / "store"
    with Store.open(root) as opened:
        opened.catalog.create_detector(NAME, DetectorConfig().model_dump(mode="json"))
        for version in (1, 2):
            bundle = ewma_bundle(NAME, version)
            write_bundle(bundle, opened.bundle_folder(bundle.hash))
            publish_fit(opened, NAME, {"parent": bundle_facts(bundle)})
    return root


def served(root: Path) -> int:
    """The version that a store serves, whose bundle can be read."""
    with Store.open(root, create=False) as opened:
        serving = opened.catalog.serving(NAME, "hub")
        assert serving is not None
        opened.read_bundle(serving.bundle_hash)
        return serving.version


@pytest.mark.slow
@pytest.mark.promise("R1")
def test_a_backup_that_was_killed_is_none(store: Path, tmp_path: Path) -> None:
    """Nothing has its name, and the next one is whole."""
    arguments = ("backup", "--store", str(store), "--to", str(tmp_path / "backup.tar"))

    killed = command("backup.before_rename", *arguments)
    left = (tmp_path / "backup.tar").exists()

    assert (killed, left) == (-signal.SIGKILL, False)
    assert command("", *arguments) == 0
    assert command("", "restore", str(tmp_path / "backup.tar"), "--store", str(tmp_path / "other")) == 0
    assert served(tmp_path / "other") == 2


@pytest.mark.slow
@pytest.mark.promise("R1")
def test_a_store_whose_restoring_was_killed_is_not_opened(store: Path, tmp_path: Path) -> None:
    """It has no catalog, and says what to do."""
    assert command("", "backup", "--store", str(store), "--to", str(tmp_path / "backup.tar")) == 0

    killed = command(
        "restore.before_catalog", "restore", str(tmp_path / "backup.tar"), "--store", str(tmp_path / "other")
    )

    assert killed == -signal.SIGKILL
    with pytest.raises(PreconditionError, match="Restore a backup"):
        Store.open(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.promise("R1")
def test_a_catalog_whose_rebuilding_was_killed_can_be_rebuilt(store: Path) -> None:
    """What served serves again; the damaged catalog is still there, put aside."""
    (store / CATALOG).write_bytes(b"damaged" * 1000)
    arguments = ("doctor", "--store", str(store), "--rebuild")

    killed = command("rebuild.before_rename", *arguments)
    ended = command("", *arguments)

    assert killed == -signal.SIGKILL
    assert ended == 0
    assert served(store) == 2
    assert (store / QUARANTINE).is_dir()


def test_every_step_is_passed_somewhere() -> None:
    """The table of steps is what the sources have, and no step is left out here."""
    sources = [path for part in ("detectors", "pruning", "server") for path in Path(part).rglob("*.py")]
    found = {step for path in sources for step in re.findall(r'failpoint\("([a-z_.]+)"\)', path.read_text())}

    assert found == set(STEPS)
    assert {step for _, step, _ in CASES} | ELSEWHERE == set(STEPS)
    assert set(IN_THE_TRAINER) >= REAL_TRAINER_ONLY
