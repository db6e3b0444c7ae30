"""The benchmark of scoring: peers run the same network, are checked before they are timed, and are skipped visibly."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fits import FOUR, machine

from detectors.training.calibrate import Scaler
from detectors.training.export import step_graph
from detectors.training.fitted import calibrated
from detectors.training.networks import network_class
from detectors.training.stretches import Stretches

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = {"layer0": 6, "layer1": 3}


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    import harness
    import profile_scoring
    import scoring
    import scoring_client
    import scoring_environments
    import scoring_models
    import scoring_peers
    import scoring_windows
    import window_graphs
    import window_service
    import windowed

    return SimpleNamespace(
        harness=harness,
        main=scoring,
        profile=profile_scoring,
        client=scoring_client,
        environments=scoring_environments,
        models=scoring_models,
        peers=scoring_peers,
        windows=scoring_windows,
        graphs=window_graphs,
        service=window_service,
        windowed=windowed,
    )


@pytest.fixture(scope="module")
def graph() -> bytes:
    """The step graph of an LSTM whose layers differ in width, with drawn weights and a smoothed error."""
    data = machine(300)
    network = network_class("lstm").build(len(FOUR), WIDTHS, {})
    return step_graph(calibrated(network, FOUR, Scaler.fit(data), Stretches.of([data])))


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Points of five series, [60, 5, 4]."""
    return np.stack([machine(60, seed) for seed in range(5)], axis=1)


def test_weights_are_read_from_a_published_graph(benchmark, graph) -> None:
    """Widths of both layers are those of the network, whatever was pruned."""
    weights = benchmark.graphs.Weights.read(graph)

    assert weights.widths == list(WIDTHS.values())
    assert weights.head[0].shape == (3, len(FOUR))


@pytest.mark.parametrize("form", ["unrolled", "operator"])
def test_a_window_in_onnx_runtime_gives_the_error_of_the_step_graph(benchmark, graph, points, form, tmp_path) -> None:
    """Each point over the 50 that end there, against the step graph from a fresh state, before smoothing."""
    windows = benchmark.windows
    drawn = benchmark.graphs.window_graph(benchmark.graphs.Weights.read(graph), benchmark.graphs.FORMS[form])
    (tmp_path / "window.onnx").write_bytes(drawn)
    peer = benchmark.windowed.Windows(benchmark.windowed.onnx_judge(str(tmp_path / "window.onnx")), (50, 5, 4))

    found = [peer(points[:50]), *(peer(points[t : t + 1]) for t in range(50, 60))]

    errors = windows.reference(graph)
    right = [errors(points[t - 50 : t]) for t in range(50, 61)]
    assert np.ptp(right) > 0.1  # there is something to tell apart
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_a_window_in_torch_gives_the_error_of_the_step_graph(benchmark, graph, points, tmp_path) -> None:
    """The weights that the service loads are those of the bundle, gate by gate."""
    windows = benchmark.windows
    np.savez(tmp_path / "weights.npz", **windows.torch_arrays(benchmark.graphs.Weights.read(graph)))

    found = benchmark.service.torch_judge(tmp_path / "weights.npz")(points[:50])

    np.testing.assert_allclose(found, windows.reference(graph)(points[:50]), rtol=1e-4, atol=1e-5)


def test_lstmad_behind_the_service_scores_as_its_paper_says(benchmark, tmp_path) -> None:
    """PyOD's decision function over messages that follow each other, against its own network and covariance."""
    pytest.importorskip("pyod")
    benchmark.windows.lstmad(tmp_path / "lstmad.npz", machine(200), 4)
    score = benchmark.service.lstmad_score(tmp_path / "lstmad.npz")
    rows = machine(90, seed=3)

    found = np.concatenate([score(rows[:60]), score(rows[60:])])

    right = benchmark.windows.lstmad_reference(tmp_path / "lstmad.npz", rows)
    np.testing.assert_allclose(found, right, rtol=1e-3)


