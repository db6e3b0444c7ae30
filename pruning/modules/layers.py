"""What layers do with units: which tensors make them, which read them, and how they lie in what the layer returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from detectors.errors import InvalidInputError
from pruning.modules.layouts import Along, Laid, reshaped, same
from pruning.modules.operations import elementwise
from pruning.modules.survey import Heard, Survey

Layer = Callable[[Survey, str, Any, Sequence[Any], Any], Any]
"""Survey, name, module, layouts of its arguments and what it returned -> layout of what it returned."""

ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
    nn.AlphaDropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.MaxPool1d, nn.MaxPool2d, nn.Upsample,
)  # fmt: skip
GATES: Mapping[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3}


def through(survey: Survey, name: str, module: nn.Module, args: Sequence[Any], result: Any) -> Any:
    """The layout of what a layer returned; units that go where they can not be followed are protected."""
    layer = LAYERS.get(type(module))
    if layer is not None and not _watched(module):
        return layer(survey, name, module, args, result)
    why = f"{name} ({type(module).__name__}) is no layer that can be followed"
    if any(True for _ in module.parameters()):
        survey.refused[name] = f"{type(module).__name__} is no layer that can be pruned"
    return lost(args, result, why)


def lost(args: Any, result: Any, why: str) -> Any:
    """Protects all units in the arguments; nothing is known of the result."""
    for laid in laids(args):
        laid.protect(why)
    return plain(result)


def laids(values: Any) -> list[Laid]:
    """All layouts in nested arguments."""
    if isinstance(values, Laid):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, tuple | list):
        return [laid for value in values for laid in laids(value)]
    return []


def plain(result: Any) -> Any:
    """The layout of tensors without units, in the structure they come in."""
    if isinstance(result, Tensor):
        return Laid(tuple(result.shape))
    if type(result) in {tuple, list}:
        return type(result)(plain(each) for each in result)
    return result


def _watched(module: nn.Module) -> bool:
    """Whether hooks change what the layer does (weight norm in its old form, for one)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def _linear(survey: Survey, name: str, module: nn.Linear, args: Sequence[Any], result: Tensor) -> Laid:
    _read(survey, name, module, args[0], -1, 1)
    return Laid(tuple(result.shape), (*args[0].axes[:-1], _make(survey, name, module, 0)))


def _convolution(survey: Survey, name: str, module: Any, args: Sequence[Any], result: Tensor) -> Laid:
    """[..., C, L] or [..., C, Y, X]; the weight is (out, in, kernel), that of a transposed one (in, out, kernel)."""
    laid, places = args[0], len(module.kernel_size)
    if module.groups != 1:
        survey.refused[name] = "a convolution in groups ties its channels"
        return Laid(lost(args, result, f"{name} is a convolution in groups").shape)
    Laid(laid.shape[-places:], laid.axes[-places:]).protect(f"{name} slides along its units")
    up = module.transposed
    _read(survey, name, module, laid, -places - 1, 0 if up else 1, math.prod(module.stride) if up else 1)
    made = _make(survey, name, module, 1 if up else 0)
    return Laid(tuple(result.shape), (*laid.axes[: -places - 1], made, *(None,) * places))


def _read(survey: Survey, name: str, module: Any, laid: Laid, axis: int, weight_axis: int, phases: int = 1) -> None:
    """What a weight reads along one axis of its input."""
    along = laid.axes[axis]
    if along is None:
        survey.fixed(f"{name}.weight", weight_axis, f"{name} also reads what are no units")
    else:
        bias = f"{name}.bias" if module.bias is not None else None
        survey.reads(f"{name}.weight", weight_axis, along, Heard(name, "input", axis), bias, phases)


def _make(survey: Survey, name: str, module: Any, weight_axis: int) -> Along | None:
    """Units along the output of a weight; a lone one can not be pruned."""
    width = module.weight.shape[weight_axis]
    if width == 1:
        survey.refused[name] = "it has one unit"
        return None
    along = Along(survey.made(name, width), voices=(name,))
    survey.owns(f"{name}.weight", weight_axis, along)
    if module.bias is not None:
        survey.owns(f"{name}.bias", 0, along)
    return along


def _recurrent(survey: Survey, name: str, module: nn.RNNBase, args: Sequence[Any], result: Any) -> Any:
    """One layer of an LSTM or GRU, in one direction or both: unit j of either direction leaves with the other."""
    if module.num_layers > 1:
        raise InvalidInputError(
            f"{name!r} has {module.num_layers} layers of one width in one module.",
            field="module",
            hint="Build it as modules of one layer each in a row, so that every layer can have a width of its own.",
        )
    if module.proj_size:
        survey.refused[name] = "its output is projected"
        return lost(args, result, f"{name} projects its output")
    laid, ways = args[0], ("", "_reverse") if module.bidirectional else ("",)
    Laid(laid.shape[:-1], laid.axes[:-1]).protect(f"{name} steps along its units")
    for way in ways:
        _gate_inputs(survey, name, module, laid.axes[-1], way)
    out, state = result
    if module.hidden_size == 1:
        survey.refused[name] = "it has one unit"
        return lost(args[1:], result, f"{name} has one unit")
    along = Along(survey.made(name, module.hidden_size), voices=tuple(name + way for way in ways))
    for i, way in enumerate(ways):
        _gates(survey, name, module, replace(along, voices=(name + way,)), way, i)
    begun = args[1] if len(args) > 1 else None
    for start in laids(begun):
        _begin(start.axes[-1], along, name)
    held = replace(along, voices=("+".join(along.voices),))
    last = tuple(_with_last(each, held) for each in (state if isinstance(state, tuple) else (state,)))
    return _with_last(out, along), last if isinstance(state, tuple) else last[0]


