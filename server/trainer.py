"""Fitting and pruning, in a process of its own: the only part of the service that imports torch.

`python -m server.trainer` reads one job (JSON, made by `server.jobs`) from standard input and writes JSON lines to
standard output: `progress` lines while it works, then one `result` or `error`. Bundles are written into the store's
bundle folder, where nobody sees them until the catalog names them. The log goes to standard error.

The command line calls `run_job` in its own process.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from detectors.bundle import WEIGHTS, Bundle, Lineage, read_bundle, write_bundle
from detectors.errors import CorruptBundleError, InvalidInputError, PreconditionError, PrunewatchError
from detectors.failpoints import failpoint
from detectors.training.export import step_graph, to_bundle
from detectors.training.fit import MINIMUM_ROWS, FitOptions, Progress, divided, fit, partly
from detectors.training.fitted import ErrorOptions, Fitted, load, save
from detectors.training.stretches import Missing, Stretches
from pruning.cycle import Candidate, CycleOptions, run_cycle, sized, split
from pruning.frontier import Frontier, FrontierOptions, build_frontier
from pruning.gate import GateLimits, Labelled
from pruning.gradual import fit_while_pruning
from pruning.injection import MARGIN_POINTS, Events
from pruning.latency import measure
from pruning.outcome import Budget, Latency
from pruning.parent_gate import Golden, ParentLimits, judge_parent
from pruning.search import Floor
from pruning.table import FolderTables, probe_grid
from pruning.update import ParentJudge, Updated, updated
from server.config import DEFAULT_BATCH
from server.fleet.probe_graphs import write_graphs
from server.frontiers import read_frontier, write_frontier
from server.golden import inherit_golden, read_golden, write_golden
from server.labelled import read_labelled
from server.layout import BUNDLES, TABLES
from server.lifeline import end_with_parent
from server.logs import set_up_as_inherited
from server.reservoir import GUARD_POINTS, is_reservoir
from server.spans import Said
from server.stretches import Stretch, read_stretches, some_of
from server.training import out_of_memory

PARENT = "parent"
MAXIMUM_ROWS = 60_000  # points a job works on: more cost minutes and teach a network of this size nothing
STREAMED_ROWS = 1024  # of those, recent ones that are taken even where fewer came from files
NO_MEMORY = "can't allocate memory"  # what torch says of it, in a RuntimeError

log = logging.getLogger("prunewatch.trainer")

Job = Mapping[str, Any]


def run_job(job: Job, report: Progress) -> dict[str, Any]:
    """Runs a job of `server.jobs`.

    Args:
        job: `fit`, `cycle`, `round`, `frontier` or `probe`.
        report: Told the stage, the share of it that is done, and a message.

    Returns:
        What `server.publish` takes, and what `prune --json` and `frontier --json` print.

    Raises:
        PrunewatchError: the job can not be done, for a reason that a user can mend.
    """
    torch.set_num_threads(max(1, int(job["threads"])))
    torch.set_flush_denormal(True)  # decaying LSTM cells reach subnormals, which cost a hundred cycles each
    work = {"fit": _fit, "cycle": _cycle, "round": _round, "frontier": _frontier, "probe": _probe}[job["kind"]]
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
    failpoint("trainer.trained")
    _, held_out = divided(data, fitted.network, fitted.warm_up_points)
    golden = _golden(job, fitted, held_out)
    report("export", 0.0, "writing the bundle")
    lineage = _lineage("fit", stretches, job["seed"])
    bundle = to_bundle(fitted, detector=job["detector"], version=job["version"], device_class=PARENT, lineage=lineage)
    _write(job, bundle)
    write_golden(Path(job["store"]), job["detector"], bundle.hash, golden)
    if latency is None:
        (latency,) = measure([bundle.graph], job.get("batch", DEFAULT_BATCH))
    parent = replace(sized(job["version"], fitted, latency, held_out), hash=bundle.hash)
    return {"outcome": "adopted", "parent": asdict(parent), "dense": dense, "rows": len(data)}


def _golden(job: Job, fitted: Fitted, held_out: Stretches) -> Golden:
    """What later parents are asked about: that of the parent before, where nobody asked for this fit.

    Raises:
        PreconditionError: this parent fails by it.
    """
    kept = read_golden(Path(job["store"]), job["detector"], job["first"]) if job.get("first") else None
    if kept is None:
        return Golden.of(fitted, held_out, job["seed"])
    inherited = replace(kept, follows=False)
    gate = judge_parent(inherited, fitted, ParentLimits(**job["parent_gate"], threshold=job["threshold"]))
    if not gate.passed:
        raise PreconditionError(
            f"the new parent is not published: {gate.reason}.",
            field="data",
            hint="If what it learned is right, fit it by hand: `prunewatch fit`.",
        )
    return inherited


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
        options=_cycle_options(job, parent, budget),
        progress=report,
    )
    return _published(job, candidate, stretches, report)


def _round(job: Job, report: Progress) -> dict[str, Any]:
    """The parent is updated once, and a child made for each device class; `children` has an outcome for each."""
    parent = _load(job, job["parent"]["hash"])
    stretches = _points(job, parent.features, parent.how.missing)
    data = Stretches.of([stretch.values for stretch in stretches], missing=parent.how.missing)
    training, held_out = split(parent, data)
    report("update", 0.0, "")
    newer = updated(
        parent,
        training,
        held_out,
        seed=job["seed"],
        judge=_parent_judge(job, parent),
        labelled=_labelled(job, parent),
        limits=GateLimits(**job["gate"]),
        progress=report,
    )
    facts = _parent_facts(job, newer, held_out, stretches)
    children = (
        []
        if newer.refused
        else [
            _child(job, made_for, facts, newer.parent, data, stretches, partly(report, turn, len(job["classes"])))
            for turn, made_for in enumerate(job["classes"])
        ]
    )
    adopted = [child for child in children if child["outcome"] == "adopted"]
    follows = newer.changed and not newer.refused and (adopted or job["unpruned"])
    reason = f"the updated parent: {newer.gate.reason}" if newer.gate and newer.refused else ""
    return {
        "outcome": "adopted" if adopted or follows else "rejected",
        "reason": reason or "; ".join(f"{it['device_class']}: {it['reason']}" for it in children if it["reason"]),
        "parent": facts,
        "updated": bool(follows),
        "parent_gate": newer.gate.to_dict() if newer.gate else None,
        "children": children,
        "unpruned": job["unpruned"],
        "version": job["version"],
    }


def _child(
    job: Job,
    made_for: Mapping[str, Any],
    parent: Mapping[str, Any],
    dense: Fitted,
    data: Stretches,
    stretches: list[Stretch],
    report: Progress,
) -> dict[str, Any]:
    """A cycle of one device class, whose parent has been updated already."""
    own = {**job, **made_for, "parent": {key: parent[key] for key in ("hash", "version")}}
    own |= {"update_parent": False, "frontier_first": True, "dry_run": False}
    budget = Budget(**own["budget"])
    candidate = run_cycle(
        dense,
        data,
        budget,
        parent_version=parent["version"],
        version=job["version"],
        options=_cycle_options(own, dense, budget),
        progress=report,
    )
    outcome = _published(own, candidate, stretches, report)
    return {**outcome, "device_class": own["device_class"], "batch": budget.batch}


def _parent_facts(job: Job, newer: Updated, held_out: Stretches, stretches: list[Stretch]) -> dict[str, Any]:
    """The parent that children are made of, measured; its bundle is written where it was trained on."""
    (latency,) = measure([step_graph(newer.parent)], job["batch"])
    known = job["parent"]
    facts = replace(sized(known["version"], newer.parent, latency, held_out), hash=known["hash"])
    if newer.changed and not newer.refused:
        lineage = _lineage("update", stretches, job["seed"], parent=known["hash"])
        bundle = to_bundle(
            newer.parent,
            detector=job["detector"],
            version=job["version"],
            device_class=PARENT,
            lineage=lineage,
            gate=newer.gate.to_dict() if newer.gate else None,
        )
        _write(job, bundle)
        inherit_golden(Path(job["store"]), job["detector"], known["hash"], bundle.hash)
        facts = replace(facts, hash=bundle.hash, version=job["version"], bytes=bundle.size)
    return asdict(facts)


def _cycle_options(job: Job, parent: Fitted, budget: Budget) -> CycleOptions:
    return CycleOptions(
        seed=job["seed"],
        update_parent=job["update_parent"],
        frontier_first=job["frontier_first"],
        dry_run=job["dry_run"],
        limits=GateLimits(**job["gate"]),
        parent_judge=_parent_judge(job, parent) if job["update_parent"] else None,
        labelled=_labelled(job, parent),
        tables=FolderTables(Path(job["store"]) / TABLES),
        # A frontier was measured here, and says nothing of what is for devices.
        frontier=None if job.get("fresh") or job.get("where") else _kept_frontier(job, budget.batch),
        where=job.get("where"),
    )


def _parent_judge(job: Job, parent: Fitted) -> ParentJudge:
    """The gate of a parent that is trained on."""
    golden = read_golden(Path(job["store"]), job["detector"], job["parent"]["hash"]) or _late_golden(job, parent)
    limits = ParentLimits(**job["parent_gate"], threshold=job["threshold"])
    return lambda newer: judge_parent(golden, newer, limits)


def _late_golden(job: Job, parent: Fitted) -> Golden:
    """A golden set for a parent that has none, as in stores of older versions: what it is now is what must stay.

    Its points are those that came from files, which are what it was fitted to, where there are enough of them.
    """
    features, missing, warm = parent.features, parent.how.missing, parent.warm_up_points
    enough = warm + MINIMUM_ROWS * parent.network.stride
    data = Stretches.of([stretch.values for stretch in _imported(job, features, missing)], missing=missing)
    if not data.longer_than(enough).parts:
        data = Stretches.of([stretch.values for stretch in _points(job, features, missing)], missing=missing)
    golden = Golden.of(parent, divided(data, parent.network, warm)[1], job["seed"])
    write_golden(Path(job["store"]), job["detector"], job["parent"]["hash"], golden)
    return golden


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


def _probe(job: Job, report: Progress) -> dict[str, Any]:
    """Writes the graphs that devices of a class measure for the table of a parent."""
    report("export", 0.0, "drawing networks of many widths")
    parent = _load(job, job["parent"]["hash"])
    grid, graphs = probe_grid(parent, job["batch"], job["where"], job["graphs"])
    write_graphs(Path(job["store"]), graphs)
    return {"outcome": "made", "grid": grid.to_json(), "parent": job["parent"]}


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
            inherit_golden(Path(job["store"]), job["detector"], job["parent"]["hash"], bundle.hash)
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
    foretold = bool((outcome.plan or {}).get("foretold"))
    times = f"as devices of {job['device_class']} foretell" if foretold else "measured on the hub"
    return {**made.to_dict(), "version": child.version if child else None, "times": times}


def _points(job: Job, features: Sequence[str], missing: Missing) -> list[Stretch]:
    """The normal points of the job's history: from files, about as many that were streamed, and as many old ones.

    What a detector was first fitted to stays in, so that a thousand alike recent series do not make it forget; so do
    stretches of the reservoir, so that it knows the seasons.
    """
    paths, how = [Path(path) for path in job["history"]], _how(job, missing)
    given = _imported(job, features, missing)
    rows = sum(len(stretch.stamps) for stretch in given)
    room = max(rows, STREAMED_ROWS) if rows else MAXIMUM_ROWS
    recent = [path for path in paths if not is_reservoir(path)]
    streamed = read_stretches(recent, features, imported=False, max_rows=room, **how)
    old = read_stretches([path for path in paths if is_reservoir(path)], features, imported=False, **how)
    if not given and not streamed and not old:
        raise InvalidInputError("holds no complete normal points.", field="data", hint="Give more rows.")
    return [*given, *some_of(old, room, job["seed"]), *streamed]


def _imported(job: Job, features: Sequence[str], missing: Missing) -> list[Stretch]:
    """The normal points that came from files."""
    paths = [Path(path) for path in job["history"]]
    return read_stretches(paths, features, imported=True, max_rows=MAXIMUM_ROWS, **_how(job, missing))


def _how(job: Job, missing: Missing) -> dict[str, Any]:
    """How the points of a job are read."""
    return {
        "max_gap": job.get("max_gap"),
        "shift": job.get("shift"),
        "keep_missing": missing == "carry",
        "guard": GUARD_POINTS,
        "said": Said.from_json(job),
        "seed": job["seed"],
    }


def _labelled(job: Job, parent: Fitted) -> Labelled | None:
    """The labelled anomalies of the job's history; None where there are none."""
    found = read_labelled(
        [Path(path) for path in job["history"]],
        parent.features,
        Said.from_json(job),
        before=parent.warm_up_points + MARGIN_POINTS,
        max_gap=job.get("max_gap"),
        keep_missing=parent.how.missing == "carry",
    )
    if found is None:
        return None
    return Labelled(Events(found.points, found.labels, ("labelled",) * len(found.points)), job["threshold"])


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
    set_up_as_inherited()
    end_with_parent()
    out = sys.stdout
    try:
        job = json.loads(sys.stdin.read())
        failpoint("trainer.begun")
        result = run_job(job, _reporter(out))
        failpoint("trainer.before_result")
        _say(out, {"event": "result", **result})
    except PrunewatchError as error:
        _refuse(out, error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and NO_MEMORY not in str(error):
            raise
        log.exception("out of memory")
        _refuse(out, out_of_memory("an allocation failed"))
    return 0


def _refuse(out: TextIO, error: PrunewatchError) -> None:
    shown = {"problem": error.problem, "field": error.field, "hint": error.hint}
    _say(out, {"event": "error", "type": type(error).__name__, **shown})


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
