"""What criteria and the repair ask of a module: what its units say, and gradients of a loss on its examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning.importance import BATCHES
from pruning.modules.examples import rows, tensors_of
from pruning.modules.survey import Plan, Reading
from pruning.repair import ROWS

BATCH = 64  # examples of one gradient

Loss = Callable[[Any, Any], Tensor]
"""Of what the module returned for some examples, and their targets: a scalar."""


class ModuleEvidence:
    """A module on examples, as `pruning.importance` asks for it.

    Args:
        module: Is copied.
        plan: Of this module.
        examples: Arguments of `forward`.
        targets: Of the examples; None: units are judged by how much the module's own outputs change.
        loss: Of outputs and targets.
        seed: Of random scores, and of projections of the outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        examples: tuple[Tensor, ...],
        targets: Any,
        loss: Loss,
        seed: int,
    ) -> None:
        self.seed = seed
        self._module = differentiable(copy.deepcopy(module))
        self._plan, self._examples, self._targets, self._loss = plan, examples, targets, loss
        self._module.requires_grad_(requires_grad=True)

    def tensors(self) -> Mapping[str, Tensor]:
        """The module's state."""
        return self._module.state_dict()

    @torch.no_grad()
    def seen(self) -> dict[str, Tensor]:
        """What units say where they are read: {voice: [N, H]}; under the name of a group, everywhere it is heard."""
        heard: dict[str, list[Tensor]] = {}
        with _listening(self._module, self._plan, heard):
            for start in range(0, len(self._examples[0]), BATCH):
                self._module(*rows(self._examples, slice(start, start + BATCH)))
        seen = {voice: _some(parts) for voice, parts in heard.items()}
        for group in self._plan.groups:
            voices = {v for reading in self._plan.readings if reading.group == group.name for v in reading.voices}
            seen[group.name] = _some([seen[voice] for voice in sorted(voices)])
        return seen

    def gradients(self) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """Of the loss; without targets of random projections of the outputs.

        At its own outputs a module's distance from them has no gradient. The squared change of a random projection is,
        on average, the squared change of all outputs.
        """
        parameters = dict(self._module.named_parameters())
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(BATCHES):
            some = torch.randint(len(self._examples[0]), (BATCH,), generator=generator)
            self._module.zero_grad(set_to_none=True)
            outputs = self._module(*rows(self._examples, some))
            if self._targets is None:
                value = _projected(outputs, generator)
            else:
                value = self._loss(outputs, self._targets[some])
            value.backward()  # type: ignore[no-untyped-call]
            yield weights, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}


def differentiable(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, but for recurrent layers: not every backend derives them in that mode.

    They have one layer, so there is no dropout between layers that this would switch on.
    """
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase) and layer.num_layers == 1:
            layer.train()
    return module


def _projected(outputs: Any, generator: torch.Generator) -> Tensor:
    """The outputs times random signs, summed up."""
    parts = [
        (each * (torch.randint(0, 2, each.shape, generator=generator).to(each.dtype) * 2 - 1)).sum()
        for each in tensors_of(outputs)
    ]
    return torch.stack(parts).sum()


@contextmanager
def _listening(module: nn.Module, plan: Plan, heard: dict[str, list[Tensor]]) -> Iterator[None]:
    """Writes down what layers read while the module runs."""
    hooks = []
    for name in dict.fromkeys(reading.module for reading in plan.readings):
        readings = tuple(reading for reading in plan.readings if reading.module == name)
        hook = _writes_down(readings, plan.units, heard)
        hooks.append(module.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _writes_down(
    readings: Sequence[Reading], widths: Mapping[str, int], heard: dict[str, list[Tensor]]
) -> Callable[[nn.Module, Any, Mapping[str, Any], Any], None]:
    def hook(_module: nn.Module, args: Any, named: Mapping[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(named.values()))
        for reading in readings:
            tensor = given if reading.side == "input" else output[0]
            for voice, said in zip(reading.voices, _blocks(tensor, reading, widths[reading.group]), strict=True):
                heard.setdefault(voice, []).append(said)

    return hook


def _blocks(tensor: Tensor, reading: Reading, width: int) -> list[Tensor]:
    """What each block along the axis of a reading says, [N, H] each: every entry of a unit is heard."""
    flat = tensor.movedim(reading.axis, -1).flatten(0, -2)
    size = width * reading.inner
    blocks = [flat[:, i * size : (i + 1) * size] for i in range(reading.first, reading.first + len(reading.voices))]
    return [block.reshape(-1, width, reading.inner).transpose(1, 2).flatten(0, 1) for block in blocks]


def _some(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all parts, `ROWS` at the most."""
    joined = torch.cat(list(parts))
    if len(joined) <= ROWS:
        return joined
    return joined[torch.randperm(len(joined), generator=torch.Generator().manual_seed(0))[:ROWS]]
