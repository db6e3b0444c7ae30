"""A variational autoencoder over the last W points; its error is that of the reconstructed window.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
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
    linear,
)
from detectors.training.networks.reconstruction import Reconstruction, newest

BETA = 0.1  # weight of the divergence: twice the variance of what a window may keep to itself, in scaled units
LOG_VARIANCE = 10.0  # |log variance| of a latent at the most: beyond it the exponential is noise or nothing


class VariationalAutoencoder(Reconstruction):
    """window -> encoder -> mean and log variance of the latents -> decoder -> window.

    In training mode (`self.training`) latents are drawn around their mean, from torch's global generator; a network is
    born in evaluation mode, where the mean itself is decoded, so that scores are a function of the points alone.

    The squared residual of a Gaussian decoder of variance s^2 plus the divergence from the standard normal prior is, by
    2 s^2 and by the number of values, |residual|^2 + 2 s^2 KL / (W F): `Pass.loss` is the second term, 2 s^2 = `BETA`.

    The latents are protected as a bottleneck is: they decide what the detector can fail to reconstruct. Those that the
    fit has switched off say nothing and may leave: their mean divergence from the prior over normal points is near zero
    (`pruning.importance.idle`).

    Args:
        n_features: F.
        window: W, points.
        widths: Units by group: `encoder`, `latent`, `decoder`.
        stride: Score every so many points.
    """

    kind = "variational_autoencoder"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (2, 1024),
        "width": (1, 2048),
        "latent": (1, 2048),
        "stride": (1, 1024),
    }

    def __init__(self, n_features: int, window: int, widths: Mapping[str, int], *, stride: int = 1) -> None:
        super().__init__()
        self.n_features, self.window, self.stride = n_features, window, stride
        size = window * n_features
        self.encoder = nn.Linear(size, widths["encoder"])
        self.mean = nn.Linear(widths["encoder"], widths["latent"])
        self.log_variance = nn.Linear(widths["encoder"], widths["latent"])
        self.decoder = nn.Linear(widths["latent"], widths["decoder"])
        self.output = nn.Linear(widths["decoder"], size)
        self.eval()

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; groups `encoder`, `latent`, `decoder`; options as in `options`."""
        return cls(n_features, int(options["window"]), units, stride=int(options.get("stride", 1)))

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `window` (50), `width` (256), `stride` (1), `latent` (8, at most a quarter of the window)."""
        window, width = int(options.get("window", DEFAULT_WINDOW)), int(options.get("width", 256))
        latent = int(options.get("latent", min(8, max(1, window * n_features // 4))))
        widths = {"encoder": width, "latent": latent, "decoder": width}
        return cls(n_features, window, widths, stride=int(options.get("stride", 1)))

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Window and stride."""
        return {"window": self.window, "stride": self.stride}

    @property
    def macs(self) -> int:
        """All layers but the log variance, which scoring does not need."""
        used = (self.encoder, self.mean, self.decoder, self.output)
        return sum(layer.in_features * layer.out_features for layer in used)

    def groups(self) -> tuple[Group, ...]:
        """Rows of a layer, columns of those that read it; a latent has rows in two."""
        return (
            Group("encoder", self.encoder.out_features, _rows("encoder"), (_column("mean"), _column("log_variance"))),
            Group(
                "latent",
                self.mean.out_features,
                (*_rows("mean"), *_rows("log_variance")),
                (_column("decoder"),),
                protected=True,
                criterion="kl",
            ),
            Group("decoder", self.decoder.out_features, _rows("decoder"), (_column("output"),)),
        )

    def tensors_over(self, window: int) -> dict[str, Tensor]:
        """See `Reconstruction.tensors_over`."""
        return newest(self.state_dict(), window * self.n_features, "encoder", "output")

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the window that ends at t minus its reconstruction; the loss is its divergence.

        Beside the groups' activations stands `latent/divergence`, [B, T, L] in nats.
        """
        windows, carried = self.windows(points, state)
        flat = windows.reshape(*points.shape[:2], -1)  # [B, T, W * F]
        encoded = torch.relu(self.encoder(flat))
        mean = self.mean(encoded)  # [B, T, L]
        log_variance = self.log_variance(encoded).clamp(-LOG_VARIANCE, LOG_VARIANCE)
        latent = mean
        if self.training:
            latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        decoded = torch.relu(self.decoder(latent))
        residual = (flat - self.output(decoded)).view(windows.shape)
        diverged = divergence(mean, log_variance)  # [B, T, L]
        loss = diverged.sum(dim=-1) * (BETA / flat.shape[-1])
        spoken = {"encoder": encoded, "latent": latent, "latent/divergence": diverged, "decoder": decoded}
        return Pass(residual, carried, spoken, loss)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """As the autoencoder's: the window is carried in normalised units, both scales are folded into the weights."""
        by_input = np.tile(scale.inverse, self.window)  # [W * F]
        newest = graph.op("Mul", point, graph.const(np.tile(scale.inverse, self.stride)))
        flat = self.draw_window(graph, newest)
        w_in, b_in = linear(self.encoder)
        encoded = graph.op("Relu", graph.affine(flat, w_in / by_input[:, None], b_in))
        latent = graph.affine(encoded, *linear(self.mean))
        decoded = graph.op("Relu", graph.affine(latent, *linear(self.decoder)))
        w_out, b_out = linear(self.output)
        shifted = (b_out + np.tile(scale.center, self.window)) * by_input
        return graph.op("Sub", flat, graph.affine(decoded, w_out * by_input, shifted))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each latent from the standard normal, in nats; the shape of its arguments."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def _rows(layer: str) -> tuple[Slice, Slice]:
    return Slice(f"{layer}.weight", 0), Slice(f"{layer}.bias", 0)


def _column(layer: str) -> Slice:
    return Slice(f"{layer}.weight", 1, bias=f"{layer}.bias")