def _gate_inputs(survey: Survey, name: str, module: nn.RNNBase, along: Along | None, way: str) -> None:
    """What the gates of one direction read of the layer's input."""
    weight = f"{name}.weight_ih_l0{way}"
    if along is None:
        survey.fixed(weight, 1, f"{name} also reads what are no units")
    else:
        survey.reads(weight, 1, along, Heard(name, "input", -1), f"{name}.bias_ih_l0{way}" if module.bias else None)


def _gates(survey: Survey, name: str, module: nn.RNNBase, along: Along, way: str, first: int) -> None:
    """The units of one direction: rows of every gate, and columns of the recurrent weights.

    What recurrent weights lose goes into their own bias: the new gate of a GRU multiplies it by the reset gate.
    """
    rows = replace(along, voices=along.voices * GATES[type(module)])
    tensors = ["weight_ih_l0", "weight_hh_l0", *(["bias_ih_l0", "bias_hh_l0"] if module.bias else [])]
    for tensor in tensors:
        survey.owns(f"{name}.{tensor}{way}", 0, rows)
    bias = f"{name}.bias_hh_l0{way}" if module.bias else None
    survey.reads(f"{name}.weight_hh_l0{way}", 1, along, Heard(name, "output", -1, first), bias)


def _begin(start: Along | None, along: Along, name: str) -> None:
    """A first state that is given: its units and the layer's leave together."""
    if start is None:
        along.units.protect(f"{name} starts from a state that no unit makes")
    else:
        same(start, replace(along, voices=("",)))


def _with_last(tensor: Tensor, along: Along) -> Laid:
    return Laid(tuple(tensor.shape), (*(None,) * (tensor.ndim - 1), along))


def _batch_norm(survey: Survey, name: str, module: Any, args: Sequence[Any], _result: Tensor) -> Laid:
    """Each unit by its own statistics, which leave with it."""
    laid: Laid = args[0]
    along = laid.axes[1]
    survey.knows(name, 0, along)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, tensor) is not None:
            if along is None:
                survey.fixed(f"{name}.{tensor}", 0, f"{name} also normalises what are no units")
            else:
                survey.owns(f"{name}.{tensor}", 0, along)
    return laid


def _layer_norm(survey: Survey, name: str, module: nn.LayerNorm, args: Sequence[Any], _result: Tensor) -> Laid:
    """All units by their common statistics: those of the units that stay."""
    laid: Laid = args[0]
    first = len(laid.axes) - len(module.normalized_shape)
    for axis, along in enumerate(laid.axes[first:]):
        survey.knows(name, axis, along)
        for tensor in ("weight", "bias"):
            if getattr(module, tensor) is None:
                continue
            if along is None:
                survey.fixed(f"{name}.{tensor}", axis, f"{name} also normalises what are no units")
            else:
                survey.owns(f"{name}.{tensor}", axis, along)
    return laid


def _elementwise(_survey: Survey, _name: str, _module: nn.Module, args: Sequence[Any], result: Tensor) -> Laid:
    return elementwise([args[0]], tuple(result.shape))


def _pool(_survey: Survey, name: str, module: nn.Module, args: Sequence[Any], result: Any) -> Any:
    """Along the places of a signal, each channel for itself."""
    laid: Laid = args[0]
    if not isinstance(result, Tensor):
        return lost(args, result, f"{name} also returns places")
    places = 1 if "1d" in type(module).__name__ else 2
    if isinstance(module, nn.Upsample):
        places = len(laid.shape) - 2
    Laid(laid.shape[-places:], laid.axes[-places:]).protect(f"{name} runs along its units")
    return Laid(tuple(result.shape), (*laid.axes[:-places], *(None,) * places))


def _flatten(_survey: Survey, _name: str, _module: nn.Module, args: Sequence[Any], result: Tensor) -> Laid:
    return reshaped(args[0], tuple(result.shape))


def _unflatten(survey: Survey, name: str, module: nn.Unflatten, args: Sequence[Any], result: Tensor) -> Laid:
    """The sizes that it knows follow the units."""
    laid = reshaped(args[0], tuple(result.shape))
    sizes = tuple(module.unflattened_size)
    first = int(module.dim) % len(args[0].shape)
    for axis, along in enumerate(laid.axes[first : first + len(sizes)]):
        if sizes[axis] != -1:
            survey.knows(name, axis, along)
    return laid


LAYERS: Mapping[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d), _convolution),
    **dict.fromkeys(GATES, _recurrent),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLS, _pool),
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
}
