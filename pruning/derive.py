"""From a dense parent to a narrow child: structure, cut, repair, fine-tune, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from detectors.training.fit import TRIM, Progress, chunks_over, partly, silent
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.damage import most_important
from pruning.finetune import Kept, finetune
from pruning.groups import Keep, prunable
from pruning.importance import DEFAULT, Evidence, idle, importance
from pruning.repair import remove_and_repair
from pruning.search import stages
from pruning.structures import Structure, origins
from pruning.surgery import remove
from pruning.table import Units

STAGE_UPDATES = 120  # of fine-tuning between stages, at most; the last stage gets the rest
UPDATES = 1000


@dataclass(frozen=True)
class DeriveOptions:
    """How units are chosen and what follows.

    Attributes:
        criterion: Importance of units.
        repair: Whether the kept units take over what they can of the dropped ones.
        updates: Gradient steps of fine-tuning each member of the network, over all stages; 0: none.
        seed: Same seed, parent and points: same child.
    """

    criterion: str = DEFAULT
    repair: bool = True
    updates: int = UPDATES
    seed: int = 0


class Derivation:
    """A network on its way from dense to narrow.

    Args:
        parent: The dense detector; it stays as it is, and teaches.
        training: Normal points.
        how: See `DeriveOptions`.
        base: The parent with a structure applied; None: the parent itself.
        structure: What was done to `base`.
        stage: Told what begins.
        progress: Told about fine-tuning.
    """

    def __init__(
        self,
        parent: Fitted,
        training: Stretches,
        how: DeriveOptions | None = None,
        *,
        base: Fitted | None = None,
        structure: Structure | None = None,
        stage: Callable[[str], None] = lambda _name: None,
        progress: Progress = silent,
    ) -> None:
        self._parent, self._training, self._how = parent, training, how or DeriveOptions()
        self._stage, self._progress = stage, progress
        structure = structure or Structure()
        self._network: Network = copy.deepcopy((base or parent).network)
        self._origins = origins(parent.network, structure)
        self._kept = {name: torch.arange(width) for name, width in self._network.units.items()}
        self._gone = structure.without
        self._spent = 0
        self._drop_idle()

    @property
    def kept(self) -> dict[str, list[int]]:
        """The parent's units that are still there, by the parent's groups; none of a bypassed layer."""
        kept = {self._origins[name]: indices.tolist() for name, indices in self._kept.items()}
        return {**kept, **{name: [] for name in self._gone}}

    def down_to(self, units: Units) -> Fitted:
        """Prunes in stages, repairing and fine-tuning against the parent after each; not calibrated yet.

        Args:
            units: Widths of the groups that lose units, none above what is left.

        Returns:
            A detector whose network may be trained on in place: the next call goes on from it.
        """
        how = self._how
        now = {name: width for name, width in self._network.units.items() if name in units}
        steps = stages(now, units)
        between = min(STAGE_UPDATES, how.updates // len(steps))
        for i, widths in enumerate(steps):
            updates = between if i < len(steps) - 1 else how.updates - between * i
            members = dict(self._network.members)
            for turn, name in enumerate(members):
                told = partly(self._progress, turn, len(members))
                members[name] = self._narrower(name, members[name], widths, updates, told)
            self._network = self._network.with_members(members)
            self._spent += 1
        return self._parent.with_network(self._network)

    def _narrower(self, name: str, member: Network, widths: Units, updates: int, progress: Progress) -> Network:
        """One member cut, repaired and fine-tuned against the same member of the parent."""
        groups = prunable(member)
        if not groups:
            return member
        how, scaler, seed = self._how, self._parent.scaler, self._how.seed + self._spent
        self._stage("prune")
        chunks = chunks_over(self._training, scaler, member, seed)
        values = importance(how.criterion, Evidence(member, chunks, how.seed))
        keep = {group.name: most_important(values[group.name], widths[_full(name, group.name)]) for group in groups}
        self._note(name, keep)
        narrow = self._cut(member, keep, chunks)
        if not updates or not member.learned_by_gradient:
            return narrow
        self._stage("fine-tune")
        teacher = self._parent.network.members[name]
        kept = [
            Kept(group.name, self._origins[_full(name, group.name)].removeprefix(f"{name}."), indices)
            for group in narrow.groups()
            for indices in [self._kept[_full(name, group.name)]]
        ]
        finetune(
            narrow,
            teacher,
            self._training,
            scaler,
            kept=kept,
            updates=updates,
            seed=seed,
            trim=max(TRIM, self._parent.trim),
            progress=progress,
        )
        return narrow

    def _cut(self, member: Network, keep: Keep, chunks: Lanes | Windows) -> Network:
        return remove_and_repair(member, keep, chunks) if self._how.repair else remove(member, keep)

    def _drop_idle(self) -> None:
        """Units that say nothing leave first, whatever the budget, and even from a protected group."""
        members = dict(self._network.members)
        for name, member in members.items():
            chunks = chunks_over(self._training, self._parent.scaler, member, self._how.seed)
            keep = {}
            for group, silent_units in idle(member, chunks).items():
                stay = torch.ones(member.units[group], dtype=torch.bool)
                stay[silent_units] = False
                keep[group] = stay.nonzero().flatten() if bool(stay.any()) else torch.tensor([0])
            if keep:
                members[name] = self._cut(member, keep, chunks)
                self._note(name, keep)
        self._network = self._network.with_members(members)

    def _note(self, member: str, keep: Keep) -> None:
        for group, indices in keep.items():
            full = _full(member, group)
            self._kept[full] = self._kept[full][indices]


def _full(member: str, group: str) -> str:
    return f"{member}.{group}" if member else group
