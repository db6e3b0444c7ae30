"""A dense autoencoder over the last W points; its error is that of the reconstructed window."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from detectors.training.graph import Graph
from detectors.training.networks.base import Group, Network, Normal, Pass, Slice, TensorState, linear


class Autoencoder(Network):
    """window -> encoder -> bottleneck -> decoder -> window, ReLU between, linear bottleneck.

    State is the last W - 1 scaled points. The bottleneck is protected: it decides what the detector can fail to
    reconstruct.

    Args:
        n_features: F.
        window: W, points.
        encoder: Units before the bottleneck.
        bottleneck: Units in it.
        decoder: Units after it.
    """

    kind = "autoencoder"
    chunk_points = 32
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (2, 1024),
        "width": (1, 2048),
        "bottleneck": (1, 2048),
    }

    def __init__(self, n_features: int, window: int, encoder: int, bottleneck: int, decoder: int) -> None:
        super().__init__()
        self.n_features, self.window = n_features, window
        size = window * n_features
        self.encoder = nn.Linear(size, encoder)
        self.bottleneck = nn.Linear(encoder, bottleneck)
        self.decoder = nn.Linear(bottleneck, decoder)
        self.output = nn.Linear(decoder, size)

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Mapping[str, int | float | str | bool]) -> Self:
        """See `Network.build`; groups `encoder`, `bottleneck`, `decoder`; option `window`."""
        return cls(n_features, int(options["window"]), units["encoder"], units["bottleneck"], units["decoder"])

    @classmethod
    def dense(cls, n_features: int, options: Mapping[str, int | float | str | bool]) -> Self:
        """Options `window` (50), `width` (256) and `bottleneck` (16, at most a quarter of the window's numbers)."""
        window, width = int(options.get("window", 50)), int(options.get("width", 256))
        bottleneck = int(options.get("bottleneck", min(16, max(2, window * n_features // 4))))
        return cls(n_features, window, width, bottleneck, width)

    @property
    def warm_up_points(self) -> int:
        """All but the last point of the first whole window."""
        return self.window - 1

    @property
    def blind_points(self) -> int:
        """The same: a window that is not full is not trained on."""
        return self.window - 1

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """The window."""
        return {"window": self.window}

    @property
    def macs(self) -> int:
        """All four layers."""
        layers = (self.encoder, self.bottleneck, self.decoder, self.output)
        return sum(layer.in_features * layer.out_features for layer in layers)

    def groups(self) -> tuple[Group, ...]:
        """Rows of one layer, columns of the next."""
        chain = ("encoder", "bottleneck", "decoder", "output")
        return tuple(
            Group(
                name,
                getattr(self, name).out_features,
                (Slice(f"{name}.weight", 0), Slice(f"{name}.bias", 0)),
                (Slice(f"{reader}.weight", 1, bias=f"{reader}.bias"),),
                protected=name == "bottleneck",
            )
            for name, reader in pairwise(chain)
        )

    def fresh(self, batch: int) -> TensorState:
        """The last W - 1 points, zeros (the mean) while there are none: [B, W - 1, F]."""
        return (self.output.weight.new_zeros(batch, self.window - 1, self.n_features),)

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the window that ends at t minus its reconstruction."""
        batch, length, _ = points.shape
        joined = torch.cat([state[0], points], dim=1)  # [B, W - 1 + T, F]
        windows = joined.unfold(1, self.window, 1).transpose(2, 3)  # [B, T, W, F]
        flat = windows.reshape(batch, length, -1)
        encoded = torch.relu(self.encoder(flat))
        code = self.bottleneck(encoded)
        decoded = torch.relu(self.decoder(code))
        residual = (flat - self.output(decoded)).view(batch, length, self.window, self.n_features)
        activations = {"encoder": encoded, "bottleneck": code, "decoder": decoded}
        return Pass(residual, (joined[:, length:],), activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """The window is carried flat and already in normalised units, [B, (W - 1) * F].

        Broadcasting over a short last axis costs more than the matrix products, so both scales go into the first and
        the last weights: normalised residual = window - output, two tensors of one shape.
        """
        n_features, window = self.n_features, self.window
        inverse = scale.inverse
        by_input, by_shift = np.tile(inverse, window), np.tile(scale.center * inverse, window)  # [W * F]
        past = graph.state("window", ((window - 1) * n_features,))
        newest = graph.op("Mul", point, graph.const(inverse))
        flat = graph.op("Concat", past, newest, axis=1)  # [B, W * F]
        first, last, axis = (graph.const([value], np.int64) for value in (n_features, window * n_features, 1))
        graph.carry(past, graph.op("Slice", flat, first, last, axis))
        (w_in, b_in), (w_out, b_out) = linear(self.encoder), linear(self.output)
        encoded = graph.op("Relu", graph.affine(flat, w_in / by_input[:, None], b_in))
        code = graph.affine(encoded, *linear(self.bottleneck))
        decoded = graph.op("Relu", graph.affine(code, *linear(self.decoder)))
        z = graph.op("Sub", flat, graph.affine(decoded, w_out * by_input, b_out * by_input + by_shift))
        if n_features > 1:
            z = graph.op("Reshape", z, graph.const([-1, window, n_features], np.int64))
        return graph.op("ReduceMean", graph.op("Mul", z, z), axes=[1], keepdims=int(n_features == 1))
