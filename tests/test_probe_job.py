"""From a parent to a table of devices to a child for them: the real trainer, the real prober, nothing in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fits import FOUR, fitted, machine

from detectors.bundle import Lineage, write_bundle
from detectors.training.export import step_graph, to_bundle
from pruning.costs import Grid
from server.config import Budget, DetectorConfig
from server.edge.prober import ProbeLimits, Prober
from server.fleet.probe_graphs import graph_path, missing_graphs, sweep_graphs
from server.fleet.reports import ProbeReport
from server.fleet.tables import ClassTable, ClassTables
from server.jobs import cycle_job, probe_job
from server.publish import publish_fit
from server.releases import Probe, ProbeGraph
from server.store import Store
from server.trainer import run_job

BATCH = 16


def silent(stage: str, done: float, message: str) -> None:
    """Is told nothing."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a fitted LSTM for pi4."""
    parent = fitted("lstm", width=32)
    lineage = Lineage(cause="fit", seed=0, data_rows=700)
    bundle = to_bundle(parent, detector="pump", version=1, device_class="parent", lineage=lineage)
    opened = Store.open(tmp_path / "store")
    opened.catalog.create_detector("pump", {"device_classes": ["pi4"], "time": "index"}, list(FOUR))
    write_bundle(bundle, opened.bundle_folder(bundle.hash))
    facts = {"hash": bundle.hash, "version": 1, "p50_seconds": 1e-4, "p99_seconds": 2e-4, "error": 0.5}
    publish_fit(opened, "pump", {"parent": facts})
    yield opened
    opened.close()


@pytest.mark.alone  # that the narrower one is quicker is measured
async def test_a_child_is_planned_by_what_a_device_measured(store: Store) -> None:
    """The trainer draws graphs, the prober measures them, and the cycle's times are those of the device's table."""
    drawn = run_job(probe_job(store, "pump", "pi4", batch=BATCH, graphs=12), silent)
    grid = Grid.from_json(drawn["grid"])
    graphs = {sha256: graph_path(store.root, sha256).read_bytes() for sha256 in grid.graphs}
    named = [ProbeGraph(sha256=sha256, bytes=len(graph)) for sha256, graph in graphs.items()]
    probe = Probe(id="a" * 16, device_class="pi4", batch=BATCH, rounds=9, graphs=named, issued=0, expires=1)
    outcome = await Prober(lambda: False, limits=ProbeLimits(turn_seconds=0.005)).measure(probe, graphs)
    tables = ClassTables(store.root)
    table = ClassTable("pump", "pi4", drawn["parent"]["hash"], grid, 0.0).asking("a" * 16, 1.0)
    answered = table.answered(ProbeReport("north", "a" * 16, BATCH, outcome.costs, {}, outcome.problem, 0))
    assert answered is not None, outcome.problem
    tables.put(answered)
    history = store.history("pump").add_points(np.arange(700), machine(700))

    job = cycle_job(
        store,
        "pump",
        DetectorConfig(device_classes=["pi4"]),
        "pi4",
        budget=Budget(speedup=1.02, batch=BATCH),
        history=[history],
        on_devices=True,
        dry_run=True,
    )
    result = run_job(job, silent)

    assert len(graphs) <= 12
    assert result["times"] == "as devices of pi4 foretell"
    assert result["parent"]["p50_seconds"] == answered.costs()[grid.reference][0]
    assert result["parent"]["bytes"] == len(step_graph(fitted("lstm", width=32)))


def test_graphs_that_are_damaged_or_gone_are_noticed(store: Store) -> None:
    """So that no device is sent to fetch them; the next job draws them again, and what nobody names goes."""
    job = probe_job(store, "pump", "pi4", batch=BATCH, graphs=12)
    names = Grid.from_json(run_job(job, silent)["grid"]).graphs
    graph_path(store.root, names[0]).write_bytes(b"damaged")
    graph_path(store.root, names[1]).unlink()

    missing = missing_graphs(store.root, names)
    run_job(job, silent)
    mended = missing_graphs(store.root, names)
    sweep_graphs(store.root, names[:3])

    assert missing == names[:2]
    assert mended == []
    assert missing_graphs(store.root, names) == names[3:]
    with pytest.raises(ValueError, match="etc"):
        graph_path(store.root, "../../etc/passwd")
