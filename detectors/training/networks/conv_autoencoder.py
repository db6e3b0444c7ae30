"""A convolutional autoencoder over the last W points; its error is that of the reconstructed window."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import (
    DEFAULT_WINDOW,
    Group,
    Normal,
    Options,
    Pass,
    Slice,
    TensorState,
    weight,
)
from detectors.training.networks.reconstruction import Reconstruction

KERNEL = 5  # taps; odd, so that a position of the halved window lies over the middle of its taps
PADDING = KERNEL // 2
HALVING = 2  # each layer down halves the window, rounded up


class ConvAutoencoder(Reconstruction):
    """window -> convolutions down -> bottleneck -> transposed convolutions up -> window, over time.

    Every layer down, the bottleneck included, takes L positions to L' = ceil(L / 2); its mirror image takes them back
    to exactly L: a transposed convolution gives 2 L' - 1 positions, and one more (`output_padding`) where L is even. So
    any window comes out as long as it went in. A ReLU follows each hidden layer but the bottleneck. Beyond the ends of
    the window there are zeros, the mean.

    The bottleneck is protected: it decides what the detector can fail to reconstruct.

    Args:
        n_features: F.
        window: W, points.
        widths: Filters of the hidden layers by group: `encoder0`, ..., `bottleneck`, `decoder0`, ... as many after the
            bottleneck as before.
        stride: Score every so many points.
    """

    kind = "conv_autoencoder"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (4, 1024),
        "width": (1, 2048),
        "bottleneck": (1, 2048),
        "depth": (1, 4),
        "stride": (1, 1024),
    }

    def __init__(self, n_features: int, window: int, widths: Mapping[str, int], *, stride: int = 1) -> None:
        super().__init__()
        self.n_features, self.window, self.stride = n_features, window, stride
        self.names = tuple(widths)
        down = len(widths) // 2 + 1  # the bottleneck is the last of them
        lengths = [window]
        for _ in range(down):
            lengths.append(-(-lengths[-1] // HALVING))
        self.lengths = tuple(lengths[1:] + lengths[-2::-1])
        """Positions after each layer."""
        channels = pairwise((n_features, *widths.values(), n_features))
        self.layers = nn.ModuleDict(
            {
                name: (nn.Conv1d if i < down else nn.ConvTranspose1d)(*pair, KERNEL, HALVING, PADDING)
                for i, (name, pair) in enumerate(zip((*self.names, "output"), channels, strict=True))
            }
        )

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; groups `encoder0`.., `bottleneck`, `decoder0`..; options as in `options`."""
        return cls(n_features, int(options["window"]), units, stride=int(options.get("stride", 1)))

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `window` (50), `width` (128 filters), `depth` (1: layers on either side of it), `stride` (1).

        `bottleneck` is a channel for every second feature, at most 8: at depth 1 it holds an eighth of the window's
        numbers, a quarter where there is one feature.
        """
        width, depth = int(options.get("width", 128)), range(int(options.get("depth", 1)))
        widths = {
            **{f"encoder{i}": width for i in depth},
            "bottleneck": int(options.get("bottleneck", min(8, max(1, n_features // 2)))),
            **{f"decoder{i}": width for i in depth},
        }
        return cls(n_features, int(options.get("window", DEFAULT_WINDOW)), widths, stride=int(options.get("stride", 1)))

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Window and stride."""
        return {"window": self.window, "stride": self.stride}

    @property
    def macs(self) -> int:
        """All layers: each position of the shorter side of a layer meets the whole kernel."""
        shorter = (min(pair) for pair in pairwise((self.window, *self.lengths)))
        return sum(
            length * weight(layer, "weight").numel()
            for length, layer in zip(shorter, self.layers.values(), strict=True)
        )

    def groups(self) -> tuple[Group, ...]:
        """Filters of one layer, input channels of the next.

        The weight of a convolution is (out, in, kernel), that of a transposed one (in, out, kernel).
        """
        return tuple(
            Group(
                name,
                weight(self.layers[name], "bias").numel(),
                (
                    Slice(f"layers.{name}.weight", 1 if self._up(name) else 0),
                    Slice(f"layers.{name}.bias", 0),
                ),
                (
                    Slice(
                        f"layers.{reader}.weight",
                        0 if self._up(reader) else 1,
                        bias=f"layers.{reader}.bias",
                        phases=HALVING if self._up(reader) else 1,
                    ),
                ),
                protected=name == "bottleneck",
            )
            for name, reader in pairwise((*self.names, "output"))
        )

    def _up(self, name: str) -> bool:
        return isinstance(self.layers[name], nn.ConvTranspose1d)

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the window that ends at t minus its reconstruction."""
        windows, carried = self.windows(points, state)  # [B, T, W, F]
        batch, length = points.shape[:2]
        signal = windows.flatten(0, 1).transpose(1, 2)  # [B * T, F, W]
        activations = {}
        for (name, layer), positions in zip(self.layers.items(), self.lengths, strict=True):
            signal = layer(signal, output_size=[positions]) if self._up(name) else layer(signal)  # [B * T, H, L]
            if name == "output":
                break
            if name != "bottleneck":
                signal = torch.relu(signal)
            activations[name] = signal.transpose(1, 2).view(batch, length, positions, -1)  # [B, T, L, H]
        residual = windows - signal.transpose(1, 2).view(windows.shape)
        return Pass(residual, carried, activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Each layer gathers what its taps see and multiplies once for all series and positions.

        ONNX Runtime's own Conv and ConvTranspose go series by series: at a batch of 256 and 32 filters or more this is
        1.5 times as fast; at a batch of one it is faster with many filters and 5 us slower with few. Scales go into the
        first and the last weights, as in `Autoencoder.draw`.
        """
        newest = graph.op("Mul", point, graph.const(np.tile(scale.inverse, self.stride)))
        signal = flat = self.draw_window(graph, newest)
        held = length = self.window  # positions the tensor has, and those of them that count
        for (name, layer), positions in zip(self.layers.items(), self.lengths, strict=True):
            taps, matrix = _up_taps(layer, length) if self._up(name) else _down_taps(layer, positions)
            bias = weight(layer, "bias").numpy()
            if name == self.names[0]:
                matrix = matrix / scale.inverse[:, None, None]
            if name == "output":
                matrix, bias = matrix * scale.inverse, (bias + scale.center) * scale.inverse
            n_taps, channels, phases, filters = matrix.shape
            seen = _gathered(graph, signal, taps, (held, channels), length)  # [B * positions, taps * channels]
            flat_matrix = matrix.reshape(n_taps * channels, phases * filters)
            signal = graph.affine(seen, flat_matrix, np.tile(bias, phases))
            if name not in {"bottleneck", "output"}:
                signal = graph.op("Relu", signal)
            held, length = len(taps) * phases, positions
        output = graph.op("Reshape", signal, graph.const([-1, held * self.n_features], np.int64))
        if held > length:
            here = (graph.const([at], np.int64) for at in (0, length * self.n_features, 1))
            output = graph.op("Slice", output, *here)
        return graph.op("Sub", flat, output)


IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


def _down_taps(layer: nn.Module, positions: int) -> tuple[IntArray, FloatArray]:
    """What each output position of a convolution sees, [L', taps], and its weights [taps, in, 1, out]."""
    taps = HALVING * np.arange(positions)[:, None] + np.arange(KERNEL) - PADDING
    return taps, weight(layer, "weight").numpy().transpose(2, 1, 0)[:, :, None]


def _up_taps(layer: nn.Module, length: int) -> tuple[IntArray, FloatArray]:
    """The same for a transposed convolution, two output positions for each of the input: [L, 3], [3, in, 2, out].

    Input position i speaks to output position p through tap p + PADDING - 2 i. So positions 2 m and 2 m + 1 hear m - 1,
    m and m + 1, through every second tap each.
    """
    weights = weight(layer, "weight").numpy()  # [in, out, kernel]
    around = np.arange(-1, 2)
    matrix = np.zeros((len(around), weights.shape[0], HALVING, weights.shape[1]), np.float32)
    for row, away in enumerate(around):
        for phase in range(HALVING):
            if (tap := phase + PADDING - HALVING * away) < KERNEL:
                matrix[row, :, phase] = weights[:, :, tap]
    return np.arange(length)[:, None] + around, matrix


def _gathered(graph: Graph, signal: str, taps: IntArray, shape: tuple[int, int], length: int) -> str:
    """Rows [B * positions, taps * channels] of a signal [B, held, channels]; zeros beyond its first `length`."""
    shaped = graph.op("Reshape", signal, graph.const([-1, *shape], np.int64))
    padded = graph.op("Pad", shaped, graph.const([0, 1, 0, 0, 0, 0], np.int64))  # row 0 stands for all beyond the ends
    rows = np.where((taps >= 0) & (taps < length), taps + 1, 0)
    seen = graph.op("Gather", padded, graph.const(rows, np.int64), axis=1)  # [B, positions, taps, channels]
    return graph.op("Reshape", seen, graph.const([-1, taps.shape[1] * shape[1]], np.int64))
