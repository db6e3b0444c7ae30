"""What functions and methods of tensors do with units. What is not named here protects the units it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pruning.modules.layouts import Along, Laid, reshaped, same

Operation = Callable[[Sequence[Any], Mapping[str, Any], tuple[int, ...]], "Laid | None"]
"""Layouts and values of the arguments, and the shape of the result -> its layout; None: can not be followed."""

NAMESPACES = ("_operator", "torch", "torch.nn.functional", "torch._C._nn", "builtins")
ELEMENTWISE = frozenset(
    [
        "abs",
        "add",
        "celu",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "contiguous",
        "cos",
        "detach",
        "div",
        "divide",
        "double",
        "dropout",
        "elu",
        "erf",
        "exp",
        "expm1",
        "float",
        "gelu",
        "half",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "iadd",
        "imul",
        "isub",
        "itruediv",
        "leaky_relu",
        "log",
        "log1p",
        "log_sigmoid",
        "maximum",
        "minimum",
        "mish",
        "mul",
        "multiply",
        "neg",
        "negative",
        "ones_like",
        "pos",
        "pow",
        "reciprocal",
        "relu",
        "relu6",
        "rsqrt",
        "rsub",
        "selu",
        "sigmoid",
        "sign",
        "silu",
        "sin",
        "softplus",
        "softshrink",
        "softsign",
        "sqrt",
        "square",
        "sub",
        "subtract",
        "tanh",
        "tanhshrink",
        "threshold",
        "to",
        "truediv",
        "true_divide",
        "type_as",
        "where",
        "zeros_like",
    ]
)
ASKED = frozenset(
    [
        "dim",
        "getattr",
        "is_floating_point",
        "len",
        "ndimension",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "numel",
        "size",
    ]
)
"""Operations whose result does not depend on what units say."""
ATTRIBUTES = frozenset({"device", "dtype", "ndim", "shape"})


def elementwise(operands: Sequence[Laid], shape: tuple[int, ...]) -> Laid:
    """Entry by entry with broadcasting: units that meet leave together, what meets no units keeps them."""
    axes: list[Along | None] = []
    for place in range(-len(shape), 0):
        meeting = [it.axes[place] for it in operands if len(it.shape) >= -place and it.shape[place] == shape[place]]
        axes.append(_met(meeting) if shape[place] > 1 else None)
    return Laid(shape, tuple(axes))


def _met(meeting: Sequence[Along | None]) -> Along | None:
    """What lies along an axis where operands meet."""
    alongs = [along for along in meeting if along is not None]
    if len(alongs) < len(meeting):
        for along in alongs:
            along.units.protect("its units meet values that no unit makes")
        return None
    fits = [same(alongs[0], other) for other in alongs[1:]]
    return alongs[0] if alongs and all(fits) else None


def _by_number(laid: Laid, written: Sequence[Any]) -> Laid:
    """Sizes that stand as numbers in the module's code would not follow units that leave."""
    for size, along in zip(written, laid.axes, strict=False):
        if along is not None and isinstance(size, Written) and size >= 0:
            along.units.protect(f"the module's code has their number, {size}, written down")
    return laid


class Written(int):
    """A whole number that stands in the traced code itself and so never changes."""


