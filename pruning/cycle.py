"""One cycle: from a dense parent and recent points to a gated candidate inside the budget, or to the reason why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.errors import PreconditionError
from detectors.training.export import step_graph
from detectors.training.fit import HELD_OUT, FitOptions, Progress, chunks_over, partly, seeded, silent, train
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Stretches
from pruning.finetune import finetune
from pruning.gate import GateLimits, judge, trimmed_error
from pruning.groups import prunable
from pruning.importance import Evidence, importance
from pruning.latency import measure
from pruning.outcome import Budget, Latency, Outcome, Sized
from pruning.repair import remove_and_repair
from pruning.search import Ladder, Rung, Units, climb, limits, said, stages, within

STAGE_UPDATES = 120  # fine-tuning between stages; the last stage gets the rest
UPDATES = 1000
CORRECTIONS = 3  # children built at most: one that misses the budget is taken a rung down
FINAL_ROUNDS = 21  # of the measurement that decides
MINIMUM_JUDGED = 60  # points of a run that calibration and the gate need beside the warm-up
UPDATE_RATE = (
    1e-3  # learning rate of the parent's update: a third of the first fit's, so that it follows and does not jump
)


@dataclass(frozen=True)
class CycleOptions:
    """How a cycle works.

    Attributes:
        criterion: Importance of units.
        seed: Same seed, parent and points: same child (measured times aside).
        update_parent: First train the parent on with the recent points.
        dry_run: Stop at the plan.
        updates: Gradient steps of fine-tuning each member of the network, over all stages.
        limits: Of the gate.
    """

    criterion: str = "taylor"
    seed: int = 0
    update_parent: bool = False
    dry_run: bool = False
    updates: int = UPDATES
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True)
class Candidate:
    """What a cycle made.

    Attributes:
        outcome: The proposal, with sizes, times and the gate.
        parent: The dense parent as it now is; `updated` says whether it differs from the one given.
        child: The pruned detector; None where none was built.
        criterion: Importance by which units were chosen.
        kept: The parent's units that are still in the child, by group.
    """

    outcome: Outcome
    parent: Fitted
    updated: bool
    child: Fitted | None = None
    criterion: str | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)


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
    if not prunable(parent.network):
        raise PreconditionError(
            f"the {parent.network.kind} network has no units that can be pruned yet.",
            field="network",
            hint="Fit a smaller one instead.",
        )
    training, held_out = split(parent, recent)
    report = _Report(budget, held_out, parent_version, version, progress, clock)

    report.stage("update")
    dense, updated = update(parent, training, held_out, how, progress) if how.update_parent else (parent, False)
    dense = dense.recalibrated(held_out, training)

    report.stage("search")
    with seeded(how.seed):
        ladder = climb(dense, budget)
    target = ladder.widest(budget)
    if target is None:
        return Candidate(report.infeasible(dense, ladder), dense, updated)
    if how.dry_run:
        return Candidate(report.planned(dense, ladder, target, how.updates), dense, updated)

    cut = _Cut(dense, training, how, report)
    child, dense_time, child_time = _meet(budget, ladder, target, cut, held_out)

    report.stage("gate")
    size = len(step_graph(child))
    rng = np.random.default_rng(how.seed)
    gate = judge(dense, child, held_out, child_time, dense_time, size, budget, how.limits, rng)
    report.stage("done")
    in_budget = within(child_time, size, dense_time, budget)
    outcome = Outcome(
        "adopted" if gate.passed else "rejected",
        gate.reason,
        report.sized(parent_version, dense, dense_time),
        report.sized(version, child, child_time),
        best_reachable=None if in_budget else ladder.best_reachable(budget),
        gate=gate,
        stages=report.seconds,
    )
    return Candidate(outcome, dense, updated, child, how.criterion, cut.kept)


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
    data = Stretches.of([np.asarray(rows, np.float32)])
    options = CycleOptions(seed=seed)
    return run_cycle(parent, data, budget, parent_version=1, version=2, options=options, progress=progress)


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


def update(
    parent: Fitted, training: Stretches, held_out: Stretches, how: CycleOptions, progress: Progress
) -> tuple[Fitted, bool]:
    """Trains a copy of the parent on with recent points; the old one stays where the new one is no better."""
    network = copy.deepcopy(parent.network)
    options = FitOptions(updates=max(1, how.updates // 2), learning_rate=UPDATE_RATE)
    members = [member for member in network.members.values() if member.learned_by_gradient]
    with seeded(how.seed):
        for i, member in enumerate(members):
            told = partly(lambda _stage, done, message: progress("update", done, message), i, len(members))
            train(member, training, held_out, parent.scaler, options, how.seed, told)
    newer = parent.with_network(network)
    better = trimmed_error(newer, held_out) < trimmed_error(parent, held_out)
    return (newer, True) if better else (parent, False)


def _meet(
    budget: Budget, ladder: Ladder, target: Rung, cut: _Cut, held_out: Stretches
) -> tuple[Fitted, Latency, Latency]:
    """Builds the child, measures it beside its parent, and goes a rung down while it misses the budget."""
    rung = target
    for _ in range(CORRECTIONS):
        child = cut.down_to(rung.units).recalibrated(held_out, cut.training)
        cut.report.stage("measure")
        dense_graph, child_graph = step_graph(cut.parent), step_graph(child)
        dense_time, child_time = measure([dense_graph, child_graph], budget.batch, rounds=FINAL_ROUNDS)
        narrower = ladder.below(rung.units)
        if within(child_time, len(child_graph), dense_time, budget) or narrower is None:
            break
        rung = narrower
    return child, dense_time, child_time


class _Cut:
    """A network on its way from dense to narrow."""

    def __init__(self, parent: Fitted, training: Stretches, how: CycleOptions, report: _Report) -> None:
        self.parent, self.report = parent, report
        self.training, self._how = training, how
        self._network: Network = copy.deepcopy(parent.network)
        self._kept = {group.name: torch.arange(group.width) for group in prunable(parent.network)}

    @property
    def kept(self) -> dict[str, list[int]]:
        """The parent's units that are still there."""
        return {name: indices.tolist() for name, indices in self._kept.items()}

    def down_to(self, units: Units) -> Fitted:
        """Prunes in stages, repairing and fine-tuning against the parent after each."""
        how = self._how
        steps = stages({name: len(kept) for name, kept in self._kept.items()}, units)
        for i, widths in enumerate(steps):
            last = i == len(steps) - 1
            updates = max(1, how.updates - STAGE_UPDATES * i) if last else min(STAGE_UPDATES, how.updates)
            members = dict(self._network.members)
            for turn, name in enumerate(members):
                told = partly(self.report.progress, turn, len(members))
                members[name] = self._narrower(name, members[name], widths, how.seed + i, updates, told)
            self._network = self._network.with_members(members)
        self.report.stage("calibrate")
        return self.parent.with_network(self._network)

    def _narrower(
        self, name: str, member: Network, widths: Units, seed: int, updates: int, progress: Progress
    ) -> Network:
        """One member cut, repaired and fine-tuned against the same member of the parent."""
        groups = prunable(member)
        if not groups:
            return member
        how, scaler = self._how, self.parent.scaler
        self.report.stage("prune")
        chunks = chunks_over(self.training, scaler, member, seed)
        values = importance(how.criterion, Evidence(member, chunks, how.seed))
        keep = {}
        for group in groups:
            full = f"{name}.{group.name}" if name else group.name
            keep[group.name] = values[group.name].topk(widths[full]).indices.sort().values
            self._kept[full] = self._kept[full][keep[group.name]]
        narrow = remove_and_repair(member, keep, chunks)
        self.report.stage("fine-tune")
        teacher = self.parent.network.members[name]
        finetune(narrow, teacher, self.training, scaler, updates=updates, seed=seed, progress=progress)
        return narrow


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

    def sized(self, version: int, fitted: Fitted, latency: Latency) -> Sized:
        """Size, speed and error of a detector."""
        network = fitted.network
        size = len(step_graph(fitted))
        error = trimmed_error(fitted, self._held_out)
        p50, p99 = latency.p50_seconds, latency.p99_seconds
        return Sized(version, None, network.units, network.parameters_count, size, p50, p99, error)

    def infeasible(self, dense: Fitted, ladder: Ladder) -> Outcome:
        """No width meets the budget."""
        self.stage("done")
        floor = ladder.floor
        missed = ", ".join(
            f"{name} {said(value, timed)} (budget {said(limit, timed)})"
            for name, value, limit, timed in limits(floor.latency, floor.bytes, ladder.dense.latency, self.budget)
            if value > limit
        )
        return Outcome(
            "rejected",
            f"the budget is below the floor of this network: {missed} at batch {self.budget.batch}",
            self.sized(self._parent_version, dense, ladder.dense.latency),
            best_reachable=ladder.best_reachable(self.budget),
            stages=self.seconds,
        )

    def planned(self, dense: Fitted, ladder: Ladder, target: Rung, updates: int) -> Outcome:
        """A dry run ends with the plan."""
        self.stage("done")
        network = dense.network.resized(target.units)
        steps = len(stages(ladder.dense.units, target.units))
        return Outcome(
            "planned",
            f"would prune in {steps} stage{'s' * (steps > 1)} and fine-tune for {updates} updates",
            self.sized(self._parent_version, dense, ladder.dense.latency),
            Sized(
                self._version,
                None,
                network.units,
                network.parameters_count,
                target.bytes,
                target.latency.p50_seconds,
                target.latency.p99_seconds,
                None,
            ),
            stages=self.seconds,
        )
