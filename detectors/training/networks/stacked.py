"""What stacked recurrent forecasters share: layers in a row, a linear head, and a layer that can be bypassed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
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
    fold,
    generous_width,
    linear,
)

TENSORS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Stacked(Network):
    """One-layer recurrent networks in a row, each with its own width, and a linear head.

    The prediction of the next point is the head over the top layer's h, so the carried h already holds it.

    Args:
        n_features: F.
        widths: Hidden units of each layer, bottom first.
    """

    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {"layers": (1, 8), "width": (1, 2048)}
    cell: ClassVar[type[nn.LSTM] | type[nn.GRU]]
    """Of one layer."""
    gates: ClassVar[int]
    """How often a unit repeats along the rows of a layer's tensors."""
    held: ClassVar[int]
    """Tensors that a layer carries, h the first of them."""

    def __init__(self, n_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_features = n_features
        self.widths = widths
        inputs = (n_features, *widths[:-1])
        self.layers = nn.ModuleList(
            self.cell(width_in, width, batch_first=True) for width_in, width in zip(inputs, widths, strict=True)
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
        products = sum(width * (width_in + width) for width_in, width in zip(inputs, self.widths, strict=True))
        return self.gates * products + self.widths[-1] * self.n_features

    def groups(self) -> tuple[Group, ...]:
        """One group a layer: the Intrinsic Sparse Structure of Wen et al. 2018.

        What a lost unit said through the recurrent weights is made up for in `bias_hh`, not in `bias_ih`: the new gate
        of a GRU multiplies the whole recurrent part, its bias included, by the reset gate.
        """
        groups = []
        for i, width in enumerate(self.widths):
            layer = f"layers.{i}"
            own = tuple(Slice(f"{layer}.{name}", 0, self.gates) for name in TENSORS)
            weights, bias = self._reader(i)
            recurrent = Slice(f"{layer}.weight_hh_l0", 1, bias=f"{layer}.bias_hh_l0")
            above = Slice(weights, 1, bias=bias)
            groups.append(Group(f"layer{i}", width, own, (recurrent, above), reads=f"layer{i - 1}" if i else None))
        return tuple(groups)

    def without(self, group: str, mapping: Tensor, constant: Tensor) -> Network:
        """See `Network.without`; the layers above it move down by one."""
        names = [it.name for it in self.groups() if it.reads is not None]
        if group not in names:
            return super().without(group, mapping, constant)
        gone = names.index(group) + 1
        tensors = dict(self.state_dict())
        fold(tensors, *self._reader(gone), mapping, constant)
        for i in range(gone, len(self.widths)):
            for name in TENSORS:
                held = tensors.pop(f"layers.{i}.{name}")
                if i > gone:
                    tensors[f"layers.{i - 1}.{name}"] = held
        left = self.widths[:gone] + self.widths[gone + 1 :]
        return self.rebuilt({f"layer{i}": width for i, width in enumerate(left)}, self.options, tensors)

    def _reader(self, layer: int) -> tuple[str, str]:
        """Names of the weights and the bias that read a layer from above."""
        if layer + 1 == len(self.widths):
            return "head.weight", "head.bias"
        return f"layers.{layer + 1}.weight_ih_l0", f"layers.{layer + 1}.bias_ih_l0"

    def fresh(self, batch: int) -> TensorState:
        """What each layer carries, bottom first, each [B, H]."""
        like = self.head.weight
        return tuple(like.new_zeros(batch, width) for width in self.widths for _ in range(self.held))

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the point minus the prediction made after point t-1."""
        activations: dict[str, Tensor] = {}
        carried: list[Tensor] = []
        signal = points
        for i, layer in enumerate(self.layers):
            begun = tuple(part[None].contiguous() for part in state[self.held * i : self.held * (i + 1)])
            signal, ended = self.advance(layer, signal, begun)  # [B, T, H]
            carried += [part[0] for part in ended]
            activations[f"layer{i}"] = signal
        # h of the top layer when each point arrived
        before = torch.cat([state[-self.held][:, None], signal[:, :-1]], dim=1)
        residual = points - self.head(before)
        return Pass(residual[:, :, None], tuple(carried), activations)

    @abstractmethod
    def advance(self, layer: nn.Module, signal: Tensor, begun: TensorState) -> tuple[Tensor, TensorState]:
        """Runs a layer over [B, T, in] from the state it begins with: h at each point [B, T, H], and the last state.

        States are as torch has them, [1, B, H] each.
        """

    def draw_head(self, graph: Graph, point: str, h: str, scale: Normal) -> str:
        """Draws the normalised residual [B, F] of a point, from the top layer's h after the point before."""
        weights, bias = linear(self.head)
        predicted = graph.affine(h, -weights * scale.inverse, -(bias + scale.center) * scale.inverse)
        return graph.mixed(point, scale.inverse, predicted)
