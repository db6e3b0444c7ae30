"""A small builder for step graphs: constants, operations and carried states, checked by `onnx` at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from detectors.runtime import CONTRIBUTION, NEXT_SUFFIX, SCORE, STATE_PREFIX, VALUES

OPSET = 17  # ONNX 1.12 (2022): old enough for every runtime in use, new enough for all we need
IR_VERSION = 8
NARROW = 32
"""Up to so many columns a product with a small matrix is faster than what it stands for, a broadcast along rows."""
ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 3


class Graph:
    """A step graph under construction. Every method that makes a tensor returns its name.

    Args:
        n_features: F.
        stride: Points that a step takes; more than one: `values` is [B, stride, F].
    """

    def __init__(self, n_features: int, stride: int = 1) -> None:
        self.n_features = n_features
        self.stride = stride
        self.prefix = ""
        """Put before the names of states, so that several networks can share a graph."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._states: list[tuple[str, tuple[int, ...], str]] = []
        self._domains: dict[str, int] = {}
        self._count = 0

    def const(self, value: ArrayLike, dtype: Any = np.float32) -> str:
        """A constant tensor."""
        name = self._name("const")
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def number(self, value: float) -> str:
        """A constant [1, 1]: beside a signal [B, 1] ONNX Runtime goes from row to row with a scalar."""
        return self.const([[value]])

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operation with one output."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def trees(self, *inputs: str, **attributes: Any) -> str:
        """A tree ensemble: the one operation that is not of ONNX's main domain."""
        self._domains[ML_DOMAIN] = ML_OPSET
        return self.op("TreeEnsembleRegressor", *inputs, domain=ML_DOMAIN, **attributes)

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """An operation with several outputs."""
        names = [self._name(kind.lower()) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def affine(self, signal: str, weight: ArrayLike, bias: ArrayLike) -> str:
        """The product of signal [B, in] and weight [in, out], plus bias [out]."""
        return self.op("Gemm", signal, self.const(weight), self.const(bias))

    def mixed(self, signal: str, scale: NDArray[np.float32], added: str, share: float = 1.0) -> str:
        """Signal [B, F] times scale [F], plus a share of added [B, F]."""
        if len(scale) <= NARROW:
            return self.op("Gemm", signal, self.const(np.diag(scale)), added, beta=share)
        if share != 1:
            added = self.op("Mul", added, self.number(share))
        return self.op("Add", self.op("Mul", signal, self.const(scale)), added)

    def total(self, signal: str, n: int, width: int) -> str:
        """The sum over the columns of signal [B, n], as [B, width] alike ones, or as [B, 1] to be broadcast."""
        if max(n, width) <= NARROW:
            return self.op("MatMul", signal, self.const(np.ones((n, width))))
        return self.op("ReduceSum", signal, self.const([1], np.int64), keepdims=1)

    def state(self, name: str, shape: tuple[int, ...]) -> str:
        """Declares a carried state [B, *shape]; the name to read it by."""
        full = STATE_PREFIX + self.prefix + name
        self._states.append((full, shape, ""))
        return full

    def carry(self, state: str, value: str) -> None:
        """Says what becomes of a declared state after the step."""
        index = next(i for i, (name, _, _) in enumerate(self._states) if name == state)
        self._states[index] = (state, self._states[index][1], value)

    def finish(self, score: str, contribution: str) -> bytes:
        """The serialised model."""
        outputs = [(score, SCORE, ()), (contribution, CONTRIBUTION, (self.n_features,))]
        outputs += [(value, name + NEXT_SUFFIX, shape) for name, shape, value in self._states]
        # Each output is some node's output under its public name.
        renamed: dict[str, str] = {}
        for value, public, _ in outputs:
            if value in renamed:
                self._nodes.append(helper.make_node("Identity", [renamed[value]], [public]))
            else:
                self._rename(value, public)
                renamed[value] = public
        graph = helper.make_graph(
            self._nodes,
            "step",
            [
                _info(VALUES, (self.n_features,) if self.stride == 1 else (self.stride, self.n_features)),
                *(_info(name, shape) for name, shape, _ in self._states),
            ],
            [_info(public, shape) for _, public, shape in outputs],
            self._constants,
        )
        model = helper.make_model(
            graph,
            producer_name="prunewatch",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(*it) for it in self._domains.items())],
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _rename(self, value: str, public: str) -> None:
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == value:
                        names[i] = public

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def _info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])
