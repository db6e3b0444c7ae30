"""The widths that meet a budget at the least damage: a table of times, an exact knapsack, and a look at the whole.

In the spirit of NetAdapt (Yang et al., ECCV 2018) and HALP (Shen et al., NeurIPS 2022): times come from the runtime
that serves, and the network that was chosen is measured as a whole, the table corrected by what was found, and the
choice made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detectors.training.export import step_graph
from detectors.training.fit import chunks_over
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.damage import Curve, damage, losses
from pruning.knapsack import Choice, solve, undominated
from pruning.latency import measure
from pruning.limits import limits, within
from pruning.outcome import MARGIN, Budget, Latency, Reachable
from pruning.structures import Structure, restructured, structures
from pruning.table import Cost, Level, Table, Tables, Units, graph_of, level_units, table_key, table_of

ROUNDS = 3  # of choosing, measuring the whole, and correcting the table
USED = 0.93  # of the limit that is aimed at: a network that uses more of it is not corrected further
WHOLE_ROUNDS = 11  # of a measurement of the whole
DEEP = 1.0  # damage from which on other structures are looked at: before training the loss doubles
STRUCTURES = 3  # of them at most
STAGE = 0.5  # a single cut removes at most this share; deeper ones are taken in geometric stages
MAXIMUM_STAGES = 4
TIGHTER = 1.05  # how much more a network is taken to cost whose built graph missed the budget


@dataclass(frozen=True)
class Plan:
    """What to make of a parent.

    Attributes:
        structure: Before its widths are cut.
        units: Of the groups that lose units, after that.
        latency: Of the whole, untrained (time does not depend on weights).
        bytes: Of its graph.
        dense: The parent's, in the same run.
        damage: For each group the relative increase of the loss when it alone is cut and repaired, before training;
            `structure`: of what was done before.
        rounds: How often the table was corrected.
    """

    structure: Structure
    units: Units
    latency: Latency
    bytes: int
    dense: Latency
    damage: Mapping[str, float]
    rounds: int


@dataclass(frozen=True)
class Floor:
    """The smallest that a network can be made."""

    structure: Structure
    units: Units
    latency: Latency
    bytes: int
    dense: Latency

    def reachable(self, budget: Budget, *, narrower: bool = False) -> Reachable:
        """As an answer to a budget below it, with the lever that is left.

        Args:
            budget: That is missed.
            narrower: This is no floor: it was built and missed the budget, and narrower widths are left.
        """
        return Reachable(
            units=self.units,
            p50_seconds=self.latency.p50_seconds,
            p99_seconds=self.latency.p99_seconds,
            bytes=self.bytes,
            speedup=self.dense.p50_seconds / self.latency.p50_seconds,
            hint=self._hint(budget, narrower),
        )

    def _hint(self, budget: Budget, narrower: bool) -> str:
        """What is left, by the limits that are missed."""
        at = f"At {_named(self.units)}" + (f" ({self.structure})" if self.structure else "")
        if narrower:
            return f"{at} narrower widths are left: measure on a quieter machine, or give a larger budget."
        missed = [it for it in limits(self.latency, self.bytes, self.dense, budget) if it.value > it.limit]
        said = []
        if any(it.timed for it in missed):
            said.append(
                f"{at} the runtime itself is the floor at batch {budget.batch}. What is left: a larger budget, more "
                "points a step, fitting another network, or a faster device."
            )
        if not all(it.timed for it in missed):
            said.append(
                f"{at} nothing smaller is left in this network. What is left for its size: a larger budget, fewer "
                "features, a shorter window, or fitting another network."
            )
        return " ".join(said)


class Search:
    """Looks for the widths of one parent.

    Args:
        parent: The dense detector.
        points: Normal ones, to judge damage by.
        budget: What is asked.
        criterion: Importance by which units are kept.
        seed: Of what is looked at.
        tables: Where latency tables are kept.
        where: What the child is for, where that is not this machine. Where there is a table of it, nothing is
            measured here: all times are those of the table.

    Attributes:
        dense_graph: The parent's step graph, which everything is measured beside.
        foretold: Whether times are those of a table of other machines.
    """

    def __init__(
        self,
        parent: Fitted,
        points: Stretches,
        budget: Budget,
        criterion: str,
        seed: int,
        tables: Tables,
        where: Mapping[str, str] | None = None,
    ) -> None:
        self._parent, self._points, self._budget = parent, points, budget
        self._criterion, self._seed, self._tables, self._where = criterion, seed, tables, where
        self.foretold = self._told(Structure()) is not None
        self.dense_graph = step_graph(parent)
        self._losses = losses(parent, points, seed)
        self._bases: dict[Structure, Fitted] = {}
        self._facts: dict[Structure, tuple[Table, dict[str, Curve]]] = {}

    def base(self, structure: Structure) -> Fitted:
        """The parent with layers bypassed and levers pulled: what widths are cut from."""
        if structure not in self._bases:
            network = self._parent.network
            if structure:
                network = restructured(network, structure, self._chunks)
            self._bases[structure] = self._parent.with_network(network)
        return self._bases[structure]

    def plan(self) -> Plan | Floor:
        """The least damaging that meets the budget, or the smallest there is where none does.

        Layers are bypassed and levers pulled where widths alone do not get there, or only by cutting so deep that the
        loss doubles before training.
        """
        floors = self._floors([Structure()])
        found = self._plans(floors)
        if not found or total(found[0]) > DEEP:
            others = self._floors(structures(self._parent.network)[1:])
            found += self._plans(others)
            floors += others
        return min(found, key=total) if found else min(floors, key=self._excess)

    def _plans(self, floors: list[Floor]) -> list[Plan]:
        """Plans of the first structures that can meet the budget, until one does little damage."""
        found: list[Plan] = []
        for i, floor in enumerate(floors):
            if len(found) == STRUCTURES or not self._met(floor):
                continue
            plan = self._widest(floor)
            if isinstance(plan, Floor):
                floors[i] = plan
                continue
            found.append(plan)
            if total(plan) <= DEEP:
                break
        return found

    def tighter(self, plan: Plan, latency: Latency, dense: Latency) -> Plan | None:
        """The next narrower plan, where the built graph of one missed the budget; None if it is the narrowest.

        Args:
            plan: That missed it.
            latency: Measured, of the built graph.
            dense: The parent's, in the same run.
        """
        table, curves = self._known(plan.structure)
        predicted = _predicted(nearest(table, _limits_of(self._budget, dense), AS_MEASURED), plan.units)
        scales = _scale(latency, plan.bytes, predicted)
        late = not within(latency, 0, dense, self._budget)  # else it is the size that missed
        for _ in range(50):
            dearer = (TIGHTER, TIGHTER, 1.0) if late else (1.0, 1.0, TIGHTER)
            scales = Scales(*(scale * factor for scale, factor in zip(scales, dearer, strict=True)))
            units = self._solved(table, curves, dense, scales) or dict(table.levels[-1].units)
            if units != plan.units and all(width <= plan.units[name] for name, width in units.items()):
                return self._measured(plan.structure, units, curves, plan.rounds)
        return None

    def is_narrowest(self, plan: Plan) -> bool:
        """Whether no widths of its structure are below those of a plan."""
        return plan.units == self._known(plan.structure)[0].levels[-1].units

    def _floors(self, wanted: list[Structure]) -> list[Floor]:
        """The narrowest widths of each structure, measured side by side; foretold, of those that have a table."""
        if self.foretold:
            return [it for structure in wanted for it in self._foretold_floor(structure)]
        graphs, widths = [], []
        for structure in wanted:
            network = restructured(self._parent.network, structure)
            units = list(level_units(network))[-1]
            graphs.append(step_graph(self._parent.with_network(network.resized(units))))
            widths.append(units)
        dense, *times = measure([self.dense_graph, *graphs], self._budget.batch, rounds=WHOLE_ROUNDS)
        return [
            Floor(structure, units, latency, len(graph), dense)
            for structure, units, latency, graph in zip(wanted, widths, times, graphs, strict=True)
        ]

    def _foretold_floor(self, structure: Structure) -> Iterator[Floor]:
        table = self._told(structure)
        if table is None:
            return
        last, dense = table.levels[-1], self._foretold_dense()
        yield Floor(structure, dict(last.units), self._latency(last.whole), last.whole.bytes, dense)

    def _foretold_dense(self) -> Latency:
        table = self._told(Structure())
        assert table is not None
        return self._latency(table.levels[0].whole)

    def _told(self, structure: Structure) -> Table | None:
        """What the table of other machines says of a structure; None: there is none."""
        if self._where is None:
            return None
        network = restructured(self._parent.network, structure) if structure else self._parent.network
        return self._tables.get(table_key(self._parent.with_network(network), self._budget.batch, self._where))

    def _latency(self, cost: Cost) -> Latency:
        return Latency(cost.p50_seconds, cost.p99_seconds, self._budget.batch)

    def _widest(self, floor: Floor) -> Plan | Floor:
        """Choose, measure the whole, correct, choose again: the least damaging that fits; the floor if none does."""
        structure = floor.structure
        table, curves = self._known(structure)
        scales = _scale(floor.latency, floor.bytes, _predicted(table.levels[-1], floor.units))
        dense = floor.dense
        best: Plan | None = None
        tried: list[Units] = []
        for turn in range(ROUNDS):
            units = self._solved(table, curves, dense, scales)
            if units is None or units in tried:
                break
            tried.append(units)
            plan = self._measured(structure, units, curves, turn + 1)
            dense = plan.dense
            fits = within(plan.latency, plan.bytes, dense, self._budget, MARGIN)
            if fits and (best is None or total(plan) < total(best)):
                best = plan
            if fits and self._used(plan) >= USED:
                break
            level = nearest(table, _limits_of(self._budget, dense), scales)
            scales = _scale(plan.latency, plan.bytes, _predicted(level, units))
        if best is None:  # between the narrowest and what was tried nothing fits with a margin
            best = self._measured(structure, floor.units, curves, len(tried))
            if not within(best.latency, best.bytes, best.dense, self._budget):
                return Floor(structure, best.units, best.latency, best.bytes, best.dense)
        return best

    def _known(self, structure: Structure) -> tuple[Table, dict[str, Curve]]:
        if structure not in self._facts:
            base = self.base(structure)
            told = self._told(structure) if self.foretold else None
            table = told or table_of(base, self._budget.batch, self._tables)
            self._facts[structure] = table, damage(base, self._points, self._criterion, self._seed, self._losses)
        return self._facts[structure]

    def _solved(self, table: Table, curves: Mapping[str, Curve], dense: Latency, scales: Scales) -> Units | None:
        """The knapsack at the level that is nearest to the budget."""
        wanted = _limits_of(self._budget, dense)
        most = [limit * (MARGIN if timed else 1.0) for _, limit, timed in wanted]
        return least_damaging(nearest(table, wanted, scales), curves, lambda cost: _costs(cost, wanted, scales), most)

    def _measured(self, structure: Structure, units: Units, curves: Mapping[str, Curve], rounds: int) -> Plan:
        """A plan with its whole measured beside the dense parent, or foretold."""
        graph = graph_of(self.base(structure), units)
        if self.foretold:
            dense, latency = self._foretold_dense(), self._foretold(structure, units)
        else:
            dense, latency = measure([self.dense_graph, graph], self._budget.batch, rounds=WHOLE_ROUNDS)
        lost = {name: curves[name].at(width) for name, width in units.items()}
        if structure:
            lost["structure"] = self._bypassing(structure)
        return Plan(structure, units, latency, len(graph), dense, lost, rounds)

    def _foretold(self, structure: Structure, units: Units) -> Latency:
        """What the table says of a whole, from the level that is nearest in widths."""

        def distance(level: Level) -> float:
            return sum(abs(math.log(level.units[name] / width)) for name, width in units.items())

        table, _ = self._known(structure)
        return self._latency(_predicted(min(table.levels, key=distance), units))

    def _bypassing(self, structure: Structure) -> float:
        """What layers bypassed and levers pulled do to the loss, relative to the parent's; members add up."""
        ours, theirs = losses(self.base(structure), self._points, self._seed), self._losses
        return sum(max(0.0, ours[name] / theirs[name] - 1) for name in theirs)

    def _chunks(self, member: Network) -> Lanes | Windows:
        return chunks_over(self._points, self._parent.scaler, member, self._seed)

    def _met(self, floor: Floor) -> bool:
        return within(floor.latency, floor.bytes, floor.dense, self._budget)

    def _excess(self, floor: Floor) -> float:
        """By how much a floor misses the budget, at its worst limit."""
        return max(it.value / it.limit for it in limits(floor.latency, floor.bytes, floor.dense, self._budget))

    def _used(self, plan: Plan) -> float:
        """How much of what is aimed at a plan uses, at its tightest limit."""
        found = limits(plan.latency, plan.bytes, plan.dense, self._budget)
        return max(it.value / (it.limit * (MARGIN if it.timed else 1.0)) for it in found)