def test_an_environment_is_not_made_when_that_is_not_wanted(benchmark, tmp_path) -> None:
    """What is missing, or was made for other packages, is skipped; what fits is used as it is."""
    environment = benchmark.environments.Environment("peer", ("one==1", "two==2"))
    made = tmp_path / "peer"

    with pytest.raises(benchmark.harness.Skip, match="--no-install"):
        environment.folder(tmp_path, install=False)
    made.mkdir()
    (made / "packages.txt").write_text("one==1\ntwo==2")

    assert environment.folder(tmp_path, install=False) == made
    with pytest.raises(benchmark.harness.Skip):
        replace(environment, packages=("one==2",)).folder(tmp_path, install=False)


def test_a_port_is_given_once(benchmark) -> None:
    """Two processes of a run never get the same one."""
    ports = [port for _ in range(20) for port in benchmark.client.free_ports(2)]

    assert len(set(ports)) == len(ports)


def test_samples_belong_to_their_innermost_known_frame(benchmark) -> None:
    """Waiting threads do not count; what a function calls counts for it, once, however often it is on the stack."""
    step = "run (server/app.py:1);score (server/hosted.py:2);step (detectors/scorer.py:3);run (onnxruntime/capi/a.py:4)"
    raw = "\n".join(
        [
            f"{step} 6",
            "run (server/app.py:1);score (server/hosted.py:2);score (server/hosted.py:9);sum (numpy/core.py:1) 2",
            "_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81) 50",
            "_bootstrap (threading.py:1);run (threading.py:982) 3",
        ]
    )

    places, functions = benchmark.profile.counted(raw)

    assert places == {
        "the step in ONNX Runtime": 6,
        "after the step: flags, drift, what is kept": 2,
        benchmark.profile.POLLER: 3,
    }
    assert functions["score (server/hosted.py)"] == 8
    assert "run (server/app.py)" not in functions


def test_parts_that_do_not_run_keep_their_tables(benchmark, tmp_path) -> None:
    """What stands in the document for a part comes back as it was, under its name, and nothing else."""
    document = tmp_path / "benchmarks.md"
    parts = "<!-- part peers -->\n**Peers**\n\n| a |\n\n*one*\n\n<!-- part step -->\n**Step**\n\n*two*\n"
    document.write_text(f"before\n<!-- scoring:begin -->\n{parts}<!-- scoring:end -->\n<!-- part echo -->\nafter")

    kept = benchmark.main.kept(document)

    assert kept == {"peers": "**Peers**\n\n| a |\n\n*one*", "step": "**Step**\n\n*two*"}


@pytest.mark.slow
def test_a_peer_that_is_wrong_or_dead_is_not_timed(benchmark, tmp_path) -> None:
    """It is skipped with the reason, and the others are timed all the same."""
    peers, models = benchmark.peers, benchmark.models
    setting, network = _setting(benchmark, tmp_path)  # without weights for torch, so that its service ends
    wrong = replace(network, errors=lambda points: network.errors(points) + 1)
    plans = [
        peers.Plan(who, "child", lambda it=it, way=way: peers.plain(setting, it, way))
        for who, it, way in (("wrong", wrong, "onnx"), ("dead", network, "torch"), ("right", network, "onnx"))
    ]

    found = asyncio.run(peers.compare(plans, rounds=2, seconds=0.05))

    assert "its answers are wrong" in found["wrong", "child"].skipped
    assert "did not listen" in found["dead", "child"].skipped
    assert not found["wrong", "child"].rates
    assert not found["right", "child"].skipped
    assert all(rate > models.SERIES for rate in found["right", "child"].rates)