def _flatten(args: Sequence[Any], _named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    return reshaped(args[0], shape)


def _reshape(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid | None:
    sizes = _listed(args[1:], named.get("shape", named.get("size")))
    return _by_number(reshaped(args[0], shape), sizes) if sizes else None


def _unflatten(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    dim = _dim(args[0], _get(args, named, 1, "dim"))
    sizes = _get(args, named, 2, "sizes")
    return _by_number(reshaped(args[0], shape), (*(-1,) * dim, *sizes))


def _listed(args: Sequence[Any], otherwise: Any = None) -> tuple[Any, ...]:
    """Numbers given one by one or as one sequence."""
    if len(args) == 1 and isinstance(args[0], tuple | list):
        return tuple(args[0])
    return tuple(args) if args else tuple(otherwise or ())


def _get(args: Sequence[Any], named: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else named.get(name, default)


def _dim(laid: Laid, dim: Any) -> int:
    return int(dim) % len(laid.shape)


def _permute(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    laid, dims = args[0], _listed(args[1:], named.get("dims"))
    return Laid(shape, tuple(laid.axes[dim] for dim in dims))


def _transpose(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    laid = args[0]
    one, two = (_dim(laid, _get(args, named, i, name)) for i, name in ((1, "dim0"), (2, "dim1")))
    axes = list(laid.axes)
    axes[one], axes[two] = axes[two], axes[one]
    return Laid(shape, tuple(axes))


def _turned(args: Sequence[Any], _named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    return Laid(shape, args[0].axes[::-1])


def _unsqueeze(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    axes = list(args[0].axes)
    axes.insert(int(_get(args, named, 1, "dim")) % len(shape), None)
    return Laid(shape, tuple(axes))


def _squeeze(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    laid, dims = args[0], _get(args, named, 1, "dim")
    asked = range(len(laid.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_dim(laid, dim) for dim in asked if laid.shape[dim] == 1}
    return Laid(shape, tuple(axis for i, axis in enumerate(laid.axes) if i not in gone))


def _expand(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    sizes = _listed(args[1:], named.get("size"))
    new = len(shape) - len(args[0].shape)
    return _by_number(Laid(shape, (*(None,) * new, *args[0].axes)), sizes)


def _repeat(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    """`repeat` puts copies behind each other: as many blocks more along an axis of units."""
    laid, times = args[0], _listed(args[1:], named.get("repeats"))
    old = (*(None,) * (len(shape) - len(laid.shape)), *laid.axes)
    return Laid(
        shape,
        tuple(axis and replace(axis, voices=axis.voices * int(n)) for axis, n in zip(old, times, strict=True)),
    )


def _reduce(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid | None:
    """Mean, sum and so on along axes without units."""
    laid, dims = args[0], _get(args, named, 1, "dim")
    keeps = bool(_get(args, named, 2, "keepdim", default=False))
    if dims is None:
        return None
    gone = {_dim(laid, dim) for dim in ([dims] if isinstance(dims, int) else dims)}
    Laid(tuple(laid.shape[i] for i in gone), tuple(laid.axes[i] for i in gone)).protect("its units are summed up")
    kept = [None if i in gone else axis for i, axis in enumerate(laid.axes) if keeps or i not in gone]
    return Laid(shape, tuple(kept))


def _flip(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    """Another order along axes without units."""
    laid = args[0]
    turned = {_dim(laid, dim) for dim in _listed(args[1:], named.get("dims"))}
    Laid(tuple(laid.shape[i] for i in turned), tuple(laid.axes[i] for i in turned)).protect("its units change places")
    return Laid(shape, tuple(None if i in turned else axis for i, axis in enumerate(laid.axes)))


def _cat(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid | None:
    """Along an axis without units, or blocks of the same units behind each other."""
    parts = list(_get(args, named, 0, "tensors"))
    dim = _dim(parts[0], _get(args, named, 1, "dim", default=0))
    if not all(len(part.shape) == len(shape) for part in parts):
        return None
    axes: list[Along | None] = []
    for place in range(len(shape)):
        meeting = [part.axes[place] for part in parts]
        axes.append(_joined(meeting) if place == dim else _met(meeting) if shape[place] > 1 else None)
    return Laid(shape, tuple(axes))


def _joined(parts: Sequence[Along | None]) -> Along | None:
    """What lies along the axis of a concatenation."""
    alongs = [along for along in parts if along is not None]
    first = alongs[0] if alongs else None
    if first is None:
        return None
    if len(alongs) == len(parts) and all(
        along.units.root is first.units.root and along.inner == first.inner for along in alongs
    ):
        said = [f"{voice} {i}" for i, along in enumerate(alongs) for voice in along.voices]
        return replace(first, voices=tuple(said))
    for along in alongs:
        along.units.protect("its units are concatenated with others")
    return None


def _stack(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid:
    parts = list(_get(args, named, 0, "tensors"))
    dim = int(_get(args, named, 1, "dim", default=0)) % len(shape)
    axes = list(elementwise(parts, parts[0].shape).axes)
    axes.insert(dim, None)
    return Laid(shape, tuple(axes))


def _softmax(args: Sequence[Any], named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid | None:
    """Along an axis without units, unit by unit."""
    laid, dim = args[0], _get(args, named, 1, "dim")
    if dim is None:
        return None
    along = laid.axes[_dim(laid, dim)]
    if along is not None:
        along.units.protect("its units are normalised by one another")
    return Laid(shape, tuple(axis if i != _dim(laid, dim) else None for i, axis in enumerate(laid.axes)))


def _item(args: Sequence[Any], _named: Mapping[str, Any], shape: tuple[int, ...]) -> Laid | None:
    """Numbers, slices, None and `...` along axes without units; all of an axis with units."""
    laid, index = args
    index = index if isinstance(index, tuple) else (index,)
    if not all(each is None or each is Ellipsis or isinstance(each, int | slice) for each in index):
        return None
    if any(isinstance(each, bool) for each in index):
        return None
    taken = sum(each is not None and each is not Ellipsis for each in index)
    rest = (slice(None),) * (len(laid.shape) - taken)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *rest, *index[at + 1 :])
    else:
        index = (*index, *rest)
    left, axes = iter(laid.axes), []
    for each in index:
        along = None if each is None else next(left)
        if along is not None and each != slice(None):
            along.units.protect("the module's code picks some of its units")
            along = None
        if not isinstance(each, int):
            axes.append(along)
    return Laid(shape, tuple(axes))


OPERATIONS: Mapping[str, Operation] = {
    "flatten": _flatten,
    **dict.fromkeys(("reshape", "view"), _reshape),
    "unflatten": _unflatten,
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    "t": _turned,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("cat", "concat"), _cat),
    "flip": _flip,
    "stack": _stack,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "getitem": _item,
}


def applied(name: str, args: Sequence[Any], named: Mapping[str, Any], result: Tensor) -> Laid | None:
    """The layout of a tensor that an operation made; None: the operation can not be followed."""
    shape = tuple(result.shape)
    plain_name = name.rstrip("_") if not name.startswith("_") else name
    if plain_name in ELEMENTWISE:
        return elementwise([it for it in (*args, *named.values()) if isinstance(it, Laid)], shape)
    operation = OPERATIONS.get(plain_name)
    if operation is None or not args:
        return None
    return operation(args, named, shape)
