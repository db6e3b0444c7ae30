"""A stacked LSTM that predicts the next point; its error is the normalised prediction error (Malhotra et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import Normal, TensorState, weight
from detectors.training.networks.stacked import Stacked

GATES = 4  # torch's order: input, forget, cell, output
PANEL = 16
"""Columns that ONNX Runtime multiplies at once, on processors with AVX and on ARM."""


class LSTM(Stacked):
    """See `Stacked`; state is h and c of every layer."""

    kind = "lstm"
    cell, gates, held = nn.LSTM, GATES, 2

    def advance(self, layer: nn.Module, signal: Tensor, begun: TensorState) -> tuple[Tensor, TensorState]:
        """See `Stacked.advance`."""
        signal, ended = layer(signal, begun)
        return signal, ended

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Gates as products over [x, h]: twice as fast as the LSTM operator for narrow layers, equal for wide ones."""
        h_names = [graph.state(f"h{i}", (width,)) for i, width in enumerate(self.widths)]
        c_names = [graph.state(f"c{i}", (width,)) for i, width in enumerate(self.widths)]
        z = self.draw_head(graph, point, h_names[-1], scale)
        signal = point
        for layer, width, h, c in zip(self.layers, self.widths, h_names, c_names, strict=True):
            both = graph.op("Concat", signal, h, axis=1)
            i, f, o, offered = _opened(graph, both, width, *_gates(layer, width))
            cell = graph.op("Add", graph.op("Mul", f, c), graph.op("Mul", i, offered))
            signal = graph.op("Mul", o, graph.op("Tanh", cell))
            graph.carry(h, signal)
            graph.carry(c, cell)
        return z


def _opened(graph: Graph, both: str, width: int, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> list[str]:
    """The gates [B, H] input, forget, output, and what the cell is offered.

    ONNX Runtime takes each product and its activation as one operation, and multiplies in panels of `PANEL` columns.
    Where four products would fill many panels up with nothing, the three sigmoids share one and are split afterwards.
    """
    if width <= PANEL or width % PANEL == 0:
        parts = [slice(at, at + width) for at in range(0, GATES * width, width)]
        raw = [graph.affine(both, weights[:, part], bias[part]) for part in parts]
        return [graph.op(kind, it) for kind, it in zip(("Sigmoid", "Sigmoid", "Sigmoid", "Tanh"), raw, strict=True)]
    sigmoids, tangent = slice(0, 3 * width), slice(3 * width, None)
    opened = graph.op("Sigmoid", graph.affine(both, weights[:, sigmoids], bias[sigmoids]))
    offered = graph.op("Tanh", graph.affine(both, weights[:, tangent], bias[tangent]))
    return [*graph.ops("Split", opened, graph.const([width] * 3, np.int64), outputs=3, axis=1), offered]


def _gates(layer: nn.Module, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One matrix [in + H, 4H] and one bias [4H], gates ordered input, forget, output, cell."""
    joined = torch.cat([weight(layer, "weight_ih_l0"), weight(layer, "weight_hh_l0")], dim=1)  # [4H, in + H]
    bias = weight(layer, "bias_ih_l0") + weight(layer, "bias_hh_l0")
    order = torch.cat([torch.arange(gate * width, (gate + 1) * width) for gate in (0, 1, 3, 2)])
    return joined[order].T.contiguous().numpy(), bias[order].numpy()


def operator_weights(*ways: Sequence[Tensor]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The tensors of a layer, for each direction in the order of `TENSORS`, as ONNX's LSTM takes them.

    Returns:
        W [directions, 4H, in], R [directions, 4H, H] and B [directions, 8H], gates ordered input, output, forget, cell.
    """
    ordered = [
        [torch.cat([tensor.chunk(GATES)[gate] for gate in (0, 3, 1, 2)]).numpy() for tensor in tensors]
        for tensors in ways
    ]
    w, r, b_in, b_hidden = (np.stack(each) for each in zip(*ordered, strict=True))
    return w, r, np.concatenate([b_in, b_hidden], axis=1)
