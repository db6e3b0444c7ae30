"""Pruning while fitting: units leave step by step while the network still learns.

Zhu & Gupta 2018 ("To prune, or not to prune") take weights out gradually; here whole units go, at a few moments of the
fit, chosen by importance and repaired each time. No dense parent is left, and none teaches: what comes out is a narrow
detector for about the price of one fit. A later cycle can not make it wider again. What learns without gradients is
grown whole, and loses units without learning in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from detectors.training.export import step_graph
from detectors.training.fit import Begun, FitOptions, Progress, begin, partly, seeded, silent, train, updates_for
from detectors.training.fitted import ErrorOptions, Fitted
from detectors.training.networks import Network
from detectors.training.networks.base import Options
from detectors.training.stretches import Stretches
from pruning.cycle import FINAL_ROUNDS, require_prunable
from pruning.derive import Derivation, DeriveOptions
from pruning.importance import DEFAULT
from pruning.latency import measure
from pruning.limits import within
from pruning.outcome import Budget, Latency
from pruning.search import Floor, Plan, Search, geometric
from pruning.table import NoTables, Tables, Units

DENSE = 0.4  # share of the updates before the first units leave
REMOVALS = 4  # moments at which units leave
BETWEEN = 0.1  # share of the updates after each but the last; that one gets the rest
CORRECTIONS = 2  # further removals at most, where what was built misses the budget; so much of the fit after each


@dataclass(frozen=True)
class Gradual:
    """What pruning while fitting made.

    Attributes:
        fitted: The narrow detector; None where the budget was not met.
        plan: The widths it was pruned to; what misses the budget where there is no detector.
        narrower: Whether it is not the network's floor that misses it, but what was built in the end.
        dense_units: What it began with.
        dense: The time of that.
        latency: Of the narrow detector, or of what misses the budget, in the same run.
    """

    fitted: Fitted | None
    plan: Plan | Floor
    narrower: bool
    dense_units: Units
    dense: Latency
    latency: Latency


def fit_while_pruning(
    kind: str,
    data: Stretches,
    features: tuple[str, ...],
    budget: Budget,
    *,
    seed: int,
    options: Options | None = None,
    how: FitOptions | None = None,
    error: ErrorOptions | None = None,
    criterion: str = DEFAULT,
    tables: Tables | None = None,
    progress: Progress = silent,
) -> Gradual:
    """Fits a detector that meets a budget, without a dense parent.

    Args:
        kind: One of `detectors.training.networks.KINDS`.
        data: Normal points; the last quarter is held out for early stopping and calibration.
        features: Names of the F columns.
        budget: What a step may cost; a speed-up is against the dense network that the fit begins with.
        seed: Same seed, data and machine: same detector (measured times aside).
        options: Of the dense network.
        how: Length and speed of training, in all.
        error: How residuals become one error.
        criterion: Importance of units.
        tables: Where latency tables are kept.
        progress: Told after every update.

    Raises:
        InvalidInputError: too few usable rows, or an unknown network or option.
        PreconditionError: the network has nothing to prune.
    """
    how = how or FitOptions()
    with seeded(seed):
        begun = begin(kind, data, features, options=options, error=error)
        network, training = begun.network, begun.training
        updates = updates_for(len(training), how)
        for member in network.members.values():
            if not member.learned_by_gradient:
                member.grow(training, begun.scaler, seed)
        _learn(network, begun, _short(how, updates * DENSE), seed, _between(progress, 0, DENSE))
        dense = begun.calibrated(network)
        require_prunable(dense)
        progress("search", 0.0, "choosing widths")
        search = Search(dense, training, budget, criterion, seed, tables or NoTables())
        plan = search.plan()
        if isinstance(plan, Floor):
            return Gradual(None, plan, False, network.units, plan.dense, plan.latency)
        derivation = Derivation(
            dense,
            training,
            DeriveOptions(criterion, updates=0, seed=seed),
            base=search.base(plan.structure),
            structure=plan.structure,
        )
        units = search.base(plan.structure).network.units
        steps = geometric({name: units[name] for name in plan.units}, plan.units, REMOVALS)
        for i, widths in enumerate(steps):
            network = derivation.down_to(widths).network
            last = i == len(steps) - 1
            done = DENSE + BETWEEN * i
            share = 1 - done if last else BETWEEN
            lesson = replace(how, updates=max(1, round(updates * share))) if last else _short(how, updates * share)
            _learn(network, begun, lesson, seed + i + 1, _between(progress, done, share))
        for turn in range(CORRECTIONS + 1):
            progress("calibrate", 0.0, "fitting the score scale on held-out points")
            fitted = begun.finished(network, how.contamination)
            graph = step_graph(fitted)
            dense_time, latency = measure([search.dense_graph, graph], budget.batch, rounds=FINAL_ROUNDS)
            if within(latency, len(graph), dense_time, budget):
                return Gradual(fitted, plan, False, dense.network.units, dense_time, latency)
            tighter = search.tighter(plan, latency, dense_time) if turn < CORRECTIONS else None
            if tighter is None:
                break
            plan = tighter
            network = derivation.down_to(plan.units).network
            lesson = replace(how, updates=max(1, round(updates * BETWEEN)))
            _learn(network, begun, lesson, seed + len(steps) + turn + 1, _between(progress, 1 - BETWEEN, BETWEEN))
    missed = Floor(plan.structure, plan.units, latency, len(graph), dense_time)
    return Gradual(None, missed, not search.is_narrowest(plan), dense.network.units, dense_time, latency)


def _short(how: FitOptions, updates: float) -> FitOptions:
    """A part of a fit: the learning rate stays up, because the network is about to change."""
    return replace(how, updates=max(1, round(updates)), decays=0)


def _learn(network: Network, begun: Begun, how: FitOptions, seed: int, progress: Progress) -> None:
    members = [member for member in network.members.values() if member.learned_by_gradient]
    for i, member in enumerate(members):
        train(member, begun.training, begun.held_out, begun.scaler, how, seed, partly(progress, i, len(members)))


def _between(progress: Progress, start: float, share: float) -> Progress:
    """Tells of a part of the fit as that part of the whole."""
    return lambda stage, done, message: progress(stage, start + share * done, message)
