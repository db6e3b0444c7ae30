"""Fitting a detector to normal points: scale, train with carried state, calibrate on held-out points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.calibrate import Scaler
from detectors.training.fitted import Fitted, calibrated, mean_square
from detectors.training.networks import Network, Pass, network_class
from detectors.training.stretches import Chunk, Lanes, Stretches

Progress = Callable[[str, float, str], None]
"""stage, share done of that stage in 0..1, what to tell a person"""

HELD_OUT = 0.25  # of the points, the last ones: calibration must see errors that training has not pushed down
LANES = 32
CARRY = 8  # chunks before a lane moves elsewhere: state from hundreds of points ago is trained on, as in service
TRIM = 0.02  # share of the largest losses of a batch left out: training data is never quite clean
GRADIENT_NORM = 1.0
MINIMUM_ROWS = 64  # beside the warm-up


def silent(_stage: str, _done: float, _message: str) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast to train.

    Attributes:
        updates: Gradient steps; None chooses by the amount of data, 400 to 1200 for chunks of 64 points.
        learning_rate: Peak; it falls to zero along a cosine.
    """

    updates: int | None = None
    learning_rate: float = 3e-3


class Runner:
    """Runs a network over the chunks of lanes, carrying and resetting its state."""

    def __init__(self, network: Network, lanes: int = LANES) -> None:
        self.network = network
        self._state = network.fresh(lanes)

    def __call__(self, chunk: Chunk) -> Pass:
        """One chunk; gradients do not reach back into the chunk before."""
        for tensor in self._state:
            tensor[chunk.restarted] = 0
        out: Pass = self.network(chunk.points, self._state)
        self._state = tuple(tensor.detach().clone() for tensor in out.state)
        return out


def fit(
    kind: str,
    data: Stretches,
    features: tuple[str, ...],
    *,
    seed: int,
    options: Mapping[str, int | float | str | bool] | None = None,
    how: FitOptions | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Fits a detector to stretches of normal points.

    Args:
        kind: `lstm` or `autoencoder`.
        data: Normal points; the last quarter is held out for calibration.
        features: Names of the F columns.
        seed: Same seed, data and machine: same detector.
        options: Of the network (`width`, `layers`, `window`, ...).
        how: Length and speed of training.
        progress: Told after every update.

    Raises:
        InvalidInputError: too few usable rows, or an unknown network or option.
    """
    how = how or FitOptions()
    torch_class = network_class(kind)
    if data.parts and data.n_features != len(features):
        raise InvalidInputError(f"rows have {data.n_features} values for {len(features)} features.", field="features")
    with seeded(seed):
        network = torch_class.dense(len(features), torch_class.checked_options(options or {}))
        need = network.warm_up_points + MINIMUM_ROWS
        longest = Stretches(tuple(sorted(data.parts, key=len)[-1:]))
        longest.require(need, f"a {kind} detector")
        data = data.longer_than(network.warm_up_points)
        training, held_out = data.split(HELD_OUT, context=network.warm_up_points)
        training = training.longer_than(network.blind_points + 1)
        if not training.parts:
            training = data
        scaler = Scaler.fit(training.rows)
        train(
            network,
            lanes_over(training, scaler, network, seed),
            updates_for(len(training), network, how),
            how,
            progress,
        )
    progress("calibrate", 0.0, "fitting the score scale on held-out points")
    return calibrated(network, features, scaler, usable(held_out, data, network))


def train(network: Network, lanes: Lanes, updates: int, how: FitOptions, progress: Progress = silent) -> None:
    """Plain training: the trimmed mean squared residual, Adam, cosine schedule."""
    run = Runner(network)
    optimizer, schedule = optimizer_for(network, updates, how.learning_rate)
    for i, chunk in enumerate(lanes.chunks(updates)):
        loss = trimmed_mean(mean_square(run(chunk).residual), chunk.counted)
        descend(network, optimizer, schedule, loss)
        progress("fit", (i + 1) / updates, f"loss {loss.item():.4f}")


def lanes_over(data: Stretches, scaler: Scaler, network: Network, seed: int) -> Lanes:
    """Lanes through scaled data, as long as the network likes its chunks."""
    return Lanes(
        [scaler(part) for part in data.parts],
        batch=LANES,
        length=network.chunk_points,
        carry=CARRY,
        blind=network.blind_points,
        rng=np.random.default_rng(seed),
    )


def updates_for(points: int, network: Network, how: FitOptions) -> int:
    """Gradient steps for so many points: long series get more, short ones enough; shorter chunks, more of them."""
    return how.updates or int(np.clip(points / 20, 400, 1200)) * 64 // network.chunk_points


def usable(held_out: Stretches, data: Stretches, network: Network) -> Stretches:
    """The held-out points, or all of them where too few would give an error."""
    seen = sum(max(len(part) - network.warm_up_points, 0) for part in held_out.parts)
    return held_out if seen >= MINIMUM_ROWS // 2 else data


def optimizer_for(
    network: Network, updates: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with a short linear warm-up and a cosine down to zero."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    ramp = max(1, updates // 20)

    def factor(step: int) -> float:
        return min((step + 1) / ramp, 0.5 * (1 + math.cos(math.pi * min(step / updates, 1.0))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def descend(
    network: Network, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor
) -> None:
    """One gradient step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimizer.step()
    schedule.step()


def trimmed_mean(losses: Tensor, counted: Tensor, trim: float = TRIM) -> Tensor:
    """Mean of the counted losses [B, T] without the largest `trim` of them."""
    values = losses[counted]
    drop = int(len(values) * trim)
    if drop:
        values = values.topk(len(values) - drop, largest=False, sorted=False).values
    return values.mean() if len(values) else losses.sum() * 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded inside, as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
