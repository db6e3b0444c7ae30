"""The frontier of a parent: children from wide to narrow, each fine-tuned, measured and compared, for budgets to come.

Widths are nested, so one derivation goes down through all of them: a narrower child begins where the wider one stands.
A budget then picks a child in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from detectors.errors import InvalidInputError
from detectors.training.export import step_graph
from detectors.training.fit import Progress, seeded, silent
from detectors.training.fitted import Fitted
from detectors.training.stretches import Stretches
from pruning.cycle import FINAL_ROUNDS, require_prunable, sized, split
from pruning.damage import Curve, damage, losses
from pruning.derive import Derivation, DeriveOptions
from pruning.frontier_facts import MOST_POINTS, POINTS, FrontierFacts, FrontierPoint, marked
from pruning.gate import GateLimits, quality
from pruning.importance import DEFAULT
from pruning.latency import measure
from pruning.limits import within
from pruning.outcome import Budget, Gate, Latency
from pruning.search import AS_MEASURED, least_damaging, nearest
from pruning.structures import Structure
from pruning.table import NoTables, Table, Tables, Units, on_grid, table_of

UPDATES = 300  # of fine-tuning from one point to the next: then a child is about as good as one that a cycle makes


@dataclass(frozen=True)
class FrontierOptions:
    """How a frontier is built.

    Attributes:
        criterion: Importance of units.
        repair: Whether the kept units take over what they can of the dropped ones.
        seed: Same seed, parent and points: same children (as long as the table of times is the same).
        updates: Gradient steps of fine-tuning each member of the network, from one point to the next.
        limits: Of the gate.
        tables: Where latency tables are kept.
    """

    criterion: str = DEFAULT
    repair: bool = True
    seed: int = 0
    updates: int = UPDATES
    limits: GateLimits = field(default_factory=GateLimits)
    tables: Tables = field(default_factory=NoTables)


@dataclass(frozen=True)
class Picked:
    """The child of a frontier that meets a budget.

    Attributes:
        point: What is known of it.
        place: Its number on the frontier, the widest is 0.
        child: Calibrated on the present points.
        graph: Its step graph.
        latency: Measured now.
        dense: The parent's, in the same run.
    """

    point: FrontierPoint
    place: int
    child: Fitted
    graph: bytes
    latency: Latency
    dense: Latency


@dataclass(frozen=True)
class Frontier:
    """Children of one parent, ready to serve once they are calibrated and judged on present points.

    Attributes:
        facts: What is known of them.
        children: In the order of `facts.points`.
    """

    facts: FrontierFacts
    children: tuple[Fitted, ...]

    def pick(self, dense: Fitted, budget: Budget, training: Stretches, held_out: Stretches) -> Picked | None:
        """The child with the least error that meets a budget when it is measured now; None where there is none.

        Args:
            dense: The parent, calibrated on the same points.
            budget: What is asked, at the batch of this frontier.
            training: Normal points.
            held_out: Later ones, to calibrate on.
        """
        dense_graph = step_graph(dense)
        (now,) = measure([dense_graph], budget.batch)
        for place in self.facts.meeting(budget, now):
            child = self.children[place].recalibrated(held_out, training)
            graph = step_graph(child)
            dense_time, child_time = measure([dense_graph, graph], budget.batch, rounds=FINAL_ROUNDS)
            if within(child_time, len(graph), dense_time, budget):
                return Picked(self.facts.points[place], place, child, graph, child_time, dense_time)
        return None


def build_frontier(
    parent: Fitted,
    recent: Stretches,
    *,
    batch: int,
    points: int = POINTS,
    options: FrontierOptions | None = None,
    progress: Progress = silent,
) -> Frontier:
    """Prunes a parent down to the floor of its widths in steps, and compares every step with it.

    Args:
        parent: The dense parent; it stays as it is.
        recent: Normal points, split as `pruning.cycle.run_cycle` does.
        batch: Points a step.
        points: Children at most: a network with few widths has fewer.
        options: How.
        progress: Told about every stage.

    Raises:
        InvalidInputError: too few recent points, or no such number of children.
        PreconditionError: the network has nothing to prune.
    """
    how = options or FrontierOptions()
    if not 1 <= points <= MOST_POINTS:
        raise InvalidInputError(f"{points} is not between 1 and {MOST_POINTS}.", field="points")
    require_prunable(parent)
    training, held_out = split(parent, recent)
    with seeded(how.seed):
        return _built(parent.recalibrated(held_out, training), training, held_out, batch, points, how, progress)


def _built(
    dense: Fitted,
    training: Stretches,
    held_out: Stretches,
    batch: int,
    points: int,
    how: FrontierOptions,
    progress: Progress,
) -> Frontier:
    """The frontier of a parent that is calibrated on the same points; global generators are seeded."""
    progress("search", 0.0, "measuring widths")
    table = table_of(dense, batch, how.tables)
    curves = damage(dense, training, how.criterion, how.seed, losses(dense, training, how.seed))
    wanted = targets(table, curves, points)

    children, kept = [], []
    derivation = _derivation(dense, training, how, len(wanted), progress)
    for units in wanted:
        children.append(derivation.down_to(units).recalibrated(held_out, training))
        kept.append(derivation.kept)

    progress("measure", 0.0, f"{len(children)} children beside their parent")
    graphs = [step_graph(each) for each in (dense, *children)]
    times = measure(graphs, batch, rounds=FINAL_ROUNDS)

    found = []
    for i, child in enumerate(children):
        progress("gate", i / len(children), f"child {i + 1} of {len(children)}")
        latency = times[i + 1]
        beside = quality(dense, child, held_out, how.limits, np.random.default_rng(how.seed))
        checks = {check.name: check for check in beside.checks}
        found.append(
            FrontierPoint(
                units=child.network.units,
                structure="",
                parameters=child.network.parameters_count,
                bytes=len(graphs[i + 1]),
                p50_seconds=latency.p50_seconds,
                p99_seconds=latency.p99_seconds,
                speedup=times[0].p50_seconds / latency.p50_seconds,
                error_ratio=checks["error"].value,
                agreement=checks["alarms"].value,
                tail_agreement=checks["tail"].value,
                injected_change=beside.injected_change,
                injected_bound=checks["injected"].value,
                gate=Gate(beside.checks).to_dict(),
                kept=kept[i],
                plan=described(table.levels[0].units, wanted[: i + 1], curves, how.updates),
            )
        )
    progress("done", 1.0, "")
    parent = sized(0, dense, times[0], held_out)
    return Frontier(FrontierFacts(batch, parent, marked(found), how.criterion, how.seed), tuple(children))


def targets(table: Table, curves: Mapping[str, Curve], count: int) -> list[Units]:
    """Widths to go down through, each at most the one before; the last are the floor.

    Their times are spread geometrically from the dense network's to the floor's. Where time hardly depends on widths
    that gives few of them, and more are spread in between by width: they differ in bytes.
    """
    first, last = table.levels[0], table.levels[-1]
    ratio = min(1.0, last.whole.p50_seconds / first.whole.p50_seconds)
    shares = [i / count for i in range(1, count)]
    by_time = [within_seconds(table, curves, first.whole.p50_seconds * ratio**share) for share in shares]
    chain = descending(first.units, [*by_time, last.units])
    by_width = [
        {name: on_grid(width * (last.units[name] / width) ** share, width) for name, width in first.units.items()}
        for share in shares
    ]
    others = [units for units in by_width if units not in chain and units != first.units]
    more = sorted([*chain, *others[: count - len(chain)]], key=lambda units: -sum(units.values()))
    return descending(first.units, more)


def descending(dense: Units, wanted: Sequence[Units]) -> list[Units]:
    """The same widths, none above the one before and no two alike."""
    chain = [dense]
    for units in wanted:
        narrower = {name: min(width, units[name]) for name, width in chain[-1].items()}
        if narrower != chain[-1]:
            chain.append(narrower)
    return chain[1:]


def within_seconds(table: Table, curves: Mapping[str, Curve], seconds: float) -> Units:
    """The widths that a table says take at most so long, at the least damage; a level's where none of them do."""
    wanted = [("p50_seconds", seconds, True)]
    level = nearest(table, wanted, AS_MEASURED)
    return least_damaging(level, curves, lambda cost: (cost.p50_seconds,), [seconds]) or level.units


def described(dense: Units, chain: Sequence[Units], curves: Mapping[str, Curve], updates: int) -> dict[str, object]:
    """How a child came about, as the plans of cycles say it."""
    lost = {name: curves[name].at(width) for name, width in chain[-1].items()}
    return {
        **Structure().to_dict(),
        "groups": {
            name: {"before": dense[name], "after": width, "damage": lost[name]} for name, width in chain[-1].items()
        },
        "damage": sum(lost.values()),
        "stages": list(chain),
        "updates": updates * len(chain),
        "rounds": 0,
    }


def _derivation(dense: Fitted, training: Stretches, how: FrontierOptions, steps: int, progress: Progress) -> Derivation:
    """One way down, told as shares of the whole."""
    begun = 0

    def stage(name: str) -> None:
        nonlocal begun
        begun += name == "prune"

    def told(_stage: str, done: float, message: str) -> None:
        members = len(dense.network.members)
        child = min((begun - 1) // members, steps - 1)  # a deep step has several stages
        progress("fine-tune", min((child + done) / steps, 1.0), f"child {child + 1} of {steps}, {message}")

    options = DeriveOptions(how.criterion, how.repair, how.updates, how.seed)
    return Derivation(dense, training, options, stage=stage, progress=told)
