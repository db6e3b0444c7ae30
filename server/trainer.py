"""Fitting and pruning, in a process of its own: the only part of the service that imports torch.

`python -m server.trainer` reads one job (JSON, made by `server.jobs`) from standard input and writes JSON lines to
standard output: `progress` lines while it works, then one `result` or `error`. Bundles are written into the store's
bundle folder, where nobody sees them until the catalog names them. The log goes to standard error.

The command line calls `run_job` in its own process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from detectors.bundle import WEIGHTS, Bundle, Lineage, read_bundle, write_bundle
from detectors.errors import CorruptBundleError, InvalidInputError, PreconditionError, PrunewatchError
from detectors.training.export import to_bundle
from detectors.training.fit import FitOptions, Progress, divided, fit
from detectors.training.fitted import ErrorOptions, Fitted, load, save
from detectors.training.stretches import Missing, Stretches
from pruning.cycle import Candidate, CycleOptions, run_cycle, sized
from pruning.frontier import Frontier, FrontierOptions, build_frontier
from pruning.gate import GateLimits
from pruning.gradual import fit_while_pruning
from pruning.latency import measure
from pruning.outcome import Budget, Latency
from pruning.search import Floor
from pruning.table import FolderTables
from server.config import DEFAULT_BATCH
from server.frontiers import read_frontier, write_frontier
from server.store import BUNDLES, TABLES
from server.stretches import Stretch, read_stretches

PARENT = "parent"
MAXIMUM_ROWS = 60_000  # points a job works on: more cost minutes and teach a network of this size nothing
STREAMED_ROWS = 1024  # of those, recent ones that are taken even where fewer came from files
GUARD_POINTS = 25  # either side of a flagged point that is not learned from: anomalies begin before they are seen
LOW_PRIORITY = 10  # niceness: scoring on the same cores comes first

log = logging.getLogger("prunewatch.trainer")

Job = Mapping[str, Any]


def run_job(job: Job, report: Progress) -> dict[str, Any]:
    """Runs a job of `server.jobs`.

    Args:
        job: `fit`, `cycle` or `frontier`.
        report: Told the stage, the share of it that is done, and a message.

    Returns:
        What `server.publish` takes, and what `prune --json` and `frontier --json` print.

    Raises:
        PrunewatchError: the job can not be done, for a reason that a user can mend.
    """
    torch.set_num_threads(max(1, int(job["threads"])))
    torch.set_flush_denormal(True)  # decaying LSTM cells reach subnormals, which cost a hundred cycles each
    work = {"fit": _fit, "cycle": _cycle, "frontier": _frontier}[job["kind"]]
    return work(job, report)


def _fit(job: Job, report: Progress) -> dict[str, Any]:
    stretches = _points(job, job["features"], job["error"]["missing"])
    error = ErrorOptions(**job["error"])
    data = Stretches.of([stretch.values for stretch in stretches], missing=error.missing)
    dense, latency = None, None
    if job.get("budget"):
        fitted, latency, dense = _fit_while_pruning(job, data, error, report)
    else:
        fitted = _fit_dense(job, data, error, report)
    report("export", 0.0, "writing the bundle")
    lineage = _lineage("fit", stretches, job["seed"])
    bundle = to_bundle(fitted, detector=job["detector"], version=job["version"], device_class=PARENT, lineage=lineage)
    _write(job, bundle)
    if latency is None:
        (latency,) = measure([bundle.graph], job.get("batch", DEFAULT_BATCH))
    _, held_out = divided(data, fitted.network, fitted.warm_up_points)
    parent = replace(sized(job["version"], fitted, latency, held_out), hash=bundle.hash)
    return {"outcome": "adopted", "parent": asdict(parent), "dense": dense, "rows": len(data)}


def _fit_dense(job: Job, data: Stretches, error: ErrorOptions, report: Progress) -> Fitted:
    return fit(
        job["network"],
        data,
        tuple(job["features"]),
        seed=job["seed"],
        options=job["options"],
        how=FitOptions(**job["learning"]),
        error=error,
        start=_load(job, job["start"]) if job.get("start") else None,
        progress=report,
    )


def _fit_while_pruning(
    job: Job, data: Stretches, error: ErrorOptions, report: Progress
) -> tuple[Fitted, Latency, dict[str, Any]]:
    """The narrow detector, its time, and what it began as, measured in the same run."""
    budget = Budget(**job["budget"])
    made = fit_while_pruning(
        job["network"],
        data,
        tuple(job["features"]),
        budget,
        seed=job["seed"],
        options=job["options"],
        how=FitOptions(**job["learning"]),
        error=error,
        tables=FolderTables(Path(job["store"]) / TABLES),
        progress=report,
    )
    if made.fitted is None:
        assert isinstance(made.plan, Floor)
        raise PreconditionError(
            "what was built misses the budget." if made.narrower else "the budget is below the floor of this network.",
            field="budget",
            hint=f"Best reachable: {made.plan.reachable(budget, narrower=made.narrower).said()}",
        )
    return made.fitted, made.latency, {"units": made.dense_units, "p50_seconds": made.dense.p50_seconds}


def _cycle(job: Job, report: Progress) -> dict[str, Any]:
    parent = _load(job, job["parent"]["hash"])
    stretches = _points(job, parent.features, parent.how.missing)
    budget = Budget(**job["budget"])
    candidate = run_cycle(
        parent,
        Stretches.of([stretch.values for stretch in stretches], missing=parent.how.missing),
        budget,
        parent_version=job["parent"]["version"],
        version=job["version"],
        options=CycleOptions(
            seed=job["seed"],
            update_parent=job["update_parent"],
            frontier_first=job["frontier_first"],
            dry_run=job["dry_run"],
            limits=GateLimits(**job["gate"]),
            tables=FolderTables(Path(job["store"]) / TABLES),
            frontier=None if job.get("fresh") else _kept_frontier(job, budget.batch),
        ),
        progress=report,
    )
    return _published(job, candidate, stretches, report)


def _kept_frontier(job: Job, batch: int) -> Frontier | None:
    """The frontier of the job's parent; None where there is none that can be used."""
    stored = read_frontier(Path(job["store"]), job["parent"]["hash"], batch)
    if stored is None:
        return None
    try:
        return Frontier(stored.facts, tuple(load(weights) for weights in stored.weights))
    except CorruptBundleError:
        log.warning("the frontier of %s can not be read by this version and is not used", job["detector"])
        return None


