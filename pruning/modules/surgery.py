"""Taking units out of a module: a new, really smaller one. The one that is given is never touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.groups import Keep, checked, dropped, expand, kept_tensors
from pruning.modules.survey import Plan


def remove(module: nn.Module, plan: Plan, keep: Keep) -> nn.Module:
    """A module of the kept units with their weights; its layers know their new sizes.

    Args:
        module: Stays as it is.
        plan: Of this module.
        keep: Surviving units by group.
    """
    kept = checked(plan.groups, keep)
    return shrunk(module, plan, kept, module.state_dict())


def shrunk(module: nn.Module, plan: Plan, kept: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with the kept part of the given tensors; `kept` names all groups."""
    smaller = copy.deepcopy(module)
    touched = {where.tensor for group in plan.groups for where in (*group.own, *group.consumers)}
    for name, tensor in kept_tensors({name: tensors[name] for name in touched}, plan.groups, kept).items():
        path, _, last = name.rpartition(".")
        _put(smaller.get_submodule(path), last, tensor)
    for name in {tensor.rpartition(".")[0] for tensor in touched} | set(plan.sized):
        layer = smaller.get_submodule(name)
        _resize(layer)
        for owner, where in plan.sized.get(name, ()):
            _reshape(layer, where.axis, len(kept[owner]) * where.blocks * where.inner)
    return smaller


def _put(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Replaces a parameter or a buffer by a smaller one."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        setattr(layer, name, tensor)


def _resize(layer: nn.Module) -> None:
    """Makes the sizes that a layer knows agree with its tensors."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        layer.in_channels, layer.out_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.LSTM | nn.GRU):
        layer.hidden_size = layer.get_parameter("weight_hh_l0").shape[1]
        layer.input_size = layer.get_parameter("weight_ih_l0").shape[1]
        _require_gates(layer)
        layer.flatten_parameters()


def _require_gates(layer: nn.RNNBase) -> None:
    """Asserts the shapes of a recurrent layer: a mis-sliced one may run without an error and say something else.

    The sizes on which `forward` relies have to be those of the tensors it is given, too.
    """
    gates = 4 if isinstance(layer, nn.LSTM) else 3
    for way in ("", "_reverse") if layer.bidirectional else ("",):
        shapes = {
            "weight_ih_l0": (gates * layer.hidden_size, layer.input_size),
            "weight_hh_l0": (gates * layer.hidden_size, layer.hidden_size),
            **(
                {"bias_ih_l0": (gates * layer.hidden_size,), "bias_hh_l0": (gates * layer.hidden_size,)}
                if layer.bias
                else {}
            ),
        }
        for name, wanted in shapes.items():
            have = tuple(getattr(layer, name + way).shape)
            assert have == wanted, f"{name}{way}: {have}, wanted {wanted}"
    named = [getattr(layer, name) for names in layer._all_weights for name in names]  # noqa: SLF001
    assert all(a is b for a, b in zip(layer._flat_weights, named, strict=True))  # noqa: SLF001


def _reshape(layer: nn.Module, axis: int, size: int) -> None:
    """Makes the shape that a layer knows beside its weights agree with what it is given."""
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (*layer.normalized_shape[:axis], size, *layer.normalized_shape[axis + 1 :])
    elif isinstance(layer, nn.Unflatten):
        sizes = list(layer.unflattened_size)
        layer.unflattened_size = torch.Size([*sizes[:axis], size, *sizes[axis + 1 :]])
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = size


def masked(module: nn.Module, plan: Plan, keep: Keep) -> nn.Module:
    """A module of the same size in which nothing reads the units that are not kept.

    Layer norms are taken over the kept units alone: what is removed has no part in their statistics.
    """
    kept = checked(plan.groups, keep)
    copied = copy.deepcopy(module)
    tensors = copied.state_dict()
    with torch.no_grad():
        for group in plan.groups:
            gone = dropped(kept[group.name], group.width)
            for where in group.consumers:
                tensors[where.tensor].index_fill_(where.axis, expand(gone, group.width, where), 0.0)
    for name, places in plan.sized.items():
        layer = copied.get_submodule(name)
        if isinstance(layer, nn.LayerNorm):
            there = torch.ones(layer.normalized_shape, dtype=torch.bool)
            for owner, where in places:
                width = plan.units[owner]
                gone = expand(dropped(kept[owner], width), width, where)
                there.index_fill_(where.axis, gone, value=False)
            copied.set_submodule(name, KeptLayerNorm(layer, there))
    return copied


class KeptLayerNorm(nn.Module):
    """A layer norm whose statistics are those of some of its entries.

    Args:
        norm: Its weights and shape.
        there: Mask of the entries that count, in the norm's shape.
    """

    def __init__(self, norm: nn.LayerNorm, there: Tensor) -> None:
        super().__init__()
        self.norm, self._there = norm, there

    def forward(self, values: Tensor) -> Tensor:
        """Normalised as if the other entries were not there; those are zeros."""
        shape = self.norm.normalized_shape
        taken = values.flatten(values.ndim - len(shape))[..., self._there.flatten()]
        normal = F.layer_norm(taken, (taken.shape[-1],), eps=self.norm.eps)
        out = values.new_zeros(*values.shape[: values.ndim - len(shape)], self._there.numel())
        out[..., self._there.flatten()] = normal
        out = out.reshape(values.shape)
        weight = 1.0 if self.norm.weight is None else self.norm.weight
        bias = 0.0 if self.norm.bias is None else self.norm.bias
        return out * weight + bias
