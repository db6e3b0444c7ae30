"""A module pruned as a library call: plan, measure, choose, cut, repair, fine-tune, measure again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.errors import InvalidInputError, PreconditionError
from detectors.training.fit import GRADIENT_NORM, Progress, seeded, silent
from pruning.importance import CRITERIA
from pruning.modules.evidence import Loss, ModuleEvidence, differentiable
from pruning.modules.examples import Inputs, as_tuple, distance, require_finite, rows, spread
from pruning.modules.plan import plan as plan_of
from pruning.modules.surgery import shrunk
from pruning.modules.survey import Plan
from pruning.modules.timing import times
from pruning.modules.widths import Units, asked, rungs, share
from pruning.outcome import MARGIN
from pruning.repair import repair as repaired

APPLICABLE = ("random", "l1", "l2", "activation", "taylor", "fisher", "reconstruction")
FEWEST = 16  # examples: of fewer nothing can be held out that says anything
MAX_ERROR = 0.5  # of the variance of the original's outputs: their mean alone is at 1, a sane prune far below a tenth
HELD_OUT = 0.2  # of the examples, the last ones: the error is measured on them
DISTILL = 0.5  # weight of agreeing with the original beside the loss on targets
LEARNING_RATE = 3e-3
FINE_TUNE_BATCH = 32
SEARCH_ROUNDS, FINAL_ROUNDS = 9, 15
CORRECTIONS = 3  # modules built at most: one that misses the speed-up is followed by the next that should not


@dataclass(frozen=True)
class PrunedModule:
    """What pruning made of a module.

    Attributes:
        outcome: `adopted`, or `rejected`: then `reason` says why.
        reason: Empty where it was adopted.
        module: The smaller module, in the modes of the one that was given; None where none was built.
        units_before: Units by group; a group is named by the first layer that makes its units.
        units_after: The same of the smaller module; of the narrowest one where the speed-up can not be reached.
        layers: Which layers make the units of each group: where it is several, unit j of each of them leaves together.
        kept: Indices of the units that stayed, by group.
        parameters_before: Trainable and frozen numbers.
        parameters_after: The same of the smaller module; None where none was built.
        seconds_before: Median time of a call, one thread.
        seconds_after: The same of the smaller module, measured in turns with the original.
        speedup: One by the other.
        error: Mean squared distance of the outputs from the original's, divided by the variance of those, on examples
            that were not trained on; None where none was built.
        protected: Why a layer keeps all its units, by layer.
    """

    outcome: Literal["adopted", "rejected"]
    reason: str
    module: nn.Module | None
    units_before: dict[str, int]
    units_after: dict[str, int]
    parameters_before: int
    parameters_after: int | None
    seconds_before: float
    seconds_after: float
    speedup: float
    error: float | None
    layers: dict[str, tuple[str, ...]]
    kept: dict[str, list[int]] = field(default_factory=dict)
    protected: dict[str, str] = field(default_factory=dict)


def prune_module(
    module: nn.Module,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    loss: Loss | None = None,
    speedup: float | None = None,
    keep: float | None = None,
    units: Mapping[str, int] | None = None,
    protect: Sequence[str] = (),
    criterion: str = "taylor",
    repair: bool = True,
    updates: int = 200,
    batch: int = 256,
    max_error: float | None = MAX_ERROR,
    seed: int = 0,
    progress: Progress = silent,
) -> PrunedModule:
    """Makes a module smaller. One of `speedup`, `keep` and `units` says by how much.

    Args:
        module: Made of layers that can be followed (docs/modules.md); it stays as it is.
        inputs: Examples along the first axis: a tensor, or a tuple of them, one for each argument of `forward`.
        targets: Of the examples; without them the smaller module learns from the original alone.
        loss: Of outputs and targets; by default their mean squared distance.
        speedup: The original's median time by the smaller one's, in torch, on one thread.
        keep: Share of units that stay in each group, above 0 and up to 1.
        units: How many stay, by layer.
        protect: Layers that keep all their units, as a bottleneck should.
        criterion: Importance of units, one of `APPLICABLE`.
        repair: Let kept units take over what removed ones said, before any training.
        updates: Steps of fine-tuning; 0: none.
        batch: Examples in a call that is timed; at most as many as there are.
        max_error: Reject what is further than this from the original (see `PrunedModule.error`); None: nothing that
            is finite.
        seed: Of every random draw: same seed, same module (measured times aside).
        progress: Told about every stage.

    Raises:
        InvalidInputError: options or inputs that can not be, too few examples, or a module that can not be traced.
        PreconditionError: no layer has units that can go.
    """
    _check(targets, loss, speedup, keep, units, criterion, updates, batch, max_error)
    examples = as_tuple(inputs)
    if targets is not None and len(targets) != len(examples[0]):
        raise InvalidInputError(f"{len(targets)} for {len(examples[0])} examples.", field="targets")
    if targets is not None:
        require_finite(targets, "targets")
    progress("plan", 0.0, "")
    plan = plan_of(module, examples, protect=protect)
    if not plan.groups:
        why = "; ".join(f"{layer}: {reason}" for layer, reason in plan.protected.items())
        raise PreconditionError(f"no layer has units that can go ({why or 'it has none'}).", field="module")
    if len(examples[0]) < FEWEST:
        raise InvalidInputError(
            f"{len(examples[0])} examples are too few, {FEWEST} are needed.",
            field="inputs",
            hint="Give a few hundred along the first axis.",
        )
    with seeded(seed):
        cut = _Cut(module, plan, examples, targets, loss, criterion, repair, updates, seed, progress)
        timed = rows(examples, slice(batch))
        if speedup is not None:
            return _to_speed(cut, timed, speedup, max_error)
        wanted = share(plan, keep) if keep is not None else asked(plan, units or {})
        return _judged(cut, cut.to(wanted), timed, None, max_error)


def _check(
    targets: Tensor | None,
    loss: Loss | None,
    speedup: float | None,
    keep: float | None,
    units: Mapping[str, int] | None,
    criterion: str,
    updates: int,
    batch: int,
    max_error: float | None,
) -> None:
    if sum(it is not None for it in (speedup, keep, units)) != 1:
        raise InvalidInputError("give exactly one of speedup, keep and units.", field="speedup")
    if speedup is not None and not speedup >= 1:
        raise InvalidInputError(f"{speedup} would make it slower.", field="speedup", hint="Give 1 or more.")
    if keep is not None and not 0 < keep <= 1:
        raise InvalidInputError(f"{keep} is no share.", field="keep", hint="Give a number above 0 and up to 1.")
    if criterion not in APPLICABLE:
        raise InvalidInputError(
            f"{criterion!r} is no criterion for modules.", field="criterion", hint=f"Choose {', '.join(APPLICABLE)}."
        )
    if loss is not None and targets is None:
        raise InvalidInputError("a loss needs targets.", field="targets")
    if updates < 0:
        raise InvalidInputError(f"{updates} is negative.", field="updates")
    if batch < 1:
        raise InvalidInputError(f"{batch} is not positive.", field="batch")
    if max_error is not None and not max_error >= 0:
        raise InvalidInputError(f"{max_error} is no error.", field="max_error", hint="Give 0 or more, or None.")


class _Cut:
    """A module and all that is needed to make smaller ones of it."""

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        examples: tuple[Tensor, ...],
        targets: Tensor | None,
        loss: Loss | None,
        criterion: str,
        repair: bool,
        updates: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.given, self.plan, self.protected = module, plan, dict(plan.protected)
        self.original = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
        held = max(1, int(len(examples[0]) * HELD_OUT)) if len(examples[0]) > 1 else 0
        many = len(examples[0]) - held
        self.examples, self.held_out = rows(examples, slice(many)), rows(examples, slice(many if held else 0, None))
        self._targets = None if targets is None else targets[:many]
        with torch.no_grad():
            self.scale = spread(self.original(*self.held_out))
        self._loss: Loss = loss or (lambda outputs, wanted: F.mse_loss(outputs, wanted) / self.scale)
        self._repair, self._updates, self._seed, self._progress = repair, updates, seed, progress
        progress("importance", 0.0, "")
        evidence = ModuleEvidence(module, plan, self.examples, self._targets, self._loss, seed)
        self._scores = CRITERIA[criterion](evidence, plan.groups)
        self._seen = evidence.seen() if repair else {}

    def to(self, units: Units) -> tuple[nn.Module, dict[str, Tensor]]:
        """A module of the most important units, repaired and fine-tuned; and which those are."""
        kept = {group: self._scores[group].topk(width).indices.sort().values for group, width in units.items()}
        tensors = {name: tensor.clone() for name, tensor in self.original.state_dict().items()}
        if self._repair:
            repaired(tensors, self.plan.groups, kept, self._seen)
        child = shrunk(self.given, self.plan, kept, tensors)
        before = copy.deepcopy(child)
        self._fine_tune(child)
        best = min((child, before), key=self.error)
        modes = {name: layer.training for name, layer in self.given.named_modules()}
        for name, layer in best.named_modules():
            layer.training = modes[name]
        return best, kept

    def narrow(self, units: Units) -> nn.Module:
        """A module of these widths with any units: as fast as the right ones."""
        kept = {group: torch.arange(width) for group, width in units.items()}
        return shrunk(self.original, self.plan, kept, self.original.state_dict())

    @torch.no_grad()
    def error(self, child: nn.Module) -> float:
        """How far a module is from the original on examples that are held out; infinite where it is not finite."""
        still = copy.deepcopy(child).eval()
        value = float(distance(still(*self.held_out), self.original(*self.held_out), self.scale))
        return value if value == value else float("inf")  # noqa: PLR0124

    def _fine_tune(self, child: nn.Module) -> None:
        """Trains in place on agreement with the original, and on the targets where there are some."""
        differentiable(child)
        learning = [parameter for parameter in child.parameters() if parameter.requires_grad]
        if not learning or not self._updates:
            return
        optimizer = torch.optim.Adam(learning, lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._updates)
        generator = torch.Generator().manual_seed(self._seed)
        for i in range(self._updates):
            some = torch.randint(len(self.examples[0]), (FINE_TUNE_BATCH,), generator=generator)
            given = rows(self.examples, some)
            outputs = child(*given)
            with torch.no_grad():
                wanted = self.original(*given)
            value = distance(outputs, wanted, self.scale)
            if self._targets is not None:
                value = DISTILL * value + (1 - DISTILL) * self._loss(outputs, self._targets[some])
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learning, GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            self._progress("fine-tune", (i + 1) / self._updates, f"loss {value.item():.4f}")


def _to_speed(cut: _Cut, timed: tuple[Tensor, ...], speedup: float, max_error: float | None) -> PrunedModule:
    """The widest module that is fast enough, by measured time; the next one that is while the built one is not.

    Narrower is not always faster, so all rungs are measured.
    """
    ladder = rungs(cut.plan)
    dense, *seconds = times([cut.original, *(cut.narrow(units) for units in ladder)], timed, rounds=SEARCH_ROUNDS)
    fast = [i for i, taken in enumerate(seconds) if taken <= MARGIN * dense / speedup]
    if not fast:
        i = min(range(len(ladder)), key=seconds.__getitem__)
        return _infeasible(cut, ladder[i], dense, seconds[i], speedup)
    for i in fast[:CORRECTIONS]:
        result = _judged(cut, cut.to(ladder[i]), timed, speedup, max_error)
        if result.speedup >= speedup:
            break
    return result


def _infeasible(cut: _Cut, units: Units, dense: float, floor: float, speedup: float) -> PrunedModule:
    """No width is fast enough."""
    return PrunedModule(
        "rejected",
        f"the speed-up of {speedup:g} is beyond the floor of this module: at its narrowest it is {dense / floor:.1f} "
        f"times as fast, {floor * 1e6:.0f} us instead of {dense * 1e6:.0f} us",
        None,
        cut.plan.units,
        units,
        _parameters(cut.given),
        None,
        dense,
        floor,
        dense / floor,
        None,
        dict(cut.plan.layers),
        protected=cut.protected,
    )


def _judged(
    cut: _Cut,
    built: tuple[nn.Module, dict[str, Tensor]],
    timed: tuple[Tensor, ...],
    speedup: float | None,
    max_error: float | None,
) -> PrunedModule:
    """Measures what was built, and decides."""
    child, kept = built
    dense, narrow = times([cut.original, copy.deepcopy(child).eval()], timed, rounds=FINAL_ROUNDS)
    error = cut.error(child)
    reasons = []
    if error == float("inf"):
        reasons.append("its outputs are not finite")
    if speedup is not None and dense / narrow < speedup:
        reasons.append(f"built, it is {dense / narrow:.2f} times as fast, not {speedup:g}")
    if max_error is not None and error > max_error:
        reasons.append(
            f"its error of {error:.3g} is above {max_error:g}: keep more units, give more updates or examples, or "
            "allow a larger max_error"
        )
    return PrunedModule(
        "rejected" if reasons else "adopted",
        "; ".join(reasons),
        child,
        cut.plan.units,
        {group: len(indices) for group, indices in kept.items()},
        _parameters(cut.given),
        _parameters(child),
        dense,
        narrow,
        dense / narrow,
        error,
        dict(cut.plan.layers),
        {group: indices.tolist() for group, indices in kept.items()},
        cut.protected,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