def _frontier(job: Job, report: Progress) -> dict[str, Any]:
    parent = _load(job, job["parent"]["hash"])
    stretches = _points(job, parent.features, parent.how.missing)
    built = build_frontier(
        parent,
        Stretches.of([stretch.values for stretch in stretches], missing=parent.how.missing),
        batch=job["batch"],
        points=job["points"],
        options=FrontierOptions(
            seed=job["seed"],
            limits=GateLimits(**job["gate"]),
            tables=FolderTables(Path(job["store"]) / TABLES),
        ),
        progress=report,
    )
    facts = replace(built.facts, parent=replace(built.facts.parent, **job["parent"]))
    weights = [save(child) for child in built.children]
    stored = write_frontier(Path(job["store"]), job["parent"]["hash"], facts, weights, time.time())
    return stored.shown(job["detector"], job["device_class"])


def _published(job: Job, candidate: Candidate, stretches: list[Stretch], report: Progress) -> dict[str, Any]:
    """Writes the bundles of an adopted candidate and puts their hashes into the outcome."""
    outcome = candidate.outcome
    parent = replace(outcome.parent, hash=job["parent"]["hash"])
    child = outcome.child
    if outcome.outcome == "adopted" and candidate.child is not None and child is not None:
        report("export", 0.0, "writing the bundles")
        if candidate.updated:
            lineage = _lineage("update", stretches, job["seed"], parent=job["parent"]["hash"])
            bundle = to_bundle(
                candidate.parent,
                detector=job["detector"],
                version=job["version"],
                device_class=PARENT,
                lineage=lineage,
            )
            _write(job, bundle)
            parent = replace(parent, hash=bundle.hash, version=job["version"], bytes=bundle.size)
        seed = (outcome.plan or {}).get("frontier", job)["seed"]
        lineage = _lineage("prune", stretches, seed, parent=parent.hash).model_copy(
            update={"kept": candidate.kept, "criterion": candidate.criterion}
        )
        bundle = to_bundle(
            candidate.child,
            detector=job["detector"],
            version=job["version"],
            device_class=job["device_class"],
            lineage=lineage,
            gate=outcome.gate.to_dict() if outcome.gate else None,
        )
        _write(job, bundle)
        child = replace(child, hash=bundle.hash)
    removal = None
    if outcome.report is not None:
        spans = {"data_rows", "data_first_stamp", "data_last_stamp"}
        removal = {**outcome.report, "data": _lineage("prune", stretches, job["seed"]).model_dump(include=spans)}
    made = replace(outcome, parent=parent, child=child, report=removal)
    return {**made.to_dict(), "version": child.version if child else None}


