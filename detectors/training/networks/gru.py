"""A stacked GRU (Cho et al. 2014) that predicts the next point: an LSTM's work with three gates and one state."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import Normal, TensorState, weight
from detectors.training.networks.stacked import Stacked

GATES = 3  # torch's order: reset, update, new


class GRU(Stacked):
    """See `Stacked`; state is h of every layer."""

    kind = "gru"
    cell, gates, held = nn.GRU, GATES, 1

    def advance(self, layer: nn.Module, signal: Tensor, begun: TensorState) -> tuple[Tensor, TensorState]:
        """See `Stacked.advance`."""
        signal, h = layer(signal, *begun)
        return signal, (h,)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Reset and update gate as one Gemm over [x, h], the new gate's two parts as one Gemm each.

        Of the ways to write a step this one is fastest or within a microsecond of it at every width and batch; one Gemm
        for all (a quarter of it zeros) and the GRU operator take up to 1.3 and 2.5 times as long.
        """
        h_names = [graph.state(f"h{i}", (width,)) for i, width in enumerate(self.widths)]
        z = self.draw_head(graph, point, h_names[-1], scale)
        signal = point
        for layer, width, h in zip(self.layers, self.widths, h_names, strict=True):
            gates = _gates(layer, width)
            both = graph.op("Concat", signal, h, axis=1)
            opened = graph.op("Sigmoid", graph.affine(both, *gates.opened))
            reset, update = graph.ops("Split", opened, graph.const([width] * 2, np.int64), outputs=2, axis=1)
            remembered = graph.op("Mul", reset, graph.affine(h, *gates.from_state))  # r * (W h + b): b inside
            new = graph.op("Tanh", graph.op("Add", graph.affine(signal, *gates.from_input), remembered))
            signal = graph.op("Add", new, graph.op("Mul", update, graph.op("Sub", h, new)))
            graph.carry(h, signal)
        return z


Affine = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight [in, out] and bias [out]."""


class _Gates(NamedTuple):
    """The products of one step: reset and update [in + H, 2H], the new gate's of the input and of the state."""

    opened: Affine
    from_input: Affine
    from_state: Affine


def _gates(layer: nn.Module, width: int) -> _Gates:
    inputs, state = (
        weight(layer, "weight_ih_l0").numpy().T,
        weight(layer, "weight_hh_l0").numpy().T,
    )  # [in, 3H], [H, 3H]
    input_bias, state_bias = weight(layer, "bias_ih_l0").numpy(), weight(layer, "bias_hh_l0").numpy()
    both, new = slice(0, 2 * width), slice(2 * width, 3 * width)
    return _Gates(
        (np.concatenate([inputs[:, both], state[:, both]]), input_bias[both] + state_bias[both]),
        (inputs[:, new], input_bias[new]),
        (state[:, new], state_bias[new]),
    )
