"""The benchmarks of pruning keep cells, apply the gate anew, choose thresholds, and run from a series to a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
SCRIPTS = {"pruning_grid": "pruning", "importance": "importance", "gate": "gate", "budgets": "budgets"}
"""And the name of the markers of each."""
TUNED, REPORTED = "cloud/mongodb-machine-rps/machine-01", "asd/omi-9"


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmarks; scripts find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import budgets
    import gate
    import importance
    import pruning_cells
    import pruning_figures
    import pruning_grid
    import pruning_methods
    import pruning_report
    import pruning_set

    return SimpleNamespace(
        budgets=budgets,
        cells=pruning_cells,
        figures=pruning_figures,
        gate=gate,
        grid=pruning_grid,
        importance=importance,
        methods=pruning_methods,
        report=pruning_report,
        set=pruning_set,
    )


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, without labelled series unless `environment` names them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PRUNEWATCH_DATA"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=280, check=False
    )


def cell(method: str = "ours", target: str = "4x", seed: int = 0, series: str = REPORTED, **changes) -> dict:
    """A child that is four times as fast, has the parent's error, and loses nothing on labels."""
    made = {
        "kind": "lstm",
        "series": series,
        "seed": seed,
        "batch": 256,
        "target": target,
        "method": method,
        "version": "v",
        "built": True,
        "reason": "",
        "parent_ap": 0.5,
        "parent_vus_pr": 0.5,
        "ap": 0.5,
        "vus_pr": 0.5,
        "dense_p50": 4e-4,
        "p50": 1e-4,
        "dense_p99": 8e-4,
        "p99": 4e-4,
        "dense_bytes": 900,
        "bytes": 100,
        "checks": {"error": 1.0, "alarms": 0.9, "alarm rate": 1.0, "tail": 0.9, "injected": 0.0},
        "alarm_rate_passed": True,
        "in_budget": True,
        "cpu_seconds": 10.0,
        "wall_seconds": 12.0,
        "train_seconds": 8.0,
    }
    checks = made["checks"] | changes.pop("checks", {})
    return made | {"checks": checks} | changes


def write(benchmark, folder: Path, cells: list[dict]) -> None:
    """Cells into the files they belong to."""
    for it in cells:
        benchmark.cells.append(benchmark.cells.path_of(folder, it["kind"], it["series"]), it)


def test_half_a_line_is_left_behind_and_the_last_of_a_key_counts(benchmark, tmp_path):
    """A run that is killed while it writes costs one cell, and a cell that is made again replaces the older one."""
    path = tmp_path / "lstm--series.jsonl"
    benchmark.cells.append(path, cell(ap=0.1))
    with path.open("a") as file:
        file.write('{"seed": 0, "bat')
    benchmark.cells.append(path, cell(ap=0.2))
    benchmark.cells.append(path, cell(method="random", ap=0.3))

    cells = benchmark.cells.read(path, "seed", "batch", "target", "method")

    assert [it["ap"] for it in cells.values()] == [0.2, 0.3]


def test_thresholds_of_the_gate_do_not_make_cells_old(benchmark):
    """Its code does: what the gate measured is in the cells, where its limits lie is not."""
    import ast

    kept = ast.unparse(benchmark.cells._judging(ROOT / "pruning" / "gate.py"))

    assert "class GateLimits" not in kept
    assert "def tail_agreement" in kept
    assert '"""' not in kept.split("def trimmed_error")[1].split("return")[0]


def test_work_is_ordered_by_worth(benchmark):
    """The first seed of every network comes before the second of any, and lstm and autoencoder come first."""
    jobs = list(benchmark.grid.jobs())

    seeds = [job.seed for job in jobs]
    assert seeds == sorted(seeds)
    first = [job.kind in benchmark.grid.MAIN for job in jobs if job.seed == 0]
    assert first == sorted(first, reverse=True)
    assert {job.kind for job in jobs if job.seed > 0} == set(benchmark.grid.MAIN)
    assert not any(job.batch == 1 and job.kind in {"lstm", "gru"} for job in jobs)
    assert len(jobs) == len(set(jobs))


