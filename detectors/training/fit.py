"""Fitting a detector to normal points: scale, train with carried state, calibrate on held-out points."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.calibrate import Scaler
from detectors.training.fitted import ErrorOptions, Fitted, calibrated, mean_square, warm_up
from detectors.training.networks import Network, Pass, network_class
from detectors.training.networks.base import Options, TensorState
from detectors.training.stretches import Chunk, Lanes, Stretches, Windows

Progress = Callable[[str, float, str], None]
"""stage, share done of that stage in 0..1, what to tell a person"""

HELD_OUT = 0.25  # of the points, the last ones: calibration must see errors that training has not pushed down
LANES = (8, 32)  # of a carried network's training step: more of them see nothing new in short data ...
LANE_POINTS = 128  # ... one for so many points
CARRY = 8  # chunks before a lane moves elsewhere: state from hundreds of points ago is trained on, as in service
TRIM = 0.02  # share of the largest losses of a batch left out: training data is never quite clean
GRADIENT_NORM = 1.0
MINIMUM_ROWS = 64  # beside the warm-up
LOOK = 10  # updates between two looks at the held-out points ...
JUDGED_CHUNKS = 4  # ... at so many chunks of them, the same each time
BETTER = 0.995  # a loss below this share of the best one counts as progress
PATIENCE = 4  # looks without progress before the learning rate falls
WARM_START = 1 / 3  # of the learning rate: weights that fit a machine of the same kind are to follow, not to jump
DECAY = 0.3  # how far it falls


Look = Callable[[float, Callable[[], Fitted]], None]
"""share done in 0..1, what makes a detector of the network as it now is"""


def nobody_looks(_done: float, _detector: Callable[[], Fitted]) -> None:
    """A `Look` that sees nothing."""


def silent(_stage: str, _done: float, _message: str) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast to train.

    Attributes:
        updates: Gradient steps at the most; None chooses by the amount of data. Fewer are made where held-out normal
            points stop getting better.
        learning_rate: At the beginning.
        decays: How often it falls, where held-out points get no better, before training ends.
        contamination: Share of the points that may be anomalies: so much of the largest losses of a batch is not
            learned from, and so much of the largest errors does not count in calibration.
    """

    updates: int | None = None
    learning_rate: float = 3e-3
    decays: int = 2
    contamination: float = 0.0


