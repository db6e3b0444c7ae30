"""One ONNX Runtime session that steps a batch of points.

The contract of every step graph (`detectors.training.export` writes it):

    inputs   values[B, F] float32, then one tensor `state.<name>`[B, ...] for each state the network carries
    outputs  score[B], contribution[B, F], then `state.<name>.next`[B, ...] in the same order

A detector that scores every n-th point takes values[B, n, F], the points since its last step. One that carries the last
value of a sensor on where a value is missing (NaN) has the state `state.last`; all others take finite values only.
A fresh series starts from zeros. Score = -log10 of the calibrated tail probability of the error; contributions sum to
the error over features. Inputs are raw values: everything else is inside the graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from detectors.errors import CorruptBundleError
from detectors.graph_check import check_graph

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: Linux wheels since 1.29 phone home otherwise
import onnxruntime as ort

FloatArray = NDArray[np.float32]
State = tuple[FloatArray, ...]
"""One array [B, ...] for each state tensor, in the order of `Runtime.state_shapes`."""

VALUES = "values"
SCORE = "score"
CONTRIBUTION = "contribution"
STATE_PREFIX = "state."
MISSING_STATE = "last"
NEXT_SUFFIX = ".next"


@dataclass(frozen=True)
class Step:
    """What one step gives back.

    Attributes:
        score: [B], -log10 of the tail probability; higher = more abnormal.
        contribution: [B, F], each feature's share of the error; sums to the error.
        state: what to carry to the next step.
    """

    score: FloatArray
    contribution: FloatArray
    state: State


class Runtime:
    """Runs one bundle's step graph on the CPU.

    Args:
        graph: The bytes of `step.onnx`, already verified.
        threads: Threads inside one step. One is right for small networks and keeps scores independent of the machine.
        parameters: Of the network inside, where they are known.

    Raises:
        CorruptBundleError: the graph holds what a step graph may not (`detectors.graph_check`), ONNX Runtime refuses
            it, or it does not follow the contract above.
    """

    can_be_bound = True
    """Whether `bound` steps."""

    def __init__(self, graph: bytes, *, threads: int = 1, parameters: int | None = None) -> None:
        check_graph(graph, parameters)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads buy microseconds and cost a device its battery.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Subnormals appear in decaying LSTM cells and cost a hundred cycles each.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base class
            raise CorruptBundleError("ONNX Runtime can not load this graph.", field="step.onnx") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        states = [node.name for node in inputs[1:]]
        expected = [SCORE, CONTRIBUTION, *(f"{name}{NEXT_SUFFIX}" for name in states)]
        if (
            not inputs
            or inputs[0].name != VALUES
            or len(inputs[0].shape) not in {2, 3}
            or not all(name.startswith(STATE_PREFIX) for name in states)
            or [node.name for node in outputs] != expected
            or any(node.type != "tensor(float)" for node in [*inputs, *outputs])
            or any(not isinstance(size, int) for node in inputs for size in node.shape[1:])
        ):
            raise CorruptBundleError("this graph does not follow the step contract.", field="step.onnx")
        self._input_names = [node.name for node in inputs]
        self._output_names = expected
        self.n_features: int = int(inputs[0].shape[-1])
        self.stride: int = int(inputs[0].shape[1]) if len(inputs[0].shape) == 3 else 1
        """Points that one step takes."""
        self.takes_missing: bool = STATE_PREFIX + MISSING_STATE in states
        """Whether a value may be NaN."""
        self.state_shapes: tuple[tuple[int, ...], ...] = tuple(
            tuple(int(size) for size in node.shape[1:]) for node in inputs[1:]
        )
        """Shape of each state tensor without the batch axis."""
        self.state_bytes = sum(4 * int(np.prod(shape)) for shape in self.state_shapes)
        """Bytes of state that one series carries."""

    def fresh(self, batch: int) -> State:
        """The state of `batch` series that have seen nothing."""
        return tuple(np.zeros((batch, *shape), np.float32) for shape in self.state_shapes)

    def step(self, values: FloatArray, state: State) -> Step:
        """Scores one point for each of B series.

        Args:
            values: [B, F] raw float32 ([B, stride, F] with a stride); finite unless `takes_missing`.
            state: B series' state.
        """
        feed = dict(zip(self._input_names, (values, *state), strict=True))
        score, contribution, *carried = self._session.run(self._output_names, feed)
        return Step(score, contribution, tuple(carried))

    def bound(self, inputs: Sequence[FloatArray], outputs: Sequence[FloatArray]) -> Callable[[], None]:
        """A step from fixed arrays to fixed arrays, all of them C contiguous; to be kept while it is called.

        Args:
            inputs: Values and state, as of `step`.
            outputs: Score, contribution and state, none of them an input.
        """
        binding = self._session.io_binding()
        for bind, names, arrays in (
            (binding.bind_input, self._input_names, inputs),
            (binding.bind_output, self._output_names, outputs),
        ):
            for name, array in zip(names, arrays, strict=True):
                bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return partial(self._session.run_with_iobinding, binding)