def test_what_is_there_is_not_made_again(benchmark):
    """Of a target that a cycle found to be below the floor no other children are wanted."""
    job = benchmark.set.Job("lstm", REPORTED, 0, 256)
    have = {(0, 256, "4x", "ours"): cell(), (0, 256, "8x", "ours"): cell(target="8x", built=False)}

    missing = benchmark.grid.missing_of(job, have)

    assert ("4x", "ours") not in missing
    assert ("4x", "random") in missing
    assert ("2x", "ours") in missing
    assert not [target for target, _ in missing if target == "8x"]


def test_the_gate_is_applied_anew_with_the_limits_of_now(benchmark):
    """Its verdict in a table follows the thresholds; what it could not measure does not pass."""
    from pruning.gate import GateLimits

    cells = [cell(checks={"error": 1.4}), cell(method="random", checks={"tail": None})]

    now = benchmark.figures.table(cells, GateLimits(error_ratio=1.5))
    stricter = benchmark.figures.table(cells, GateLimits(error_ratio=1.3))

    assert now.adopted.tolist() == [True, False]
    assert stricter.adopted.tolist() == [False, False]


def test_aims_are_judged_on_pairs_and_on_adopted_children(benchmark):
    """A rejected child does not count for detection; a baseline is compared where both children were built."""
    cells = [
        cell(ap=0.497),
        cell(seed=1, ap=0.1, in_budget=False),
        cell("random", checks={"error": 1.2}),
        cell("scratch_long", checks={"error": 0.9}, train_seconds=100.0),
    ]

    found = benchmark.figures.aims(benchmark.figures.table(cells))

    detection = found["4x: mean AP at most 0.005 below the parent's, adopted children"]
    assert detection["value"] == pytest.approx(-0.003)
    assert detection["met"]
    assert found["4x: mean error below `random`"] == {"value": pytest.approx(0.2), "met": True}
    assert found["mean error not above `scratch_long`"] == {"value": pytest.approx(-0.1), "met": False}
    assert found["a tenth of its training time"] == {"value": pytest.approx(0.08), "met": True}
    assert found["8x: mean AP at most 0.01 below the parent's, adopted children"]["met"] is None


def test_a_table_has_a_row_for_each_method_and_says_what_could_not_be_built(benchmark, tmp_path):
    """Means over series, how many the gate let in, and why a peer failed."""
    write(
        benchmark,
        tmp_path,
        [
            cell(ap=0.52),
            cell(series=TUNED, ap=0.5, checks={"error": 2.0}),
            cell("torch_pruning", built=False, reason="IndexError: no"),
            cell(target="8x", built=False, reason="the budget is below the floor of this network"),
        ],
    )

    found = benchmark.report.result(tmp_path)

    row = found.figures["lstm, batch 256"]["4x ours"]
    assert row["ap"] == pytest.approx(0.01)
    assert (row["adopted"], row["built"], row["cells"]) == (1, 2, 2)
    assert "- `lstm`, torch_pruning: IndexError: no" in found.table
    assert "refused (the budget is below the floor of this network)" in found.table
    assert "| 8x ours | - |" in found.table
    assert "Some made by an earlier version of the code: lstm." in found.table