class Runner:
    """Runs a network over chunks: lanes with carried state, or windows each for itself."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._state: TensorState | None = None

    def __call__(self, chunk: Chunk) -> Pass:
        """One chunk; gradients do not reach back into the chunk before."""
        if self.network.window:
            before = self.network.window - 1
            out: Pass = self.network(chunk.points[:, before:], (chunk.points[:, :before],))
            return out
        if self._state is None:
            self._state = self.network.fresh(len(chunk.points))
        for tensor in self._state:
            tensor[chunk.restarted] = 0
        out = self.network(chunk.points, self._state)
        self._state = tuple(tensor.detach().clone() for tensor in out.state)
        return out


def fit(
    kind: str,
    data: Stretches,
    features: tuple[str, ...],
    *,
    seed: int,
    options: Options | None = None,
    how: FitOptions | None = None,
    error: ErrorOptions | None = None,
    start: Fitted | None = None,
    progress: Progress = silent,
    look: Look = nobody_looks,
) -> Fitted:
    """Fits a detector to stretches of normal points.

    Args:
        kind: One of `detectors.training.networks.KINDS`.
        data: Normal points; the last quarter is held out for early stopping and calibration.
        features: Names of the F columns.
        seed: Same seed, data and machine: same detector.
        options: Of the network (`width`, `layers`, `window`, ...).
        how: Length and speed of training.
        error: How residuals become one error.
        start: A detector of the same kind and number of features to begin with, instead of random weights; its sizes
            are taken over, and training ends as soon as held-out points get no better.
        progress: Told after every update.
        look: Called at every look at the held-out points; what it raises ends the fit.

    Raises:
        InvalidInputError: too few usable rows, an unknown network or option, or a `start` of another shape.
    """
    how, error = how or FitOptions(), error or ErrorOptions()
    with seeded(seed):
        begun = begin(kind, data, features, options=options, error=error, start=start)
        if start is not None:
            how = replace(how, learning_rate=how.learning_rate * WARM_START, decays=0)
        network = begun.network
        turns = len(network.members)
        for i, member in enumerate(network.members.values()):
            told = partly(progress, i, turns)
            if member.learned_by_gradient:

                def looked(done: float, turn: int = i) -> None:
                    look((turn + done) / turns, lambda: begun.calibrated(network))

                train(member, begun.training, begun.held_out, begun.scaler, how, seed, told, looked)
            else:
                member.grow(begun.training, begun.scaler, seed)
    progress("calibrate", 0.0, "fitting the score scale on held-out points")
    return begun.finished(network, how.contamination)


@dataclass(frozen=True)
class Begun:
    """A fit before its first step.

    Attributes:
        network: With the weights it begins with.
        features: F names.
        training: Points to learn from.
        held_out: Later ones, for early stopping and calibration.
        scaler: Of the inputs.
        error: How residuals become one error.
    """

    network: Network
    features: tuple[str, ...]
    training: Stretches
    held_out: Stretches
    scaler: Scaler
    error: ErrorOptions

    def calibrated(self, network: Network) -> Fitted:
        """A detector of the network as it now is."""
        return calibrated(network, self.features, self.scaler, self.held_out, self.error)

    def finished(self, network: Network, contamination: float) -> Fitted:
        """The detector: errors of the points that were learned from count where they are larger."""
        return calibrated(
            network, self.features, self.scaler, self.held_out, self.error, seen=self.training, trim=contamination
        )


def begin(
    kind: str,
    data: Stretches,
    features: tuple[str, ...],
    *,
    options: Options | None = None,
    error: ErrorOptions | None = None,
    start: Fitted | None = None,
) -> Begun:
    """Splits and scales the points, and makes the network; arguments and errors as of `fit`."""
    error, torch_class = error or ErrorOptions(), network_class(kind)
    if data.parts and data.n_features != len(features):
        raise InvalidInputError(f"rows have {data.n_features} values for {len(features)} features.", field="features")
    if start is None:
        network = torch_class.dense(len(features), torch_class.checked_options(options or {}))
    else:
        network = started(kind, len(features), options or {}, start)
    warm = warm_up(network, error)
    longest = Stretches(tuple(sorted(data.parts, key=len)[-1:]))
    longest.require(warm + MINIMUM_ROWS * network.stride, f"a {kind} detector")
    training, held_out = divided(data, network, warm)
    return Begun(network, features, training, held_out, Scaler.fit(training.rows), error)


def started(kind: str, n_features: int, options: Options, start: Fitted) -> Network:
    """A copy of the network of `start`.

    Raises:
        InvalidInputError: it is of another kind or takes another number of features, or sizes were asked for as well.
    """
    if start.network.kind != kind or start.network.n_features != n_features:
        raise InvalidInputError(
            f"the detector to begin with is a {start.network.kind} of {start.network.n_features} features; "
            f"wanted is a {kind} of {n_features}.",
            field="from",
            hint="Name a detector of the same network and number of features.",
        )
    if options:
        raise InvalidInputError(
            "sizes come from the detector to begin with.",
            field=f"options.{next(iter(options))}",
            hint="Leave them out.",
        )
    return copy.deepcopy(start.network)


def train(
    network: Network,
    training: Stretches,
    held_out: Stretches,
    scaler: Scaler,
    how: FitOptions,
    seed: int,
    progress: Progress = silent,
    look: Callable[[float], None] = lambda _done: None,
) -> None:
    """Trains in place: the trimmed mean squared residual, Adam, and a look at held-out points now and then.

    Where those get no better for a while the learning rate falls, and in the end training stops; the network that was
    best on them is the one that stays.
    """
    updates, trim = updates_for(len(training), how), max(TRIM, how.contamination)
    run = Runner(network)
    judged = list(chunks_over(held_out, scaler, network, seed).chunks(JUDGED_CHUNKS))
    optimizer = torch.optim.Adam(network.parameters(), lr=how.learning_rate)
    best, kept = held_out_loss(network, judged, trim), copy.deepcopy(network.state_dict())
    patience, decays = PATIENCE, how.decays
    for i, chunk in enumerate(chunks_over(training, scaler, network, seed).chunks(updates)):
        network.train()
        loss = training_loss(run(chunk), chunk.counted, trim)
        descend(network, optimizer, loss)
        done = (i + 1) / updates
        if (i + 1) % LOOK and i + 1 < updates:
            progress("fit", done, f"loss {loss.item():.4f}")
            continue
        now = held_out_loss(network, judged, trim)
        progress("fit", done, f"loss {loss.item():.4f}, held out {now:.4f}")
        look(done)
        patience = PATIENCE if now < best * BETTER or not math.isfinite(best) else patience - 1
        if now < best or not math.isfinite(best):
            best, kept = now, copy.deepcopy(network.state_dict())
        if not patience:
            if not decays:
                break
            decays, patience = decays - 1, PATIENCE
            network.load_state_dict(kept)
            for group in optimizer.param_groups:
                group["lr"] *= DECAY
    network.load_state_dict(kept)
    network.eval()
    progress("fit", 1.0, f"held out {best:.4f}")


def held_out_loss(network: Network, judged: Sequence[Chunk], trim: float = TRIM) -> float:
    """The training loss over chunks that are not trained on."""
    run = Runner(network.eval())
    with torch.no_grad():
        losses = [training_loss(run(chunk), chunk.counted, trim).item() for chunk in judged]
    return float(np.mean(losses))


def training_loss(out: Pass, counted: Tensor, trim: float = TRIM) -> Tensor:
    """Trimmed mean of the squared residual, and what the network adds of its own."""
    each = mean_square(out.residual)
    return trimmed_mean(each if out.loss is None else each + out.loss, counted, trim)


def chunks_over(data: Stretches, scaler: Scaler, network: Network, seed: int) -> Lanes | Windows:
    """What one member of a network is trained on: lanes, or windows for those that only know a window."""
    rng = np.random.default_rng(seed)
    parts = [scaler(part) for part in data.filled().parts]
    if network.window:
        return Windows(parts, batch=network.windows_per_update, window=network.window, rng=rng)
    lanes = int(np.clip(len(data) // LANE_POINTS, *LANES))
    return Lanes(parts, batch=lanes, length=network.chunk_points, carry=CARRY, blind=network.blind_points, rng=rng)


def updates_for(points: int, how: FitOptions) -> int:
    """Gradient steps at the most for so many points: long series get more, short ones enough."""
    return how.updates or int(np.clip(points / 5, 300, 1200))


def divided(data: Stretches, network: Network, warm: int) -> tuple[Stretches, Stretches]:
    """What a fit trains on, and what it stops by and calibrates on; all points for either where there are too few.

    Args:
        data: Normal points.
        network: That is fitted.
        warm: Points before its detector's first score.
    """
    data = data.longer_than(network.warm_up_points)
    training, held_out = data.split(HELD_OUT, context=warm)
    training = training.longer_than(network.blind_points + 1)
    return training if training.parts else data, _usable(held_out, data, warm, network.stride)


def _usable(held_out: Stretches, data: Stretches, warm: int, stride: int) -> Stretches:
    """The held-out points, or all of them where too few would be scored."""
    seen = sum(max(len(part) - warm, 0) // stride for part in held_out.parts)
    return held_out if seen >= MINIMUM_ROWS // 2 else data


def partly(progress: Progress, turn: int, turns: int) -> Progress:
    """Tells of one member's training as a part of the whole."""
    return lambda stage, done, message: progress(stage, (turn + done) / turns, message)


def optimizer_for(
    network: Network, updates: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with a short linear warm-up and a cosine down to zero."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    ramp = max(1, updates // 20)

    def factor(step: int) -> float:
        return min((step + 1) / ramp, 0.5 * (1 + math.cos(math.pi * min(step / updates, 1.0))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def descend(network: Network, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimizer.step()


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
