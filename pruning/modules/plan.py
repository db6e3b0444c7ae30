"""Which units of a module can leave: its graph is traced, followed on example inputs, and what is found is tried."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from detectors.errors import InvalidInputError
from pruning.groups import Keep
from pruning.modules.examples import Inputs, as_tuple, rows, tensors_of
from pruning.modules.layers import LAYERS, laids, lost, plain, through
from pruning.modules.layouts import Along, Laid, Units
from pruning.modules.operations import ASKED, ATTRIBUTES, NAMESPACES, Written, applied
from pruning.modules.surgery import masked, remove
from pruning.modules.survey import Plan, Survey

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest output, between masked and removed
TRACED = 4  # examples that are enough to follow shapes


def plan(module: nn.Module, inputs: Inputs, *, protect: Sequence[str] = ()) -> Plan:
    """Finds the units of a module that can be pruned.

    What the analysis of the graph offers is tried before it is believed: every other unit of a group is removed, and
    the outputs must be those of the module in which nothing reads them.

    Args:
        module: Made of layers that can be followed (docs/modules.md); it stays as it is.
        inputs: Examples, as many tensors as `forward` takes.
        protect: Layers that keep all their units, as a bottleneck should.

    Raises:
        InvalidInputError: control flow that can not be traced, inputs that do not fit, recurrent layers stacked in one
            module, or a layer to protect that makes no units.
    """
    examples = as_tuple(inputs)
    if type(module) in LAYERS:
        raise InvalidInputError(
            f"a lone {type(module).__name__} has no units but its outputs.",
            field="module",
            hint="Give the module that it is a layer of.",
        )
    still = copy.deepcopy(module).eval()
    _require_cpu(still)
    _require_run(still, rows(examples, slice(TRACED)))
    survey = _surveyed(still, rows(examples, slice(TRACED)))
    found = survey.plan()
    asked = _asked(found, protect)
    found = found.without(dict.fromkeys(asked, "asked for"))
    wrong = {group: why for group in found.units if (why := _doubt(still, found, group, rows(examples, slice(TRACED))))}
    return found.without(wrong)


def _asked(found: Plan, protect: Sequence[str]) -> set[str]:
    """Groups of the layers to protect."""
    by_layer = {layer: group for group, layers in found.layers.items() for layer in layers}
    for layer in protect:
        if layer not in by_layer and layer not in found.protected:
            raise InvalidInputError(
                f"no layer {layer!r} makes units.", field="protect", hint=f"Those that do: {', '.join(by_layer)}."
            )
    return {by_layer[layer] for layer in protect if layer in by_layer}


def _require_cpu(module: nn.Module) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.device.type != "cpu":
            raise InvalidInputError(f"{name} is on {tensor.device}.", field="module", hint="Move it to the CPU first.")


@torch.no_grad()
def _require_run(module: nn.Module, examples: tuple[Tensor, ...]) -> None:
    try:
        module(*examples)
    except Exception as error:
        raise InvalidInputError(
            f"the module does not run on the inputs: {_sentence(error)}",
            field="inputs",
            hint="Give one tensor of examples for each argument of `forward`.",
        ) from error


def _surveyed(module: nn.Module, examples: tuple[Tensor, ...]) -> Survey:
    """Traces the module and follows its units through the graph, which has to say what the module says."""
    try:
        follower = _Follower(module, fx.Tracer().trace(module))
        with torch.no_grad():
            traced, wanted = tensors_of(follower.run(*examples)), tensors_of(module(*examples))
    except InvalidInputError:
        raise
    except Exception as error:
        raise _untraceable(_sentence(error)) from error
    if len(traced) != len(wanted) or not all(_close(one, other) for one, other in zip(traced, wanted, strict=True)):
        raise _untraceable("its graph says something else than the module itself.")
    return follower.survey


def _sentence(error: Exception) -> str:
    """What an exception says, with a full stop."""
    return f"{str(error).strip().rstrip('.')}."


def _untraceable(problem: str) -> InvalidInputError:
    return InvalidInputError(
        f"the module can not be traced: {problem}",
        field="module",
        hint="Move branches and loops that depend on values out of `forward`; make new tensors with "
        "`x.new_zeros(...)`, and leave out first states that are zeros.",
    )


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal shapes, and values to within the tolerance."""
    if one.shape != other.shape:
        return False
    limit = TOLERANCE.get(one.dtype, 1e-2) * max(float(other.abs().max()), 1e-6)
    return bool(((one - other).abs() <= limit).all())