def test_thresholds_are_those_with_the_fewest_errors_and_of_equals_the_loosest(benchmark, tmp_path):
    """Damage that shows in the tail alone makes the tail strict and leaves the other checks loose."""
    sound = [cell(series=TUNED, seed=i, checks={"tail": 0.5, "error": 1.9, "alarms": 0.35}) for i in range(3)]
    bad = [cell("random", series=TUNED, seed=i, ap=0.3, checks={"tail": 0.2}) for i in range(3)]
    between = [cell("scratch", series=TUNED, ap=0.47, checks={"tail": 0.1})]
    elsewhere = [cell(ap=0.2, checks={"tail": 0.9}), cell("random", checks={"tail": 0.1})]
    write(benchmark, tmp_path, [*sound, *bad, *between, *elsewhere])

    best = benchmark.gate.chosen([*sound, *bad, *between])
    found = benchmark.gate.result(tmp_path)

    assert (best.tail_agreement, best.error_ratio, best.alarm_jaccard, best.injected_drop) == (0.3, 3.0, 0.3, 0.1)
    tuned, reported = found.figures["chosen, tuned half"], found.figures["chosen, reported half"]
    assert (tuned["damaged"], tuned["let_in"], tuned["sound"], tuned["kept_out"]) == (3, 0, 3, 0)
    assert (reported["damaged"], reported["let_in"], reported["sound"], reported["kept_out"]) == (1, 1, 1, 1)
    assert found.figures["now, tuned half"]["kept_out"] == 3


def test_budgets_that_were_refused_are_not_kept(benchmark, tmp_path):
    """A child that is too slow when it is measured again, and a refusal of what can be met, both count against."""
    met = [
        {"limit": 1.0, "picked": True, "p50": 0.9, "p99": 0.95},
        {"limit": 1.0, "picked": True, "p50": 1.1, "p99": 1.5},
        {"limit": 1.0, "picked": False, "p50": None, "p99": None},
    ]
    no = [{"refused": True, "reason": "below the floor"}]
    written = {"kind": "lstm", "series": REPORTED, "version": "v", "met": met, "refused": no}
    benchmark.cells.append(tmp_path / "lstm--series.jsonl", written)

    found = benchmark.budgets.result(tmp_path)

    assert found.ratios["lstm_kept"] == pytest.approx(1 / 3)
    assert found.figures["lstm"]["refused_feasible"] == 1
    assert "1 of 3: **missed**" in found.table
    assert "1 of 1: met" in found.table


@pytest.fixture(scope="module")
def ground_points():
    """Normal points of three features."""
    rng = np.random.default_rng(0)
    t = np.arange(900)[:, None]
    return (np.sin(t / [7.0, 11.0, 23.0]) + 0.1 * rng.standard_normal((900, 3))).astype(np.float32)


@pytest.fixture
def ground(benchmark, ground_points):
    """A small parent, hardly trained, for methods to work from."""
    from detectors.training.fit import FitOptions, fit
    from detectors.training.stretches import Stretches
    from pruning.cycle import split

    def made(kind: str, **options: int):
        rows = Stretches.of([ground_points])
        fitted = fit(kind, rows, ("a", "b", "c"), seed=0, options=options, how=FitOptions(updates=20))
        training, held_out = split(fitted, rows)
        return benchmark.methods.Ground(fitted.recalibrated(held_out, training), training, held_out, 0)

    return made


@pytest.mark.parametrize("method", ["random", "no_repair", "scratch"])
def test_every_method_makes_the_widths_that_were_chosen(benchmark, ground, method):
    """And weights of its own."""
    from pruning.structures import Structure

    here = ground("lstm", width=16)
    wanted = benchmark.methods.Wanted(Structure(), {"layer0": 8, "layer1": 4}, 3)

    made = benchmark.set.BASELINES[method](here, wanted)

    assert made.units == wanted.units
    assert here.dense.network.units == {"layer0": 16, "layer1": 16}


def test_masked_rows_stay_zero_and_the_network_stays_as_large(benchmark, ground):
    """Fine-tuning leaves them masked: half of an LSTM's rows are gone, though not a unit is."""
    from pruning.structures import Structure

    here = ground("lstm", width=16)
    wanted = benchmark.methods.Wanted(Structure(), {"layer0": 8, "layer1": 4}, 3)

    made = benchmark.methods.with_masks(here, wanted)

    assert made.units == {"layer0": 16, "layer1": 16}
    recurrent = made.state_dict()["layers.0.weight_hh_l0"]
    assert int((recurrent == 0).all(dim=1).sum()) == 32
    assert not hasattr(made.layers[0], "weight_hh_l0_mask")


