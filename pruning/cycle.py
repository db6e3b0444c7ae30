"""One cycle: from a dense parent and recent points to a gated candidate inside the budget, or to the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import PreconditionError
from detectors.training.export import step_graph
from detectors.training.fit import HELD_OUT, Progress, seeded, silent
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.derive import UPDATES, Derivation, DeriveOptions
from pruning.gate import GateLimits, Labelled, judge, trimmed_error
from pruning.groups import prunable
from pruning.importance import DEFAULT
from pruning.latency import measure
from pruning.limits import limits, said, within
from pruning.outcome import Budget, Gate, Latency, Outcome, Sized
from pruning.report import report_on
from pruning.search import Floor, Plan, Search, stages, total
from pruning.structures import Structure
from pruning.table import NoTables, Tables
from pruning.update import ParentJudge, updated

if TYPE_CHECKING:
    from pruning.frontier import Frontier

CORRECTIONS = 3  # children built at most: one that misses the budget is made narrower
FINAL_ROUNDS = 21  # of the measurement that decides
MINIMUM_JUDGED = 60  # points of a run that calibration and the gate need beside the warm-up


@dataclass(frozen=True)
class CycleOptions:
    """How a cycle works.

    Attributes:
        criterion: Importance of units.
        repair: Whether the kept units take over what they can of the dropped ones.
        seed: Same seed, parent and points: same child (measured times aside).
        update_parent: Train the parent on with the recent points.
        dry_run: Stop at the plan; nothing is trained, not even the parent.
        updates: Gradient steps of fine-tuning each member of the network, over all stages.
        limits: Of the gate.
        parent_judge: The gate of a parent that was trained on; a cycle whose parent fails it ends there.
        labelled: Anomalies that people have labelled, for the gate; None: there are none.
        tables: Where latency tables are kept from one cycle to the next.
        frontier: Children of the parent to pick from, where the batch is the budget's.
        frontier_first: Pick before the parent is updated, which then happens only where nothing was picked. Else an
            updated parent has no children yet.
        where: What the child is for, where that is not this machine (`Search`). The budget is met or missed there, so
            a child is built once.
    """

    criterion: str = DEFAULT
    repair: bool = True
    seed: int = 0
    update_parent: bool = False
    dry_run: bool = False
    updates: int = UPDATES
    limits: GateLimits = field(default_factory=GateLimits)
    parent_judge: ParentJudge | None = None
    labelled: Labelled | None = None
    tables: Tables = field(default_factory=NoTables)
    frontier: Frontier | None = None
    frontier_first: bool = True
    where: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Candidate:
    """What a cycle made.

    Attributes:
        outcome: The proposal, with sizes, times and the gate.
        parent: The dense parent as it now is; `updated` says whether it differs from the one given.
        child: The pruned detector; None where none was built.
        criterion: Importance by which units were chosen.
        kept: The parent's units that are still in the child, by group; none of a layer that was bypassed.
        plan: What was chosen; None where the budget can not be met, and where the child is one of a frontier.
    """

    outcome: Outcome
    parent: Fitted
    updated: bool
    child: Fitted | None = None
    criterion: str | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)
    plan: Plan | None = None


def run_cycle(
    parent: Fitted,
    recent: Stretches,
    budget: Budget,
    *,
    parent_version: int,
    version: int,
    options: CycleOptions | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = perf_counter,
) -> Candidate:
    """Update, search, cut, repair, fine-tune, calibrate, measure, judge.

    Args:
        parent: The dense parent.
        recent: Normal points; the last `HELD_OUT` of each stretch are only judged on (where stretches are long
            enough, the share that a fit holds out too: a parent fitted to them has not been trained on it either).
        budget: What the child may cost at most.
        parent_version: Whose parent it is, for the report.
        version: What the child would be.
        options: How.
        progress: Told about every stage.
        clock: Seconds, for the report's stage times.

    Raises:
        InvalidInputError: too few recent points.
        PreconditionError: the network has nothing to prune.
    """
    how = options or CycleOptions()
    require_prunable(parent)
    training, held_out = split(parent, recent)
    report = _Report(budget, held_out, parent_version, version, progress, clock)
    with seeded(how.seed):
        return _run(parent, training, held_out, budget, how, report)


def _run(
    parent: Fitted, training: Stretches, held_out: Stretches, budget: Budget, how: CycleOptions, report: _Report
) -> Candidate:
    """The cycle on points that are split; global generators are seeded."""
    report.stage("update")
    dense, changed, picked = parent.recalibrated(held_out, training), False, None
    picks_first = how.frontier_first or not how.update_parent
    if picks_first:
        picked = _picked(dense, budget, training, held_out, how, report)
    if picked is None and how.update_parent and not how.dry_run:
        report.stage("update")
        newer = updated(
            parent,
            training,
            held_out,
            updates=how.updates,
            seed=how.seed,
            judge=how.parent_judge,
            labelled=how.labelled,
            limits=how.limits,
            progress=report.progress,
        )
        dense, changed = newer.parent, newer.changed
        if newer.gate is not None and newer.refused:
            return Candidate(report.refused(dense, newer.gate), dense, changed)
    if not picks_first and not changed:
        picked = _picked(dense, budget, training, held_out, how, report)
    if picked is not None:
        return picked

    report.stage("search")
    search = Search(dense, training, budget, how.criterion, how.seed, how.tables, how.where)
    plan = search.plan()
    if isinstance(plan, Floor):
        return Candidate(report.infeasible(dense, plan), dense, changed)
    if how.dry_run:
        return Candidate(report.planned(dense, search, plan, how), dense, changed, plan=plan)

    derivation = _derivation(dense, training, search, plan, how, report)
    child, plan, dense_time, child_time = _meet(budget, search, plan, derivation, training, held_out, report)

    made = _Made(child, derivation.kept, plan.structure, child_time, dense_time, described(search, plan, how.updates))
    gate = _judged(made, dense, budget, held_out, how, report)
    candidate = _concluded(made, gate, dense, budget, held_out, how, report)
    missed = Floor(plan.structure, plan.units, child_time, len(step_graph(child)), dense_time)
    in_budget = within(child_time, missed.bytes, dense_time, budget)
    best = None if in_budget else missed.reachable(budget, narrower=not search.is_narrowest(plan))
    outcome = replace(candidate.outcome, best_reachable=best)
    return replace(candidate, outcome=outcome, updated=changed, criterion=how.criterion, plan=plan)


def prune(
    parent: Fitted,
    rows: NDArray[np.float32],
    *,
    p50_seconds: float | None = None,
    p99_seconds: float | None = None,
    speedup: float | None = None,
    size_bytes: int | None = None,
    batch: int = 256,
    seed: int = 0,
    progress: Progress = silent,
) -> Candidate:
    """One cycle as a library call, for detectors that no hub hosts.

    Args:
        parent: What to prune; it stays as it is.
        rows: Normal points [N, F] in the order of time.
        p50_seconds: Budgets, see `pruning.outcome.Budget`; at least one is given.
        p99_seconds: The same.
        speedup: The same.
        size_bytes: The same.
        batch: Points a step.
        seed: Of every random draw.
        progress: Told about every stage.

    Returns:
        The candidate; `outcome.outcome` says whether the gate let it in, `child` is the pruned detector.

    Raises:
        InvalidInputError: too few rows, or no budget.
        PreconditionError: the network has nothing to prune.
    """
    budget = Budget(p50_seconds, p99_seconds, speedup, size_bytes, batch)
    data = Stretches.of([np.asarray(rows, np.float32)], missing=parent.how.missing)
    options = CycleOptions(seed=seed)
    return run_cycle(parent, data, budget, parent_version=1, version=2, options=options, progress=progress)


def sized(version: int, fitted: Fitted, latency: Latency, held_out: Stretches) -> Sized:
    """Size, speed and error of a detector; its bundle's hash is not known yet."""
    network = fitted.network
    return Sized(
        version,
        None,
        network.units,
        network.parameters_count,
        len(step_graph(fitted)),
        latency.p50_seconds,
        latency.p99_seconds,
        trimmed_error(fitted, held_out),
    )


