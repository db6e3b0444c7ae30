"""A detector while it can still be trained: the network and the statistics around it, and what they make of points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.errors import CorruptBundleError
from detectors.training.calibrate import Calibration, ResidualScale, Scaler
from detectors.training.networks import Network, network_class
from detectors.training.stretches import Stretches

SCALE_POINTS = 2000  # points whose residuals the residual scale is fitted to
EVALUATION_POINTS = 512  # points a forward pass when whole stretches are run through: bounds memory of window networks


@dataclass(frozen=True)
class Fitted:
    """Network, scales and calibration: everything that `detectors.training.export` draws into one graph."""

    network: Network
    features: tuple[str, ...]
    scaler: Scaler
    residual: ResidualScale
    calibration: Calibration

    def errors(self, stretches: Stretches) -> NDArray[np.float32]:
        """Normalised errors [N] of all points in order; NaN while warming up."""
        return np.concatenate(
            [
                normalised(residual, self.residual)
                for part in stretches.parts
                for residual in residuals(self.network, self.scaler(part))
            ]
        )

    def scores(self, stretches: Stretches) -> NDArray[np.float32]:
        """Scores [N] of all points in order; NaN while warming up."""
        return self.calibration.score(self.errors(stretches))

    def recalibrated(self, stretches: Stretches) -> Fitted:
        """The same network with residual scale and score calibration fitted anew to normal points.

        Needed after every change of the network: a pruned detector with its parent's scale floods the user.
        """
        return calibrated(self.network, self.features, self.scaler, stretches)

    def with_network(self, network: Network) -> Fitted:
        """The same statistics around another network (until it is recalibrated)."""
        return replace(self, network=network)


def calibrated(network: Network, features: tuple[str, ...], scaler: Scaler, stretches: Stretches) -> Fitted:
    """Puts a trained network and statistics of normal points together."""
    step = max(1, len(stretches) // SCALE_POINTS)  # windows of wide series would not fit into a device's memory
    sample = [block[::step] for part in stretches.parts for block in residuals(network, scaler(part))]
    rows = np.concatenate([block.reshape(-1, block.shape[-1]) for block in sample])
    scale = ResidualScale.fit(rows[np.isfinite(rows).all(axis=1)])
    blocks = (block for part in stretches.parts for block in residuals(network, scaler(part)))
    errors = np.concatenate([normalised(block, scale) for block in blocks])
    return Fitted(network, features, scaler, scale, Calibration.fit(errors))


def residuals(network: Network, points: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Raw residuals of one scaled stretch [T, F] from a fresh state, in blocks [t, R, F]; NaN while warming up."""
    state = network.fresh(1)
    for start in range(0, len(points), EVALUATION_POINTS):
        chunk = torch.from_numpy(np.ascontiguousarray(points[start : start + EVALUATION_POINTS]))[None]
        with torch.no_grad():
            out = network(chunk, state)
        state = out.state
        block = out.residual[0].numpy().copy()
        block[: max(network.warm_up_points - start, 0)] = np.nan
        yield block


def normalised(residual: NDArray[np.float32], scale: ResidualScale) -> NDArray[np.float32]:
    """Errors [T] of residuals [T, R, F]: mean over positions and features of the squared normalised residual."""
    z = (residual - scale.center) * scale.inverse
    error: NDArray[np.float32] = np.square(z).mean(axis=(1, 2))
    return error


def mean_square(residual: Tensor) -> Tensor:
    """Squared residual by point, [B, T] of [B, T, R, F]: the training loss before trimming."""
    return residual.square().mean(dim=(2, 3))


def save(fitted: Fitted) -> bytes:
    """`weights.safetensors`: tensors of the network and of the statistics, sizes in the header. No code, no pickle."""
    tensors = {f"network.{name}": value.numpy() for name, value in fitted.network.state_dict().items()}
    tensors |= {
        "scaler.center": fitted.scaler.center,
        "scaler.scale": fitted.scaler.scale,
        "residual.center": fitted.residual.center,
        "residual.scale": fitted.residual.scale,
        "calibration.knots": fitted.calibration.knots,
        "calibration.levels": fitted.calibration.levels,
        "calibration.tail": np.array([fitted.calibration.tail_shape, fitted.calibration.tail_scale]),
    }
    header = {
        "kind": fitted.network.kind,
        "features": list(fitted.features),
        "units": fitted.network.units,
        "options": fitted.network.options,
    }
    return bytes(
        safetensors.numpy.save(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"prunewatch": json.dumps(header)}
        )
    )


def load(content: bytes) -> Fitted:
    """The inverse of `save`.

    Raises:
        CorruptBundleError: these are not weights that `save` wrote.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["prunewatch"])
        tensors = safetensors.numpy.load(content)
        features = tuple(header["features"])
        network = network_class(header["kind"]).build(len(features), header["units"], header["options"])
        network.load_state_dict(
            {
                name.removeprefix("network."): torch.from_numpy(v)
                for name, v in tensors.items()
                if name.startswith("network.")
            }
        )
        shape, scale = (float(value) for value in tensors["calibration.tail"])
        return Fitted(
            network,
            features,
            Scaler(tensors["scaler.center"], tensors["scaler.scale"]),
            ResidualScale(tensors["residual.center"], tensors["residual.scale"]),
            Calibration(tensors["calibration.knots"], tensors["calibration.levels"], shape, scale),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptBundleError("holds no weights of a prunewatch detector.", field="weights.safetensors") from error