def test_torch_pruning_comes_to_the_same_widths_or_says_why_not(benchmark, ground):
    """A dense autoencoder it can prune; an LSTM it can not, and the reason is kept."""
    pytest.importorskip("torch_pruning")
    from pruning_peer import by_torch_pruning

    from pruning.structures import Structure

    dense = ground("autoencoder", width=32, window=8)
    wanted = benchmark.methods.Wanted(Structure(), {"encoder0": 16, "decoder0": 8}, 3)
    recurrent = benchmark.methods.Wanted(Structure(), {"layer0": 8, "layer1": 4}, 3)

    made = by_torch_pruning(dense, wanted)

    assert {name: made.units[name] for name in wanted.units} == wanted.units
    assert made.units["bottleneck"] == dense.dense.network.units["bottleneck"]
    with pytest.raises(benchmark.methods.NotPossible):
        by_torch_pruning(ground("lstm", width=16), recurrent)


def test_a_unit_that_nothing_reads_matters_least(benchmark, ground):
    """The oracle masks one unit at a time: one whose outgoing weights are nothing changes no loss."""
    import torch

    from detectors.training.fit import chunks_over, held_out_loss

    here = ground("autoencoder", width=8, window=8)
    network = here.dense.network
    with torch.no_grad():
        network.layers["output"].weight[:, 3] = 0
    group = next(it for it in network.groups() if it.name == "decoder0")
    judged = list(chunks_over(here.held_out, here.dense.scaler, network, 1).chunks(2))

    losses = benchmark.importance.ablations(network, group, judged)

    assert losses[3] == pytest.approx(held_out_loss(network, judged), rel=1e-6)
    assert len({round(it, 9) for it in losses}) > 4


def test_the_document_has_a_place_for_them():
    """Markers stand in docs/benchmarks.md once."""
    document = DOCUMENT.read_text()

    for name in SCRIPTS.values():
        assert document.count(f"<!-- {name}:begin -->") == document.count(f"<!-- {name}:end -->") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(help_of, script):
    """What is measured, how to run it, and which arguments there are."""
    printed = help_of(script)

    assert f"python benchmarks/{script}.py" in printed
    assert {"--quick", "--json", "--docs", "--cells"} <= set(printed.split())


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pruning_grid", "importance", "budgets"])
def test_without_labelled_data_it_is_skipped(script, tmp_path):
    """It says so, succeeds, and leaves the document alone."""
    record, before = tmp_path / "record.json", DOCUMENT.read_text()

    done = run(script, "--cells", str(tmp_path / "cells"), "--json", str(record))

    assert done.returncode == 0, done.stderr
    assert f"SKIPPED {SCRIPTS[script]}" in done.stderr
    assert "PRUNEWATCH_DATA" in json.loads(record.read_text())["skipped"]
    assert DOCUMENT.read_text() == before


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(300)
def test_a_quick_run_goes_from_series_to_table(tmp_path):
    """One network, one target: a cycle and two others of its widths are built, measured, judged and shown."""
    folder = os.environ.get("PRUNEWATCH_DATA") or pytest.skip("PRUNEWATCH_DATA is not set")
    record, document = tmp_path / "record.json", tmp_path / "benchmarks.md"
    document.write_text("<!-- pruning:begin -->\n<!-- pruning:end -->\n")

    done = run("pruning_grid", "--quick", "--json", str(record), "--docs", str(document), PRUNEWATCH_DATA=folder)

    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())["figures"]["autoencoder, batch 256"]
    assert set(found) == {"2x ours", "2x random", "2x no_repair"}
    assert found["2x ours"]["speedup"] > 1.5
    assert found["2x ours"]["bytes"] > 1
    assert "2x ours" in document.read_text()
