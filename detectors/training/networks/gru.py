"""A stacked GRU (Cho et al. 2014) that predicts the next point: an LSTM's work with three gates and one state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

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

GATES = 3  # torch's order: reset, update, new


class GRU(Network):
    """One-layer GRUs in a row, each with its own width, and a linear head.

    State is h of every layer. The prediction of the next point is the head over the top layer's h, so the carried h
    already holds it.

    Args:
        n_features: F.
        widths: Hidden units of each layer, bottom first.
    """

    kind = "gru"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {"layers": (1, 8), "width": (1, 2048)}

    def __init__(self, n_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_features = n_features
        self.widths = widths
        inputs = (n_features, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.GRU(width_in, width, batch_first=True) for width_in, width in zip(inputs, widths, strict=True)
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
        """Fifty, as of the LSTM."""
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
        """One group a layer.

        What a lost unit said through the recurrent weights is made up for in `bias_hh`, not in `bias_ih`: the new gate
        multiplies the whole recurrent part, its bias included, by the reset gate.
        """
        groups = []
        for i, width in enumerate(self.widths):
            layer = f"layers.{i}"
            own = tuple(
                Slice(f"{layer}.{name}", 0, GATES)
                for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            )
            above = (
                Slice(f"layers.{i + 1}.weight_ih_l0", 1, bias=f"layers.{i + 1}.bias_ih_l0")
                if i + 1 < len(self.widths)
                else Slice("head.weight", 1, bias="head.bias")
            )
            recurrent = Slice(f"{layer}.weight_hh_l0", 1, bias=f"{layer}.bias_hh_l0")
            groups.append(Group(f"layer{i}", width, own, (recurrent, above)))
        return tuple(groups)

    def fresh(self, batch: int) -> TensorState:
        """h0, h1, ..., each [B, H]."""
        like = self.head.weight
        return tuple(like.new_zeros(batch, width) for width in self.widths)

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the point minus the prediction made after point t-1."""
        activations: dict[str, Tensor] = {}
        carried: list[Tensor] = []
        signal = points
        for i, layer in enumerate(self.layers):
            signal, h_next = layer(signal, state[i][None].contiguous())  # [B, T, H]
            carried.append(h_next[0])
            activations[f"layer{i}"] = signal
        before = torch.cat([state[-1][:, None], signal[:, :-1]], dim=1)  # h of the top layer when each point arrived
        residual = points - self.head(before)
        return Pass(residual[:, :, None], tuple(carried), activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Reset and update gate as one Gemm over [x, h], the new gate's two parts as one Gemm each.

        Of the ways to write a step this one is fastest or within a microsecond of it at every width and batch; one Gemm
        for all (a quarter of it zeros) and the GRU operator take up to 1.3 and 2.5 times as long.
        """
        h_names = [graph.state(f"h{i}", (width,)) for i, width in enumerate(self.widths)]
        w_head, b_head = linear(self.head)
        predicted = graph.affine(h_names[-1], w_head * scale.inverse, (b_head + scale.center) * scale.inverse)
        z = graph.op("Sub", graph.op("Mul", point, graph.const(scale.inverse)), predicted)
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
