"""Small detectors for tests, fitted once a run to a synthetic machine with four sensors."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.training.calibrate import Scaler
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, Fitted, calibrated
from detectors.training.networks import network_class
from detectors.training.stretches import Stretches

torch.set_num_threads(1)

SMALL = {
    "lstm": {"layers": 2, "width": 16},
    "autoencoder": {"window": 8, "width": 16, "bottleneck": 4},
    "gru": {"layers": 2, "width": 16},
    "conv_autoencoder": {"window": 9, "width": 16, "bottleneck": 2},
    "lstm_autoencoder": {"window": 8, "width": 16},
    "variational_autoencoder": {"window": 8, "width": 16, "latent": 4},
    "windowed_lstm": {"layers": 2, "width": 16, "lookback": 8},
    "isolation_forest": {"window": 4, "trees": 20, "samples": 64},
    "ensemble": {
        "members": "lstm,autoencoder",
        "lstm.layers": 1,
        "lstm.width": 16,
        "autoencoder.window": 8,
        "autoencoder.width": 16,
        "autoencoder.bottleneck": 4,
    },
}
"""Options that make a quick network of each kind."""
FOUR = ("flow", "pressure", "load", "heat")


def machine(points: int, seed: int = 0) -> NDArray[np.float32]:
    """Four sensors of one machine, [points, 4]: two cycles, a mixture of both, and a slow echo; a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(points) + rng.uniform(0, 100)
    fast, slow = np.sin(t / 4), np.sin(t / 17)
    load = 0.6 * fast + 0.8 * slow * fast
    clean = np.stack([10 + fast, 200 + 30 * slow, load, 0.5 * np.roll(fast, 3) + slow], axis=1)
    spread = np.array([1, 30, 1, 1])
    return (clean + 0.08 * spread * rng.standard_normal(clean.shape)).astype(np.float32)


def with_width(kind: str, width: int) -> dict[str, int | str]:
    """The options of `SMALL` with another width, of every member; as they are for what has none."""
    widths = [name for name in SMALL[kind] if name.endswith("width")]
    return SMALL[kind] | dict.fromkeys(widths, width)


@cache
def fitted(kind: str, updates: int = 30, points: int = 700, seed: int = 0, width: int = 16) -> Fitted:
    """A detector of the machine. Shared between tests: never change it."""
    data = Stretches.of([machine(points)])
    return fit(kind, data, FOUR, seed=seed, options=with_width(kind, width), how=FitOptions(updates=updates))


def untrained(kind: str, n_features: int, seed: int = 0, error: ErrorOptions | None = None, **options: int) -> Fitted:
    """A detector with random weights and honest statistics: enough where only the arithmetic matters.

    A forest is grown: one with random nodes would judge nothing.
    """
    rows = np.random.default_rng(seed).normal(3.0, [2.0 + i for i in range(n_features)], (300, n_features))
    data = Stretches.of([rows])
    scaler = Scaler.fit(data.rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class(kind).dense(n_features, SMALL[kind] | options)
    for member in network.members.values():
        if not member.learned_by_gradient:
            member.grow(data, scaler, seed)
    return calibrated(network, tuple(f"f{i}" for i in range(n_features)), scaler, data, error)
