"""EncDec-AD: one LSTM reads the window, another tells it backwards; its error is that of the reconstructed window.

Malhotra et al. 2016, "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection", arXiv:1607.00148.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

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
    weight,
)
from detectors.training.networks.lstm import GATES, operator_weights
from detectors.training.networks.reconstruction import Reconstruction
from detectors.training.networks.stacked import TENSORS

OPEN = 1.0  # added to a new forget gate's bias, so that a window is remembered from the start (Jozefowicz et al. 2015)


class LSTMAutoencoder(Reconstruction):
    """An LSTM encoder over the window, and an LSTM decoder that starts where the encoder ended.

    The last point is reconstructed from the encoder's last h; each step of the decoder takes the reconstruction before
    and gives the point before that one. Reconstruction x' = W_o h + b_o is linear, so a decoder that is fed with it is
    an LSTM without input, with recurrent weights W_hh + W_ih W_o and bias b_hh + W_ih b_o; that is how it is run here.
    The paper trains with the true points as the decoder's input and scores with its own. Here both are the latter: what
    is scored is what should get good, and it takes fewer updates. While `forward` runs it lends the decoder the folded
    tensors, so two threads must not run one network at once.

    Units j of encoder and decoder are *coupled*: h and c are handed over as they are, so they leave together. With
    `bidirectional` a second LSTM reads the window from its end, encoder unit j is the pair of the j-th of both, and a
    linear *bridge* makes the decoder's first h and c out of the last h of both; then both have widths of their own.

    Args:
        n_features: F.
        window: W, points.
        width: H, units of the encoder (of each direction).
        decoder_width: D, units of the decoder of a bidirectional network; None: coupled.
        stride: Score every so many points.
    """

    kind = "lstm_autoencoder"
    windows_per_update = 32
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (2, 1024),
        "width": (1, 2048),
        "bidirectional": (0, 1),
        "stride": (1, 1024),
    }

    def __init__(
        self, n_features: int, window: int, width: int, *, decoder_width: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        self.n_features, self.window, self.stride = n_features, window, stride
        self.bidirectional = decoder_width is not None
        self.width, self.decoder_width = width, decoder_width or width
        self.encoder = nn.LSTM(n_features, width, batch_first=True, bidirectional=self.bidirectional)
        if self.bidirectional:
            self.bridge = nn.Linear(2 * width, 2 * self.decoder_width)  # [forward h, backward h] -> [h, c]
        self.decoder = nn.LSTM(n_features, self.decoder_width, batch_first=True)
        self.output = nn.Linear(self.decoder_width, n_features)
        with torch.no_grad():
            for layer in (self.encoder, self.decoder):
                for name, parameter in layer.named_parameters():
                    if name.startswith("bias_hh"):
                        parameter[layer.hidden_size : 2 * layer.hidden_size] += OPEN

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; group `coupled`, or `encoder` and `decoder` where the option `bidirectional` is true."""
        both_ways = bool(options.get("bidirectional", False))
        return cls(
            n_features,
            int(options["window"]),
            units["encoder" if both_ways else "coupled"],
            decoder_width=units["decoder"] if both_ways else None,
            stride=int(options.get("stride", 1)),
        )

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `window` (50), `width` (64), `bidirectional` (0), `stride` (1)."""
        width = int(options.get("width", 64))
        return cls(
            n_features,
            int(options.get("window", DEFAULT_WINDOW)),
            width,
            decoder_width=width if options.get("bidirectional", 0) else None,
            stride=int(options.get("stride", 1)),
        )

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Window, stride and direction."""
        return {"window": self.window, "stride": self.stride, "bidirectional": self.bidirectional}

    @property
    def macs(self) -> int:
        """A step of the encoder for each point of the window, one of the decoder for each but the last, the output."""
        features, decoded = self.n_features, self.decoder_width
        encoder = GATES * self.width * (features + self.width) * (2 if self.bidirectional else 1)
        bridge = self.bridge.in_features * self.bridge.out_features if self.bidirectional else 0
        decoder = GATES * decoded * decoded
        return self.window * (encoder + decoded * features) + (self.window - 1) * decoder + bridge

    def groups(self) -> tuple[Group, ...]:
        """Rows of all gates, columns of the recurrent weights and of the output; see the class."""
        decoder = _rows("decoder")
        if not self.bidirectional:
            read = (*_read_in_encoder("coupled/encoder"), *_read_in_decoder("coupled/decoder"))
            return (Group("coupled", self.width, (*_rows("encoder"), *decoder), read),)
        ways = ("encoder/forward", "encoder/backward")
        bridge = Slice("bridge.weight", 1, blocks=2, bias="bridge.bias", voices=ways)
        begun = (Slice("bridge.weight", 0, blocks=2), Slice("bridge.bias", 0, blocks=2))
        return (
            Group(
                "encoder",
                self.width,
                (*_rows("encoder"), *_rows("encoder", "_reverse")),
                (*_read_in_encoder(*ways), bridge),
            ),
            Group("decoder", self.decoder_width, (*begun, *decoder), _read_in_decoder()),
        )

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residual of point t: the window that ends at t minus its reconstruction.

        Activations: `coupled` [B, T, 2W - 1, H], h after each step of the encoder and then of the decoder; `encoder`
        [B, T, W, 2, H], both directions at each point of the window; `decoder` [B, T, W, D], its first h and h after
        each step. Voices are h of one LSTM in one direction: `coupled/encoder` [B, T, W, H]; `coupled/decoder`
        [B, T, W - 1, H], before each step of the decoder; `encoder/forward` and `encoder/backward` [B, T, W, H].
        """
        windows, carried = self.windows(points, state)
        batch, length = points.shape[:2]
        flat = windows.reshape(batch * length, self.window, self.n_features)  # [N, W, F], N = B * T
        encoded, (h, c) = self.encoder(flat)  # [N, W, H], [1, N, H] twice; twice as wide and [2, N, H] both ways
        if self.bidirectional:
            begun = self.bridge(h.transpose(0, 1).flatten(1))  # [N, 2D]
            h, c = (half.contiguous()[None] for half in begun.chunk(2, dim=1))
        recurrent, bias = self._fed_back()
        silence = flat.new_zeros(len(flat), self.window - 1, self.n_features)
        steps, _ = functional_call(
            self.decoder, {"weight_hh_l0": recurrent, "bias_hh_l0": bias}, (silence, (h, c))
        )  # [N, W - 1, D]
        told = torch.cat([h[0][:, None], steps], dim=1)  # [N, W, D], last point first
        residual = (flat - self.output(told).flip(1)).view(windows.shape)
        if self.bidirectional:
            forward, backward = encoded.chunk(2, dim=2)
            both = torch.stack([forward, backward], dim=2)
            spoken = {"encoder": both, "encoder/forward": forward, "encoder/backward": backward, "decoder": told}
        else:
            both = torch.cat([encoded, steps], dim=1)
            spoken = {"coupled": both, "coupled/encoder": encoded, "coupled/decoder": told[:, :-1]}
        return Pass(residual, carried, {name: each.unflatten(0, (batch, length)) for name, each in spoken.items()})

    def _fed_back(self) -> tuple[Tensor, Tensor]:
        """Recurrent weights [4D, D] and recurrent bias [4D] of the decoder that is fed with its own output."""
        inward, recurrent, bias = (
            getattr(self.decoder, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0")
        )
        return recurrent + inward @ self.output.weight, bias + inward @ self.output.bias

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """The window is carried flat and already in normalised units; both scales go into the weights around it."""
        inverse, features, window = scale.inverse, self.n_features, self.window
        newest = graph.op("Mul", point, graph.const(np.tile(inverse, self.stride)))
        flat = self.draw_window(graph, newest)  # [B, W * F]
        by_point = graph.op("Reshape", flat, graph.const([-1, window, features], np.int64))
        steps = graph.op("Transpose", by_point, perm=[1, 0, 2])  # [W, B, F]
        h, c = self._draw_encoder(graph, steps, inverse)
        # A decoder without input: its weights are zeros, and any finite numbers will do.
        start, stop, axes = (graph.const(at, np.int64) for at in ([0, 0], [window - 1, 1], [0, 2]))
        silence = graph.op("Slice", steps, start, stop, axes)  # [W - 1, B, 1]
        recurrent, bias = (each.detach().to(torch.float32) for each in self._fed_back())
        unread = torch.zeros(GATES * self.decoder_width, 1)
        weights = operator_weights([unread, recurrent, weight(self.decoder, "bias_ih_l0"), bias])
        told = graph.op(
            "LSTM",
            silence,
            *map(graph.const, weights),
            "",
            h,
            c,
            hidden_size=self.decoder_width,
            direction="reverse",  # its first step stands last: the reconstruction comes out in the order of time
        )  # [W - 1, 1, B, D]
        earlier = graph.op("Squeeze", told, graph.const([1], np.int64))
        w_out, b_out = linear(self.output)
        product = graph.op("MatMul", graph.op("Concat", earlier, h, axis=0), graph.const(w_out * inverse))
        again = graph.op("Add", product, graph.const((b_out + scale.center) * inverse))  # [W, B, F]
        z = graph.op("Transpose", graph.op("Sub", steps, again), perm=[1, 0, 2])
        return graph.op("Reshape", z, graph.const([-1, window * features], np.int64))

    def _draw_encoder(self, graph: Graph, steps: str, inverse: NDArray[np.float32]) -> tuple[str, str]:
        """First h and c of the decoder, [1, B, D] each, from the normalised window [W, B, F]."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        inward, *others = operator_weights(*([weight(self.encoder, name + way) for name in TENSORS] for way in ways))
        _, h, c = graph.ops(
            "LSTM",
            steps,
            *map(graph.const, (inward / inverse, *others)),
            outputs=3,
            hidden_size=self.width,
            direction="bidirectional" if self.bidirectional else "forward",
        )  # h, c: [1, B, H], or [2, B, H] of both directions
        if not self.bidirectional:
            return h, c
        by_series = graph.op("Transpose", h, perm=[1, 0, 2])  # [B, 2, H]
        both = graph.op("Reshape", by_series, graph.const([-1, 2 * self.width], np.int64))
        begun = graph.affine(both, *linear(self.bridge))
        halves = graph.ops("Split", begun, graph.const([self.decoder_width] * 2, np.int64), outputs=2, axis=1)
        h, c = (graph.op("Unsqueeze", half, graph.const([0], np.int64)) for half in halves)
        return h, c


def _rows(layer: str, way: str = "") -> tuple[Slice, ...]:
    """Where the units of a one-layer LSTM are made."""
    return tuple(Slice(f"{layer}.{name}{way}", 0, GATES) for name in TENSORS)


def _read_in_encoder(*voices: str) -> tuple[Slice, ...]:
    """The recurrent weights of each direction, and what is heard there."""
    return tuple(
        Slice(f"encoder.weight_hh_l0{way}", 1, bias=f"encoder.bias_hh_l0{way}", voices=(voice,))
        for way, voice in zip(("", "_reverse"), voices, strict=False)
    )


def _read_in_decoder(*voices: str) -> tuple[Slice, ...]:
    """The recurrent weights and the output; no voice: the group's own."""
    return (
        Slice("decoder.weight_hh_l0", 1, bias="decoder.bias_hh_l0", voices=voices),
        Slice("output.weight", 1, bias="output.bias", voices=voices),
    )
