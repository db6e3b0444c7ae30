"""Bundles are used without prunewatch as docs/bundles.md says: its programs, line by line, against a real hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import publish
from fits import FOUR, SMALL, machine, untrained

from detectors.archive import pack_bundle
from detectors.bundle import Bundle, Lineage, write_bundle
from detectors.embedded import Detector
from detectors.runtime import Runtime
from detectors.training.export import to_bundle
from prunewatch.client import Client
from server.app import Hub

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "bundles.md").read_text()
PROGRAMS = dict(re.findall(r"```\w+\n(?:#|//) (\w+\.\w+)\n(.*?)```", PAGE, re.DOTALL))
NODE_PACKAGE = "onnxruntime-node@1.30.0"
NODE_FOLDER = ROOT / ".cache" / "node"
POINTS = machine(120, seed=5)


@cache
def bundle_of(kind: str) -> Bundle:
    """A published detector of the synthetic machine."""
    lineage = Lineage(cause="fit", seed=0, data_rows=300)
    return to_bundle(untrained(kind, len(FOUR)), detector="pump", version=1, device_class="hub", lineage=lineage)


def unpacked(bundle: Bundle, folder: Path) -> None:
    """What stands around the programs of the page: pump.tar, the folder pump/ and points.csv."""
    write_bundle(bundle, folder / "published")
    pack_bundle(folder / "published", bundle.hash, folder / "pump.tar")
    with tarfile.open(folder / "pump.tar") as archive:
        archive.extractall(folder / "pump", filter="data")
    np.savetxt(folder / "points.csv", POINTS, "%.9g", delimiter=",", header=",".join(FOUR), comments="")


def printed(program: str, interpreter: str, folder: Path) -> np.ndarray:
    """The scores that a program of the page prints, one a line."""
    (folder / program).write_text(PROGRAMS[program])
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [interpreter, program], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return np.array([line.split()[0] for line in done.stdout.splitlines()], np.float32)


async def of_the_service(hub: Hub, client: Client, bundle: Bundle) -> np.ndarray:
    """The scores of `ScoringService.Score`."""
    await publish(hub, bundle)
    return (await client.score("pump", values=POINTS, series=["north"], ephemeral=True)).scores


def test_the_page_has_these_programs() -> None:
    """Each is run by a test below, and the one for ONNX Runtime is as short as it says."""
    assert list(PROGRAMS) == ["elsewhere.py", "elsewhere.mjs", "inside.py"]
    assert PROGRAMS["elsewhere.py"].count("\n") <= 13


@pytest.mark.parametrize("kind", sorted(set(SMALL) - {"windowed_lstm"}))
async def test_ten_lines_of_python_give_the_scores_of_the_service(
    kind: str, hub: Hub, client: Client, tmp_path: Path
) -> None:
    """ONNX Runtime alone, on the two files of an export: the service's scores to the bit, for every kind of network."""
    bundle = bundle_of(kind)
    unpacked(bundle, tmp_path)

    expected = await of_the_service(hub, client, bundle)

    assert np.isfinite(expected).sum() == len(POINTS) - bundle.manifest.warm_up_points
    np.testing.assert_array_equal(printed("elsewhere.py", sys.executable, tmp_path), expected)
    np.testing.assert_array_equal(Detector.load(tmp_path / "pump.tar").score(POINTS, "north").score, expected)


async def test_inside_a_program_of_ones_own(hub: Hub, client: Client, tmp_path: Path) -> None:
    """`detectors.embedded` gives the service's scores, point by point."""
    unpacked(bundle_of("lstm"), tmp_path)

    expected = await of_the_service(hub, client, bundle_of("lstm"))

    np.testing.assert_array_equal(printed("inside.py", sys.executable, tmp_path), expected)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with ONNX Runtime for Node, installed once without running a script of any package."""
    node, npm, done = shutil.which("node"), shutil.which("npm"), NODE_FOLDER / "installed"
    if node is None or npm is None:
        pytest.skip("node and npm are not on PATH")
    if not done.is_file() or done.read_text() != NODE_PACKAGE:
        shutil.rmtree(NODE_FOLDER, ignore_errors=True)
        NODE_FOLDER.mkdir(parents=True)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=1"]
        install = [npm, "install", *quiet, "--prefix", str(NODE_FOLDER), NODE_PACKAGE]
        ended = subprocess.run(install, check=False, capture_output=True, text=True)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{NODE_PACKAGE} can not be installed: {last}")
        for system in ("darwin", "win32"):  # two thirds of the package
            for folder in NODE_FOLDER.glob(f"node_modules/onnxruntime-node/bin/*/{system}"):
                shutil.rmtree(folder)
        done.write_text(NODE_PACKAGE)
    return NODE_FOLDER / "node_modules"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["lstm", "isolation_forest"])
async def test_node_gives_the_scores_of_the_service(
    kind: str, hub: Hub, client: Client, node_modules: Path, tmp_path: Path
) -> None:
    """The program for Node, with another release of ONNX Runtime: equal within float32's last digits."""
    unpacked(bundle_of(kind), tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)

    expected = await of_the_service(hub, client, bundle_of(kind))

    np.testing.assert_allclose(printed("elsewhere.mjs", "node", tmp_path), expected, rtol=1e-5, atol=1e-6)


def test_the_page_says_what_the_graph_has() -> None:
    """Names, dtypes and the order of tensors are those of a real graph."""
    import onnxruntime

    graph = bundle_of("lstm").graph
    session = onnxruntime.InferenceSession(graph)
    inputs, outputs = ([it.name for it in side] for side in (session.get_inputs(), session.get_outputs()))

    assert [inputs[0], *outputs[:2]] == ["values", "score", "contribution"]
    assert outputs[2:] == [f"{name}.next" for name in inputs[1:]]
    assert all(f"`{name}`" in PAGE for name in ("values", "score", "contribution", "state.h0", "state.smooth"))
    assert {it.type for it in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    assert all(not state.any() for state in Runtime(graph).fresh(1))