class _Follower(fx.Interpreter):
    """Runs the graph on examples and follows what lies along the axes of every tensor."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        tensors = module.state_dict(keep_vars=True)
        times = Counter(id(tensor) for tensor in tensors.values())
        self.survey = Survey(frozenset(name for name, tensor in tensors.items() if times[id(tensor)] > 1))
        self._tensors = frozenset(tensors)
        self._laid: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; beside it its layout is kept."""
        result = super().run_node(n)
        args, named = self._given(n.args), self._given(n.kwargs)
        self._laid[n] = self._follow(n, args, named, result)
        return result

    def _given(self, values: Any) -> Any:
        """Arguments with layouts in place of tensors, and with the values of what are no tensors."""
        if isinstance(values, fx.Node):
            return self._laid[values]
        if isinstance(values, Mapping):
            return {key: self._given(value) for key, value in values.items()}
        if isinstance(values, tuple | list):
            return tuple(self._given(value) for value in values)
        if isinstance(values, slice):
            return slice(*(self._given(each) for each in (values.start, values.stop, values.step)))
        return Written(values) if type(values) is int else values

    def _follow(self, node: fx.Node, args: Any, named: Any, result: Any) -> Any:
        if node.op == "call_module":
            name = str(node.target)
            everything = (*args, *named.values())
            return through(self.survey, name, self.fetch_attr(name), everything, result)
        if node.op == "get_attr":
            return self._own_tensor(str(node.target), result)
        if node.op == "output":
            for laid in laids(args):
                laid.protect("its units are the module's output")
        if node.op in {"call_function", "call_method"}:
            return self._call(node, args, named, result)
        return plain(result)

    def _call(self, node: fx.Node, args: Any, named: Any, result: Any) -> Any:
        name = node.target if isinstance(node.target, str) else _known_name(node.target)
        if name == "getitem" and not isinstance(args[0], Laid):
            return args[0][args[1]]  # of a tuple of layouts, or of sizes
        if name in ASKED and (name != "getattr" or args[1] in ATTRIBUTES):
            return plain(result)
        laid = applied(name, args, named, result) if isinstance(result, Tensor) else None
        if laid is None and laids((args, named)):
            return lost((args, named), result, f"`{name}` can not be followed")
        return laid or plain(result)

    def _own_tensor(self, name: str, value: Any) -> Any:
        """A parameter or buffer of the module's own goes along with the units that it meets."""
        if name not in self._tensors or not isinstance(value, Tensor):
            return plain(value)
        axes: list[Along | None] = []
        for axis, size in enumerate(value.shape):
            along = Along(Units(None, size)) if size > 1 else None
            if along is not None:
                self.survey.owns(name, axis, along)
            axes.append(along)
        return Laid(tuple(value.shape), tuple(axes))


def _known_name(target: Callable[..., Any]) -> str:
    """A function's name where it is one of torch's or Python's own."""
    namespace = getattr(target, "__module__", None)
    name = str(getattr(target, "__name__", target))
    return name if namespace in NAMESPACES else f"{namespace}.{name}"


@torch.no_grad()
def _doubt(module: nn.Module, found: Plan, group: str, examples: tuple[Tensor, ...]) -> str:
    """Why removing units of a group is not what it should be; empty: it is."""
    keep: Keep = {group: torch.arange(0, found.units[group], 2)}
    try:
        have, want = (tensors_of(how(module, found, keep)(*examples)) for how in (remove, masked))
    except Exception:  # noqa: BLE001  (whatever the user's code raises)
        return "the module does not run with fewer of its units"
    if [it.shape for it in have] != [it.shape for it in want]:
        return "the module's output changes its shape with their number"
    fits = all(_close(one, other) for one, other in zip(have, want, strict=True))
    return "" if fits else "removing some of its units changes what the others say"