class Scales(NamedTuple):
    """What the table's numbers are multiplied by: a network is not the sum of differences, and a machine has moods."""

    p50_seconds: float
    p99_seconds: float
    bytes: float


AS_MEASURED = Scales(1.0, 1.0, 1.0)

Wanted = list[tuple[str, float, bool]]
"""For each limit: the field of `Cost` it is on, its value, and whether it is a time."""


def _limits_of(budget: Budget, dense: Latency) -> Wanted:
    p50 = [budget.p50_seconds] if budget.p50_seconds is not None else []
    if budget.speedup is not None:
        p50.append(dense.p50_seconds / budget.speedup)
    wanted: Wanted = [("p50_seconds", min(p50), True)] if p50 else []
    if budget.p99_seconds is not None:
        wanted.append(("p99_seconds", budget.p99_seconds, True))
    if budget.size_bytes is not None:
        wanted.append(("bytes", float(budget.size_bytes), False))
    return wanted


def _costs(cost: Cost, wanted: Wanted, scales: Scales) -> tuple[float, ...]:
    """What is limited of a cost, corrected."""
    return tuple(float(getattr(cost, name)) * float(getattr(scales, name)) for name, _, _ in wanted)


def nearest(table: Table, wanted: Wanted, scales: Scales) -> Level:
    """The level whose whole comes nearest to the limits, at the tightest of them, as a ratio."""

    def distance(level: Level) -> float:
        costs = _costs(level.whole, wanted, scales)
        return abs(math.log(max(cost / limit for cost, (_, limit, _) in zip(costs, wanted, strict=True))))

    return min(table.levels, key=distance)