def require_prunable(parent: Fitted) -> None:
    """Refuses a network without units to prune.

    Raises:
        PreconditionError: it is one.
    """
    if not prunable(parent.network):
        raise PreconditionError(
            f"the {parent.network.kind} network has no units that can be pruned.",
            field="network",
            hint="Fit a smaller one instead.",
        )


def split(parent: Fitted, recent: Stretches) -> tuple[Stretches, Stretches]:
    """Points to train on, and later ones to calibrate and judge on.

    Where the stretches are short, more of each is held out.

    Raises:
        InvalidInputError: there are too few points for both.
    """
    warm_up, judged = parent.warm_up_points, MINIMUM_JUDGED * parent.network.stride
    recent = recent.longer_than(warm_up)
    recent.require(2 * warm_up + 2 * judged, "a cycle")
    for share in (HELD_OUT, 0.4, 0.5):
        training, held_out = recent.split(share, context=warm_up, minimum=judged // 2)
        training, held_out = training.longer_than(warm_up), held_out.longer_than(warm_up + judged // 2)
        if sum(len(part) - warm_up for part in held_out.parts) >= judged:
            break
    training.require(warm_up + judged, "a cycle's fine-tuning")
    held_out.require(warm_up + judged, "a cycle's gate")
    return training, held_out


def _derivation(
    dense: Fitted, training: Stretches, search: Search, plan: Plan, how: CycleOptions, report: _Report
) -> Derivation:
    """What a plan is carried out with."""
    options = DeriveOptions(how.criterion, how.repair, how.updates, how.seed)
    return Derivation(
        dense,
        training,
        options,
        base=search.base(plan.structure),
        structure=plan.structure,
        stage=report.stage,
        progress=report.progress,
    )


def described(search: Search, plan: Plan, updates: int) -> dict[str, object]:
    """A plan as outcomes carry it; nothing is trained where no member learns by gradient."""
    network = search.base(plan.structure).network
    before = {name: network.units[name] for name in plan.units}
    trained = any(member.learned_by_gradient for member in network.members.values())
    return {
        **plan.structure.to_dict(),
        "groups": {
            name: {"before": before[name], "after": width, "damage": plan.damage[name]}
            for name, width in plan.units.items()
        },
        "damage": total(plan),
        "stages": stages(before, plan.units),
        "updates": updates if trained else 0,
        "rounds": plan.rounds,
        **({"foretold": True} if search.foretold else {}),
    }


def _meet(
    budget: Budget,
    search: Search,
    plan: Plan,
    derivation: Derivation,
    training: Stretches,
    held_out: Stretches,
    report: _Report,
) -> tuple[Fitted, Plan, Latency, Latency]:
    """Builds the child, measures it beside its parent, and makes it narrower while it misses the budget.

    What is for other machines is as fast as their table foretells, until they have measured it.
    """
    for turn in range(CORRECTIONS):
        child = derivation.down_to(plan.units)
        report.stage("calibrate")
        child = child.recalibrated(held_out, training)
        report.stage("measure")
        child_graph = step_graph(child)
        if search.foretold:
            dense_time, child_time = plan.dense, plan.latency
            break
        dense_time, child_time = measure([search.dense_graph, child_graph], budget.batch, rounds=FINAL_ROUNDS)
        if within(child_time, len(child_graph), dense_time, budget) or turn + 1 == CORRECTIONS:
            break
        narrower = search.tighter(plan, child_time, dense_time)
        if narrower is None:
            break
        plan = narrower
    return child, plan, dense_time, child_time


@dataclass(frozen=True)
class _Made:
    """A child that was made, and measured beside its parent."""

    child: Fitted
    kept: dict[str, list[int]]
    structure: Structure
    latency: Latency
    dense: Latency
    plan: dict[str, Any]


def _picked(
    dense: Fitted, budget: Budget, training: Stretches, held_out: Stretches, how: CycleOptions, report: _Report
) -> Candidate | None:
    """The child of the frontier that meets the budget and passes the gate; None where there is none."""
    if how.frontier is None or how.frontier.facts.batch != budget.batch:
        return None
    report.stage("frontier")
    found = how.frontier.pick(dense, budget, training, held_out)
    if found is None:
        return None
    facts = how.frontier.facts
    place = {"point": found.place + 1, "points": len(facts.points), "seed": facts.seed}
    plan = {**found.point.plan, "frontier": place}
    made = _Made(found.child, found.point.kept, Structure(), found.latency, found.dense, plan)
    if how.dry_run:
        return Candidate(report.waiting(made, dense, how), dense, False)
    as_built = replace(how, criterion=facts.criterion)
    gate = _judged(made, dense, budget, held_out, as_built, report)
    return _concluded(made, gate, dense, budget, held_out, as_built, report) if gate.passed else None


def _judged(
    made: _Made, dense: Fitted, budget: Budget, held_out: Stretches, how: CycleOptions, report: _Report
) -> Gate:
    """What the gate says of a child."""
    report.stage("gate")
    size, rng = len(step_graph(made.child)), np.random.default_rng(how.seed)
    return judge(dense, made.child, held_out, made.latency, made.dense, size, budget, how.limits, rng, how.labelled)


def _concluded(
    made: _Made, gate: Gate, dense: Fitted, budget: Budget, held_out: Stretches, how: CycleOptions, report: _Report
) -> Candidate:
    """A candidate with its report."""
    report.stage("report")
    removal = report_on(
        dense,
        made.child,
        made.kept,
        made.structure,
        held_out,
        criterion=how.criterion,
        seed=how.seed,
        batch=budget.batch,
        tables=how.tables,
        where=how.where,
    )
    report.stage("done")
    outcome = Outcome(
        "adopted" if gate.passed else "rejected",
        gate.reason,
        report.parent_sized(dense, made.dense),
        report.child_sized(made.child, made.latency),
        gate=gate,
        stages=report.seconds,
        plan=made.plan,
        report=removal,
    )
    return Candidate(outcome, dense, False, made.child, how.criterion, made.kept)


class _Report:
    """Stage times and the words of the outcome."""

    def __init__(
        self,
        budget: Budget,
        held_out: Stretches,
        parent_version: int,
        version: int,
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self.budget, self.progress = budget, progress
        self.seconds: dict[str, float] = {}
        self._held_out, self._parent_version, self._version, self._clock = held_out, parent_version, version, clock
        self._current, self._began = "", clock()

    def stage(self, name: str) -> None:
        """Ends the stage before and begins this one."""
        now = self._clock()
        if self._current:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._began
        self._current, self._began = name, now
        self.progress(name, 0.0, "")

    def parent_sized(self, dense: Fitted, latency: Latency) -> Sized:
        """Size, speed and error of the parent."""
        return sized(self._parent_version, dense, latency, self._held_out)

    def child_sized(self, child: Fitted, latency: Latency) -> Sized:
        """The same of the child."""
        return sized(self._version, child, latency, self._held_out)

    def infeasible(self, dense: Fitted, floor: Floor) -> Outcome:
        """Nothing meets the budget."""
        self.stage("done")
        missed = ", ".join(
            f"{it.name} {said(it.value, it.timed)} (budget {said(it.limit, it.timed)})"
            for it in limits(floor.latency, floor.bytes, floor.dense, self.budget)
            if it.value > it.limit
        )
        return Outcome(
            "rejected",
            f"the budget is below the floor of this network: {missed} at batch {self.budget.batch}",
            self.parent_sized(dense, floor.dense),
            best_reachable=floor.reachable(self.budget),
            stages=self.seconds,
        )

    def refused(self, dense: Fitted, gate: Gate) -> Outcome:
        """The parent that was trained on may not follow."""
        self.stage("done")
        (latency,) = measure([step_graph(dense)], self.budget.batch)
        parent = self.parent_sized(dense, latency)
        return Outcome("rejected", f"the updated parent: {gate.reason}", parent, gate=gate, stages=self.seconds)

    def waiting(self, made: _Made, dense: Fitted, how: CycleOptions) -> Outcome:
        """A dry run ends with a child of the frontier, where one meets the budget."""
        self.stage("done")
        place = made.plan["frontier"]
        return Outcome(
            "planned",
            f"would {_updating(how.update_parent and not how.frontier_first)}take child {place['point']} of "
            f"{place['points']} from the frontier, and judge it",
            self.parent_sized(dense, made.dense),
            self.child_sized(made.child, made.latency),
            stages=self.seconds,
            plan=made.plan,
        )

    def planned(self, dense: Fitted, search: Search, plan: Plan, how: CycleOptions) -> Outcome:
        """A dry run ends with the plan."""
        self.stage("done")
        base = search.base(plan.structure).network
        network = base.resized(plan.units)
        steps = len(stages({name: base.units[name] for name in plan.units}, plan.units))
        pulled = f"take it {plan.structure}, " if plan.structure else ""
        told = described(search, plan, how.updates)
        tuned = f" and fine-tune for {told['updates']} updates" if told["updates"] else ""
        return Outcome(
            "planned",
            f"would {_updating(how.update_parent)}{pulled}prune in {steps} stage{'s' * (steps > 1)}{tuned}",
            self.parent_sized(dense, plan.dense),
            Sized(
                self._version,
                None,
                network.units,
                network.parameters_count,
                plan.bytes,
                plan.latency.p50_seconds,
                plan.latency.p99_seconds,
                None,
            ),
            stages=self.seconds,
            plan=told,
        )


def _updating(wanted: bool) -> str:
    """What a dry run says of a parent that a cycle would train on."""
    return "train the parent on with recent points and keep that where it is better, " if wanted else ""
