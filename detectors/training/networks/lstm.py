"""A stacked LSTM that predicts the next point; its error is the normalised prediction error (Malhotra et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import (
    Group,
    Network,
    Normal,
    Options,
    Pass,
    Slice,
    TensorState,
    generous_width,
    linear,
    weight,
)

GATES = 4  # torch's order: input, forget, cell, output
TENSORS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class LSTM(Network):
    """One-layer LSTMs in a row, each with its own width, and a linear head.

    State is h and c of every layer. The prediction of the next point is the head over the top layer's h, so the carried
    h already holds it.

    Args:
        n_features: F.
        widths: Hidden units of each layer, bottom first.
    """

    kind = "lstm"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {"layers": (1, 8), "width": (1, 2048)}

    def __init__(self, n_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_features = n_features
        self.widths = widths
        inputs = (n_features, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.LSTM(width_in, width, batch_first=True) for width_in, width in zip(inputs, widths, strict=True)
        )
        self.head = nn.Linear(widths[-1], n_features)

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; groups are `layer0`, `layer1`, ... ; no options."""
        del options
        return cls(n_features, tuple(units[f"layer{i}"] for i in range(len(units))))

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `layers` (2) and `width` (64; 128 where there are many features)."""
        return cls(n_features, (int(options.get("width", generous_width(n_features))),) * int(options.get("layers", 2)))

    @property
    def warm_up_points(self) -> int:
        """Fifty: the window that carried scores are compared with in `benchmarks/carried_state.py`."""
        return 50

    @property
    def blind_points(self) -> int:
        """The first point is predicted from nothing."""
        return 1

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """None: units say it all."""
        return {}

    @property
    def macs(self) -> int:
        """Gates of every layer, and the head."""
        inputs = (self.n_features, *self.widths[:-1])
        gates = sum(GATES * width * (width_in + width) for width_in, width in zip(inputs, self.widths, strict=True))
        return gates + self.widths[-1] * self.n_features

    def groups(self) -> tuple[Group, ...]:
        """One group a layer: the Intrinsic Sparse Structure of Wen et al. 2018."""
        groups = []
        for i, width in enumerate(self.widths):
            layer = f"layers.{i}"
            own = tuple(Slice(f"{layer}.{name}", 0, GATES) for name in TENSORS)
            above = (
                Slice(f"layers.{i + 1}.weight_ih_l0", 1, bias=f"layers.{i + 1}.bias_ih_l0")
                if i + 1 < len(self.widths)
                else Slice("head.weight", 1, bias="head.bias")
            )
            recurrent = Slice(f"{layer}.weight_hh_l0", 1, bias=f"{layer}.bias_hh_l0")
            groups.append(Group(f"layer{i}", width, own, (recurrent, above)))
        return tuple(groups)

    def fresh(self, batch: int) -> TensorState:
        """h0, c0, h1, c1, ..., each [B, H]."""
        like = self.head.weight
        return tuple(like.new_zeros(batch, width) for width in self.widths for _ in range(2))

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the point minus the prediction made after point t-1."""
        activations: dict[str, Tensor] = {}
        carried: list[Tensor] = []
        signal = points
        for i, layer in enumerate(self.layers):
            h, c = state[2 * i], state[2 * i + 1]
            signal, (h_next, c_next) = layer(signal, (h[None].contiguous(), c[None].contiguous()))  # [B, T, H]
            carried += [h_next[0], c_next[0]]
            activations[f"layer{i}"] = signal
        before = torch.cat([state[-2][:, None], signal[:, :-1]], dim=1)  # h of the top layer when each point arrived
        residual = points - self.head(before)
        return Pass(residual[:, :, None], tuple(carried), activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Gates as one Gemm over [x, h]: twice as fast as the LSTM operator for narrow layers, equal for wide ones."""
        h_names = [graph.state(f"h{i}", (width,)) for i, width in enumerate(self.widths)]
        c_names = [graph.state(f"c{i}", (width,)) for i, width in enumerate(self.widths)]
        w_head, b_head = linear(self.head)
        predicted = graph.affine(h_names[-1], w_head * scale.inverse, (b_head + scale.center) * scale.inverse)
        z = graph.op("Sub", graph.op("Mul", point, graph.const(scale.inverse)), predicted)
        signal = point
        for layer, width, h, c in zip(self.layers, self.widths, h_names, c_names, strict=True):
            gates, bias = _gates(layer, width)
            both = graph.op("Concat", signal, h, axis=1)
            raw = graph.affine(both, gates, bias)
            raw_sigmoid, raw_cell = graph.ops(
                "Split", raw, graph.const([3 * width, width], np.int64), outputs=2, axis=1
            )
            opened = graph.op("Sigmoid", raw_sigmoid)
            i, f, o = graph.ops("Split", opened, graph.const([width] * 3, np.int64), outputs=3, axis=1)
            cell = graph.op("Add", graph.op("Mul", f, c), graph.op("Mul", i, graph.op("Tanh", raw_cell)))
            signal = graph.op("Mul", o, graph.op("Tanh", cell))
            graph.carry(h, signal)
            graph.carry(c, cell)
        return z


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