def least_damaging(
    level: Level, curves: Mapping[str, Curve], costs: Callable[[Cost], tuple[float, ...]], most: Sequence[float]
) -> Units | None:
    """The widths near a level that stay inside limits at the least damage; None where none do.

    Args:
        level: Of a table.
        curves: Damage by group.
        costs: What is limited of a cost.
        most: Its limits.
    """
    whole = costs(level.whole)
    groups = [
        worthwhile(
            [
                Choice(width, tuple(a - b for a, b in zip(costs(cost), whole, strict=True)), curves[name].at(width))
                for width, cost in alone.items()
            ]
        )
        for name, alone in level.alone.items()
    ]
    values = solve(groups, [limit - cost for limit, cost in zip(most, whole, strict=True)])
    return None if values is None else dict(zip(level.alone, values, strict=True))


def worthwhile(choices: list[Choice]) -> list[Choice]:
    """Without the widths that are dominated: another one is no dearer in any limit and loses no more."""
    kept = undominated(np.array([(*choice.costs, choice.loss) for choice in choices]))
    return [choices[index] for index in kept]


def _predicted(level: Level, units: Units) -> Cost:
    """What the table says of some widths: differences of single groups, added up."""
    whole = level.whole
    p50, p99, size = whole.p50_seconds, whole.p99_seconds, float(whole.bytes)
    for name, width in units.items():
        cost = level.alone[name].get(width) or level.alone[name][min(level.alone[name], key=lambda w: abs(w - width))]
        p50, p99 = p50 + cost.p50_seconds - whole.p50_seconds, p99 + cost.p99_seconds - whole.p99_seconds
        size += cost.bytes - whole.bytes
    return Cost(max(p50, 1e-7), max(p99, 1e-7), max(round(size), 1))


def _scale(latency: Latency, size: int, predicted: Cost) -> Scales:
    """The correction by which what was predicted becomes what was measured."""
    return Scales(
        latency.p50_seconds / predicted.p50_seconds, latency.p99_seconds / predicted.p99_seconds, size / predicted.bytes
    )


def total(plan: Plan) -> float:
    """The damage of all groups together."""
    return sum(plan.damage.values())


def stages(dense: Units, target: Units) -> list[Units]:
    """Widths to prune to one after the other: one shot while half the units stay, else geometric steps."""
    ratio = min((target[name] / dense[name] for name in target), default=1.0)
    count = min(MAXIMUM_STAGES, max(1, math.ceil(math.log(ratio) / math.log(STAGE) - 1e-9)))
    return geometric(dense, target, count)


def geometric(dense: Units, target: Units, count: int) -> list[Units]:
    """Widths after each of so many cuts of equal ratios; the last are the target's."""
    return [
        {name: max(target[name], round(dense[name] * (target[name] / dense[name]) ** (i / count))) for name in target}
        for i in range(1, count + 1)
    ]


def _named(units: Units) -> str:
    return ", ".join(f"{name}={width}" for name, width in units.items())
