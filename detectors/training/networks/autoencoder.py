"""A dense autoencoder over the last W points; its error is that of the reconstructed window."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import (
    DEFAULT_WINDOW,
    Group,
    Network,
    Normal,
    Options,
    Pass,
    Slice,
    TensorState,
    fold,
    linear,
    weight,
)
from detectors.training.networks.reconstruction import Reconstruction, newest

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
IN_GRAPH = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class Autoencoder(Reconstruction):
    """window -> encoder -> bottleneck -> decoder -> window, an activation after each hidden layer but the bottleneck.

    The bottleneck is protected: it decides what the detector can fail to reconstruct.

    Args:
        n_features: F.
        window: W, points.
        widths: Units of the hidden layers by group: `encoder0`, ..., `bottleneck`, `decoder0`, ...
        stride: Score every so many points.
        activation: Of the hidden layers.
        active_bottleneck: Whether the bottleneck has an activation too (PyOD's does).
    """

    kind = "autoencoder"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (2, 1024),
        "width": (1, 2048),
        "bottleneck": (1, 2048),
        "depth": (1, 4),
        "stride": (1, 1024),
    }

    def __init__(
        self,
        n_features: int,
        window: int,
        widths: Mapping[str, int],
        *,
        stride: int = 1,
        activation: str = "relu",
        active_bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.n_features, self.window, self.stride = n_features, window, stride
        self.activation, self.active_bottleneck = activation, active_bottleneck
        self.names = tuple(widths)
        size = window * n_features
        sizes = (size, *widths.values(), size)
        made = {name: nn.Linear(*pair) for name, pair in zip((*self.names, "output"), pairwise(sizes), strict=True)}
        self.layers = nn.ModuleDict(made)

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; groups `encoder0`.., `bottleneck`, `decoder0`..; options as in `options`."""
        return cls(
            n_features,
            int(options["window"]),
            units,
            stride=int(options.get("stride", 1)),
            activation=str(options.get("activation", "relu")),
            active_bottleneck=bool(options.get("active_bottleneck", False)),
        )

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `window` (50), `width` (256), `depth` (1 layer before the bottleneck and one after), `stride` (1).

        `bottleneck` is 16, at most a quarter of the window's numbers.
        """
        window, width = int(options.get("window", DEFAULT_WINDOW)), int(options.get("width", 256))
        bottleneck = int(options.get("bottleneck", min(16, max(2, window * n_features // 4))))
        depth = range(int(options.get("depth", 1)))
        widths = {
            **{f"encoder{i}": width for i in depth},
            "bottleneck": bottleneck,
            **{f"decoder{i}": width for i in depth},
        }
        return cls(n_features, window, widths, stride=int(options.get("stride", 1)))

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Window, stride and activations."""
        return {
            "window": self.window,
            "stride": self.stride,
            "activation": self.activation,
            "active_bottleneck": self.active_bottleneck,
        }

    @property
    def macs(self) -> int:
        """All layers."""
        return sum(layer.weight.numel() for layer in self.layers.values() if isinstance(layer, nn.Linear))

    def groups(self) -> tuple[Group, ...]:
        """Rows of one layer, columns of the next. Any hidden layer but the first and the bottleneck may be bypassed."""
        return tuple(
            Group(
                name,
                weight(self.layers[name], "bias").numel(),
                (Slice(f"layers.{name}.weight", 0), Slice(f"layers.{name}.bias", 0)),
                (Slice(f"layers.{reader}.weight", 1, bias=f"layers.{reader}.bias"),),
                protected=name == "bottleneck",
                reads=None if name == "bottleneck" else read,
            )
            for read, name, reader in zip((None, *self.names), self.names, (*self.names[1:], "output"), strict=False)
        )

    def without(self, group: str, mapping: Tensor, constant: Tensor) -> Network:
        """See `Network.without`; the other layers keep their names."""
        if all(it.reads is None for it in self.groups() if it.name == group):
            return super().without(group, mapping, constant)
        reader = (*self.names, "output")[self.names.index(group) + 1]
        tensors = dict(self.state_dict())
        fold(tensors, f"layers.{reader}.weight", f"layers.{reader}.bias", mapping, constant)
        left = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"layers.{group}.")}
        units = {name: width for name, width in self.units.items() if name != group}
        return self.rebuilt(units, self.options, left)

    def tensors_over(self, window: int) -> dict[str, Tensor]:
        """See `Reconstruction.tensors_over`."""
        return newest(self.state_dict(), window * self.n_features, f"layers.{self.names[0]}", "layers.output")

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the window that ends at t minus its reconstruction."""
        windows, carried = self.windows(points, state)
        signal = flat = windows.reshape(*points.shape[:2], -1)  # [B, T, W * F]
        activations = {}
        for name in self.names:
            signal = self.layers[name](signal)
            if self._active(name):
                signal = ACTIVATIONS[self.activation](signal)
            activations[name] = signal
        residual = (flat - self.layers["output"](signal)).view(windows.shape)
        return Pass(residual, carried, activations)

    def _active(self, name: str) -> bool:
        return self.active_bottleneck or name != "bottleneck"

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """The window is carried flat and already in normalised units.

        Broadcasting over a short last axis costs more than the matrix products, so both scales go into the first and
        the last weights: normalised residual = window - output, two tensors of one shape.
        """
        inverse = scale.inverse
        by_input, by_shift = np.tile(inverse, self.window), np.tile(scale.center * inverse, self.window)  # [W * F]
        newest = graph.op("Mul", point, graph.const(np.tile(inverse, self.stride)))
        signal = flat = self.draw_window(graph, newest)
        for i, name in enumerate(self.names):
            weights, bias = linear(self.layers[name])
            signal = graph.affine(signal, weights / by_input[:, None] if i == 0 else weights, bias)
            if self._active(name):
                signal = graph.op(IN_GRAPH[self.activation], signal)
        w_out, b_out = linear(self.layers["output"])
        return graph.op("Sub", flat, graph.affine(signal, w_out * by_input, b_out * by_input + by_shift))
