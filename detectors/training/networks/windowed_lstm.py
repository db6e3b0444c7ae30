"""An LSTM that reads the last points anew for each point, as most libraries do (PyOD's LSTMAD).

It costs as many steps a point as it looks back. It is here for detectors that were trained elsewhere: what is fitted
here carries its state (`detectors.training.networks.lstm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from detectors.training.graph import Graph
from detectors.training.networks.base import (
    DEFAULT_WINDOW,
    Normal,
    Options,
    Pass,
    TensorState,
    WindowNetwork,
    linear,
    weight,
)
from detectors.training.networks.lstm import LSTM, operator_weights
from detectors.training.networks.stacked import TENSORS


class WindowedLSTM(WindowNetwork, LSTM):
    """The layers and units of `LSTM`, started from zero for every point.

    Its window is the points that it reads and the point that it predicts.

    Args:
        n_features: F.
        widths: Hidden units of each layer, bottom first.
        lookback: L, points that are read to predict the next one.
    """

    kind = "windowed_lstm"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {**LSTM.dense_options, "lookback": (1, 1024)}

    def __init__(self, n_features: int, widths: tuple[int, ...], lookback: int) -> None:
        super().__init__(n_features, widths)
        self.lookback, self.window = lookback, lookback + 1

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; groups as of `LSTM`; option `lookback`."""
        return cls(n_features, tuple(units[f"layer{i}"] for i in range(len(units))), int(options["lookback"]))

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `layers` (2), `width` (128) and `lookback` (50)."""
        widths = (int(options.get("width", 128)),) * int(options.get("layers", 2))
        return cls(n_features, widths, int(options.get("lookback", DEFAULT_WINDOW)))

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """How far it looks back."""
        return {"lookback": self.lookback}

    @property
    def macs(self) -> int:
        """Gates of every layer once for each point that is read, and the head."""
        head = self.widths[-1] * self.n_features
        return self.lookback * (super().macs - head) + head

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the point minus the prediction from the L points before it."""
        windows, carried = self.windows(points, state)  # [B, T, L + 1, F]
        signal = windows[:, :, :-1].flatten(0, 1)  # [B * T, L, F]
        activations: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            signal, _ = layer(signal)
            activations[f"layer{i}"] = signal.unflatten(0, windows.shape[:2])  # [B, T, L, H]
        predicted = self.head(signal[:, -1]).unflatten(0, windows.shape[:2])
        return Pass((points - predicted)[:, :, None], carried, activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Layers as LSTM operators over the window: one node each instead of a dozen for every point."""
        whole = self.draw_window(graph, point)  # [B, (L + 1) * F]
        n_features, lookback = self.n_features, self.lookback
        first, last, axis = (graph.const([at], np.int64) for at in (0, lookback * n_features, 1))
        past = graph.op("Slice", whole, first, last, axis)
        signal = graph.op("Reshape", past, graph.const([-1, lookback, n_features], np.int64))
        signal = graph.op("Transpose", signal, perm=[1, 0, 2])  # [L, B, F]
        top = signal
        for layer, width in zip(self.layers, self.widths, strict=True):
            held = operator_weights([weight(layer, name) for name in TENSORS])
            said, top = graph.ops(
                "LSTM", signal, *(graph.const(each) for each in held), outputs=2, hidden_size=width
            )  # [L, 1, B, H], [1, B, H]
            signal = graph.op("Squeeze", said, graph.const([1], np.int64))
        w_head, b_head = linear(self.head)
        heard = graph.op("Squeeze", top, graph.const([0], np.int64))
        predicted = graph.affine(heard, w_head * scale.inverse, (b_head + scale.center) * scale.inverse)
        return graph.op("Sub", graph.op("Mul", point, graph.const(scale.inverse)), predicted)
