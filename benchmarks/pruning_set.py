"""One set of cells: a kind, a series, a seed and a batch; the parent is fitted once for all targets and methods."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detection_cells import Cell
from detection_measures import dominant_period, scored_everywhere, vus_pr
from detection_ours import WARM_ROWS
from detection_series import Series
from pruning_methods import (
    Ground,
    Method,
    NotPossible,
    Wanted,
    by_random_units,
    from_scratch,
    from_scratch_to_the_end,
    gradient_members,
    with_masks,
    without_repair,
)
from pruning_peer import by_torch_pruning
from sklearn.metrics import average_precision_score

from detectors.training.export import step_graph
from detectors.training.fit import fit
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Stretches
from pruning.cycle import Candidate, CycleOptions, run_cycle, split
from pruning.derive import Derivation, DeriveOptions
from pruning.gate import GateLimits, judge, trimmed_error
from pruning.latency import measure
from pruning.outcome import Budget, Gate, Latency
from pruning.structures import Structure
from pruning.table import FolderTables, level_units

OURS = "ours"
FLOOR = "floor"
HALF = "half the trees"
TARGETS = {"2x": 2.0, "4x": 4.0, "8x": 8.0}
BASELINES: Mapping[str, Method] = {
    "random": by_random_units,
    "no_repair": without_repair,
    "scratch": from_scratch,
    "scratch_long": from_scratch_to_the_end,
    "torch_pruning": by_torch_pruning,
    "masks": with_masks,
}
OF_TREES = ("random", "scratch")
"""The baselines that a forest has: other trees of the same forest, and a smaller forest."""
MASKED = "4x"
"""The one target at which masks are tried, with the first seed: they cost as much training as a dense network."""
BELOW_FLOOR = 0.92
"""Share of the narrowest network's speed-up that the floor's budget asks for: measured again, it must be met."""
ROUNDS = 21
DIGITS = 6


class Job(NamedTuple):
    """Whose cells."""

    kind: str
    series: str
    seed: int
    batch: int


class Built(NamedTuple):
    """A calibrated child, and the time that building it took."""

    child: Fitted
    cpu_seconds: float
    wall_seconds: float


@dataclass
class Setting:
    """The parent and what is the same for all of its children.

    Attributes:
        job: Whose cells.
        series: Cut to size.
        ground: What methods work with.
        fitted: The parent as it was fitted, before a cycle calibrates it.
        fit_seconds: Processor time.
        quality: Average precision and VUS-PR of the calibrated parent.
        tables: Latency tables, measured once a network as on a hub.
        made: Children by method and what was wanted: targets may ask for the same.
    """

    job: Job
    series: Series
    ground: Ground
    fitted: Fitted
    fit_seconds: float
    quality: tuple[float, float]
    tables: FolderTables
    made: dict[tuple[str, str], Built] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, series: Series, tables: Path) -> Setting:
        """Fits the parent."""
        rows = Stretches.of([series.train.astype(np.float32)])
        began = time.process_time()
        fitted = fit(job.kind, rows, series.features, seed=job.seed)
        seconds = time.process_time() - began
        training, held_out = split(fitted, rows)
        dense = fitted.recalibrated(held_out, training)  # as a cycle does
        ground = Ground(dense, training, held_out, job.seed)
        return cls(job, series, ground, fitted, seconds, quality(dense, series), FolderTables(tables))


def targets_of(kind: str) -> tuple[str, ...]:
    """What a kind is pruned to."""
    return (*TARGETS, FLOOR, *((HALF,) if kind == "isolation_forest" else ()))


def methods_of(job: Job, target: str, first_seed: int = 0) -> tuple[str, ...]:
    """Ours, and those it is held against there."""
    if job.kind == "isolation_forest":
        return (OURS, *OF_TREES)
    names = [name for name in BASELINES if name != "masks" or (target == MASKED and job.seed == first_seed)]
    return (OURS, *(name for name in names if job.batch > 1 or name not in {"torch_pruning", "masks"}))


def cells_of(setting: Setting, missing: Iterable[tuple[str, str]], known: Mapping[str, Cell]) -> Iterator[Cell]:
    """The missing cells, one after the other.

    Args:
        setting: The parent.
        missing: Targets and methods, ours first at each target.
        known: Cells of ours that are there, by target; baselines take their widths from them.
    """
    ours = dict(known)
    for target, method in missing:
        if method == OURS:
            ours[target] = _ours(setting, target)
            yield ours[target]
        elif ours[target]["built"]:
            yield _baseline(setting, target, method, ours[target])


def _ours(setting: Setting, target: str) -> Cell:
    """A cycle as the product runs it; the forest's `HALF` asks for widths instead of a time."""
    job = setting.job
    if target == HALF:
        units = {name: width // 2 for name, width in setting.fitted.network.units.items()}
        return _made(setting, target, OURS, Wanted(Structure(), units, 0), _derived)
    budget = Budget(speedup=_speedup(setting, target), batch=job.batch)
    updates = 0

    def counted(stage: str, _done: float, message: str) -> None:
        nonlocal updates
        updates += stage == "fine-tune" and bool(message)

    cpu, wall = time.process_time(), time.perf_counter()
    candidate = run_cycle(
        setting.fitted,
        Stretches.of([setting.series.train.astype(np.float32)]),
        budget,
        parent_version=1,
        version=2,
        options=CycleOptions(seed=job.seed, tables=setting.tables),
        progress=counted,
        clock=time.process_time,
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    stages = candidate.outcome.stages
    cell = _named(setting, target, OURS) | {
        "asked": budget.speedup,
        "built": candidate.child is not None,
        "outcome": candidate.outcome.outcome,
        "reason": candidate.outcome.reason,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "stages": stages,
        "train_seconds": stages.get("prune", 0.0) + stages.get("fine-tune", 0.0),
    }
    if candidate.child is None or candidate.plan is None or candidate.outcome.gate is None:
        best = candidate.outcome.best_reachable
        return _rounded(cell | {"reachable": best.speedup if best else None})
    return _rounded(cell | _of_candidate(setting, candidate, updates))


def _of_candidate(setting: Setting, candidate: Candidate, updates: int) -> Cell:
    plan, outcome, child = candidate.plan, candidate.outcome, candidate.child
    assert plan is not None
    assert child is not None
    assert outcome.child is not None
    assert outcome.gate is not None
    return {
        **_wanted_fields(
            Wanted(plan.structure, dict(plan.units), round(updates / max(gradient_members(child.network), 1)))
        ),
        "dense_p50": outcome.parent.p50_seconds,
        "dense_p99": outcome.parent.p99_seconds,
        "p50": outcome.child.p50_seconds,
        "p99": outcome.child.p99_seconds,
        "bytes": outcome.child.bytes,
        "dense_bytes": outcome.parent.bytes,
        **_checks(outcome.gate),
        **_quality_fields(setting, child),
    }


def _baseline(setting: Setting, target: str, method: str, ours: Cell) -> Cell:
    structure = Structure(tuple(ours["without"]), tuple((name, value) for name, value in ours["levers"]))
    wanted = Wanted(structure, ours["units"], ours["updates"])
    return _made(setting, target, method, wanted, BASELINES[method], ours)


def _made(setting: Setting, target: str, method: str, wanted: Wanted, how: Method, ours: Cell | None = None) -> Cell:
    """A child of given widths: built (once for the same widths), calibrated, measured, judged."""
    ground, cell = setting.ground, _named(setting, target, method)
    key = (method, repr(wanted))
    try:
        if key not in setting.made:
            cpu, wall = time.process_time(), time.perf_counter()
            child = ground.dense.with_network(how(ground, wanted))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            setting.made[key] = Built(child.recalibrated(ground.held_out, ground.training), cpu, wall)
    except NotPossible as reason:
        return cell | {"built": False, "outcome": "not possible", "reason": str(reason)}
    built = setting.made[key]
    child = built.child
    graph, dense_graph = step_graph(child), step_graph(ground.dense)
    dense_time, child_time = _times(setting, graph, dense_graph, ours)
    asked = ours["asked"] if ours else 1.0
    budget = Budget(speedup=asked, batch=setting.job.batch)
    rng = np.random.default_rng(ground.seed)
    gate = judge(ground.dense, child, ground.held_out, child_time, dense_time, len(graph), budget, GateLimits(), rng)
    return _rounded(
        cell
        | {
            "asked": asked,
            "built": True,
            "outcome": "adopted" if gate.passed else "rejected",
            "reason": gate.reason,
            "cpu_seconds": built.cpu_seconds,
            "wall_seconds": built.wall_seconds,
            "train_seconds": built.cpu_seconds,
            **_wanted_fields(wanted),
            "dense_p50": dense_time.p50_seconds,
            "dense_p99": dense_time.p99_seconds,
            "p50": child_time.p50_seconds,
            "p99": child_time.p99_seconds,
            "bytes": len(graph),
            "dense_bytes": len(dense_graph),
            **_checks(gate),
            **_quality_fields(setting, child),
        }
    )


def _times(setting: Setting, graph: bytes, dense_graph: bytes, ours: Cell | None) -> tuple[Latency, Latency]:
    """Of the parent and the child; networks of the shapes of ours take its times (they do not depend on weights)."""
    batch = setting.job.batch
    if ours is None or len(graph) != ours["bytes"]:
        dense_time, child_time = measure([dense_graph, graph], batch, rounds=ROUNDS)
        return dense_time, child_time
    return Latency(ours["dense_p50"], ours["dense_p99"], batch), Latency(ours["p50"], ours["p99"], batch)


def _speedup(setting: Setting, target: str) -> float:
    """What is asked for; at the floor a little less than the narrowest widths have."""
    if target in TARGETS:
        return TARGETS[target]
    dense = setting.ground.dense
    narrowest = dense.network.resized(list(level_units(dense.network))[-1])
    graphs = [step_graph(dense), step_graph(dense.with_network(narrowest))]
    whole, least = measure(graphs, setting.job.batch, rounds=ROUNDS)
    return max(1.0, BELOW_FLOOR * whole.p50_seconds / least.p50_seconds)


def quality(fitted: Fitted, series: Series) -> tuple[float, float]:
    """Average precision and VUS-PR on the test part, warmed up with the last training rows."""
    warm = series.train[-(fitted.warm_up_points + WARM_ROWS) :]
    rows = np.concatenate([warm, series.test]).astype(np.float32)
    scores = scored_everywhere(fitted.trace(rows[None]).score[0, len(warm) :])
    precision = float(average_precision_score(series.labels, scores))
    return precision, vus_pr(scores, series.labels, dominant_period(series.train[:, 0]))


def _derived(ground: Ground, wanted: Wanted) -> Network:
    how = DeriveOptions(seed=ground.seed, updates=wanted.updates)
    return Derivation(ground.dense, ground.training, how).down_to(wanted.units).network


def _named(setting: Setting, target: str, method: str) -> Cell:
    job = setting.job
    return {
        "kind": job.kind,
        "series": job.series,
        "seed": job.seed,
        "batch": job.batch,
        "target": target,
        "method": method,
        "fit_seconds": round(setting.fit_seconds, 2),
        "parent_ap": round(setting.quality[0], DIGITS),
        "parent_vus_pr": round(setting.quality[1], DIGITS),
        "parent_error": round(trimmed_error(setting.ground.dense, setting.ground.held_out), DIGITS),
    }


def _wanted_fields(wanted: Wanted) -> Cell:
    structure = wanted.structure
    return {
        "without": list(structure.without),
        "levers": [list(lever) for lever in structure.levers],
        "units": wanted.units,
        "updates": wanted.updates,
    }


def _checks(gate: Gate) -> Cell:
    """What the gate measured, by check; times and bytes against the budget apart."""
    values = {check.name: check.value for check in gate.checks}
    passed = {check.name: check.passed for check in gate.checks}
    quality_checks = ("error", "alarms", "alarm rate", "tail", "injected")
    return {
        "checks": {name: values[name] for name in quality_checks},
        "alarm_rate_passed": passed["alarm rate"],
        "in_budget": all(ok for name, ok in passed.items() if name not in quality_checks),
    }


def _quality_fields(setting: Setting, child: Fitted) -> Cell:
    precision, volume = quality(child, setting.series)
    return {"ap": precision, "vus_pr": volume}


def _rounded(value: Any) -> Any:
    """Numbers with as many digits as mean something; None for what is no number."""
    if isinstance(value, dict):
        return {key: _rounded(it) for key, it in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