def _setting(benchmark, folder: Path):
    """Of a small LSTM with drawn weights, as `scoring_peers.run` makes it, and its network."""
    models = benchmark.models
    data = benchmark.harness.drawn(300, 1, models.FEATURES, seed=2)[:, 0]
    network = network_class("lstm").build(models.FEATURES, {"layer0": 4}, {})
    names = tuple(f"f{i}" for i in range(models.FEATURES))
    drawn = step_graph(calibrated(network, names, Scaler.fit(data), Stretches.of([data])))
    points = benchmark.harness.drawn(60, models.SERIES, models.FEATURES, seed=5)
    np.save(folder / "points.npy", points)
    graph = benchmark.graphs.window_graph(benchmark.graphs.Weights.read(drawn), benchmark.graphs.FORMS["operator"])
    (folder / "window.onnx").write_bytes(graph)
    served = benchmark.peers.Network(
        folder / "none.npz", folder / "window.onnx", folder / "none.npz", [4], benchmark.windows.reference(drawn)
    )
    core = benchmark.harness.cores()[-1]
    points_file = folder / "points.npy"
    return benchmark.peers.Setting(folder, core, points, points_file, {}, folder, False, start_seconds=5.0), served


@pytest.mark.slow
def test_peers_without_their_environments_are_skipped_visibly(benchmark, tmp_path) -> None:
    """The others are checked and timed, the ratios count the fastest of them, and the table says who is missing."""
    models, peers = benchmark.models, benchmark.peers
    if len(benchmark.harness.cores()) < 2:
        pytest.skip("it needs two cores")
    fitted, run = tmp_path / "fitted", tmp_path / "run"
    fitted.mkdir()
    run.mkdir()
    config = models.fitted_store(fitted, width=8)
    graph = models.served_graph(fitted / "store", models.SMALL)
    store = models.Store(config, dict.fromkeys(("parent", "child"), graph), "8-8", models.SMALL)

    part = asyncio.run(
        peers.run(store, run, benchmark.harness.cores()[-1], quick=True, cache=tmp_path / "cache", install=False)
    )

    assert {"points_vs_windowed_parent", "points_vs_windowed_child"} <= part.ratios.keys()
    for serves in ("parent", "child"):
        figures = part.figures["peers"][serves]
        assert figures["points_per_second"].keys() == {"torch", "ONNX Runtime", "PyOD LSTMAD"}
        assert figures["skipped"].keys() == {"MLServer", "Triton"}
        fastest = max(figures["points_per_second"].values())
        ratio = part.figures["prunewatch_points_per_second"] / fastest
        assert part.ratios[f"points_vs_windowed_{serves}"] == pytest.approx(ratio)
    skipped = [line for line in part.table.splitlines() if "skipped" in line]
    assert len(skipped) == 4
    assert all("--no-install" in line for line in skipped)


@pytest.mark.slow
def test_memory_is_not_watched_for_an_unknown_time() -> None:
    """Asking for that part alone says which argument is missing."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scoring.py"), "--only", "memory"]

    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "--memory-minutes" in done.stderr


@pytest.mark.slow
@pytest.mark.promise("L1")
def test_streams_and_memory_run(benchmark, tmp_path) -> None:
    """A thousand streams are answered without an error, and memory gets a slope."""
    record, document = tmp_path / "record.json", tmp_path / "benchmarks.md"
    document.write_text("<!-- scoring:begin -->\n<!-- scoring:end -->\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "scoring.py"), "--quick", "--only", "streams", "memory"]
    command += ["--memory-minutes", "0.1", "--json", str(record), "--docs", str(document)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)

    assert done.returncode == 0, done.stderr
    written = json.loads(record.read_text())
    if "skipped" in written:
        pytest.skip(written["skipped"])
    streams, memory = written["figures"]["streams"], written["figures"]["memory"]
    assert streams["prunewatch"]["errors"] == 0
    assert streams["prunewatch"]["points"] == streams["streams"] * streams["seconds"]
    assert memory["messages"]["cancelled"] > 0
    assert {"megabytes_an_hour", "lowest_bytes"} <= memory.keys()