def _points(job: Job, features: Sequence[str], missing: Missing) -> list[Stretch]:
    """The normal points of the job's history: those that came from files, and about as many that were streamed.

    What a detector was first fitted to stays in, so that a thousand alike recent series do not make it forget.
    """
    paths = [Path(path) for path in job["history"]]
    how = {"max_gap": job.get("max_gap"), "keep_missing": missing == "carry", "seed": job["seed"]}
    given = read_stretches(paths, features, imported=True, max_rows=MAXIMUM_ROWS, **how)
    rows = sum(len(stretch.stamps) for stretch in given)
    room = max(rows, STREAMED_ROWS) if rows else MAXIMUM_ROWS
    streamed = read_stretches(paths, features, imported=False, max_rows=room, guard=GUARD_POINTS, **how)
    if not given and not streamed:
        raise InvalidInputError("holds no complete normal points.", field="data", hint="Give more rows.")
    return [*given, *streamed]


def _load(job: Job, bundle_hash: str) -> Fitted:
    return load(read_bundle(_bundles(job) / bundle_hash, bundle_hash, weights=True).files[WEIGHTS])


def _write(job: Job, bundle: Bundle) -> None:
    write_bundle(bundle, _bundles(job) / bundle.hash)


def _bundles(job: Job) -> Path:
    return Path(job["store"]) / BUNDLES


def _lineage(cause: str, stretches: list[Stretch], seed: int, parent: str | None = None) -> Lineage:
    return Lineage.model_validate(
        {
            "cause": cause,
            "parent": parent,
            "seed": seed,
            "data_rows": sum(len(stretch.stamps) for stretch in stretches),
            "data_first_stamp": min(int(stretch.stamps[0]) for stretch in stretches),
            "data_last_stamp": max(int(stretch.stamps[-1]) for stretch in stretches),
        }
    )


def main() -> int:
    """Runs the job on standard input; 0 when it ended with a result or with an error that a user can mend."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.nice(LOW_PRIORITY)
    out = sys.stdout
    try:
        result = run_job(json.loads(sys.stdin.read()), _reporter(out))
        _say(out, {"event": "result", **result})
    except PrunewatchError as error:
        shown = {"problem": error.problem, "field": error.field, "hint": error.hint}
        _say(out, {"event": "error", "type": type(error).__name__, **shown})
    return 0


def _reporter(out: TextIO) -> Progress:
    """Progress lines, one for each new stage and per cent."""
    last: tuple[str, int] = ("", -1)

    def report(stage: str, done: float, message: str) -> None:
        nonlocal last
        now = (stage, int(done * 100))
        if now != last:
            last = now
            _say(out, {"event": "progress", "stage": stage, "done": done, "message": message})

    return report


def _say(out: TextIO, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
