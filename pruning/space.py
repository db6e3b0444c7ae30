"""What a search may change of a detector, and between which bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import optuna

from detectors.training.fitted import SETTLE_HALF_LIVES, ErrorOptions, warm_up
from detectors.training.networks import Network, network_class
from detectors.training.networks.base import Options
from detectors.training.stretches import Stretches
from pruning.table import GRID

LEARNING_RATES = (3e-4, 3e-2)  # a tenth to ten times what a fit begins with
HALF_LIFE = 20.0  # longer than half of the injected events nothing is gained, and alarms come late
ROOM = 4  # the longest warm-up may take this part of the longest stretch, so that enough points are left to learn from
LEARNING_RATE, HALF_LIVES = "learning_rate", "half_life"


@dataclass(frozen=True)
class Dimension:
    """One number to search for.

    Attributes:
        name: The option of the network (of a member: `lstm.width`), `learning_rate` or `half_life`.
        low: Smallest value.
        high: Largest value.
        start: What the detector has before the search.
        log: Search evenly over orders of magnitude.
        whole: Only whole numbers.
        grid: Values between its multiples gain nothing; what was drawn is rounded up to one.
    """

    name: str
    low: float
    high: float
    start: float
    log: bool = False
    whole: bool = True
    grid: int = 1

    def drawn(self, trial: optuna.Trial) -> float:
        """What a trial is to try."""
        if self.low == self.high:
            return self.low
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def setting(self, value: float) -> float:
        """The value as it is set: on the grid, or with three digits. The start stays exactly as it is."""
        if value == self.start:
            return value
        return self.grid * -(-int(value) // self.grid) if self.whole else float(f"{value:.3g}")


@dataclass(frozen=True)
class Choice:
    """Settings of one detector.

    Attributes:
        options: Of the network.
        half_life: Of the smoothing, points.
        learning_rate: At the beginning of a fit; None: the kind learns without gradients.
    """

    options: dict[str, int | float | str | bool]
    half_life: float
    learning_rate: float | None = None

    @property
    def text(self) -> str:
        """On one line.

        >>> Choice({"width": 16, "layers": 1}, 2.5, 0.003).text
        'width 16, layers 1, rate 0.003, half-life 2.5'
        """
        rate = [] if self.learning_rate is None else [f"rate {self.learning_rate:g}"]
        sizes = [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join([*sizes, *rate, f"half-life {self.half_life:g}"])


@dataclass(frozen=True)
class Space:
    """All that is searched for one kind of network.

    Attributes:
        kind: The network.
        n_features: F.
        fixed: Options that are as they were given: `stride` and the `members` of an ensemble say what is wanted, not
            how well it is done.
        dimensions: The numbers.
    """

    kind: str
    n_features: int
    fixed: dict[str, int | float | str | bool]
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(
        cls, kind: str, n_features: int, data: Stretches, options: Options, error: ErrorOptions, learning_rate: float
    ) -> Self:
        """The space around what a detector has now, which lies in it.

        Windows and half-lives reach as far as the data let a detector warm up.

        Args:
            kind: The network.
            n_features: F.
            data: The points it is going to be fitted to.
            options: Of the network, as far as they are set.
            error: How residuals become one error.
            learning_rate: At the beginning.

        Raises:
            InvalidInputError: there is no such network or option.
        """
        torch_class = network_class(kind)
        checked = torch_class.checked_options(options)
        members = torch_class.dense(n_features, checked).members
        room = max((len(part) for part in data.parts), default=0) // ROOM
        windows = [member.window for member in members.values()]
        fits = 2 * max(windows) <= room and 2 * SETTLE_HALF_LIVES * error.half_life <= room
        half = room // 2 if fits else 0
        dimensions = [
            dimension
            for name, member in members.items()
            for dimension in _sizes(f"{name}." if name else "", member, half)
        ]
        if any(member.learned_by_gradient for member in members.values()):
            low, high = LEARNING_RATES
            low, high = min(low, learning_rate), max(high, learning_rate)
            dimensions.append(Dimension(LEARNING_RATE, low, high, learning_rate, log=True, whole=False))
        longest = max(min(HALF_LIFE, half / SETTLE_HALF_LIVES), error.half_life)
        dimensions.append(Dimension(HALF_LIVES, 0.0, longest, error.half_life, whole=False))
        searched = {dimension.name for dimension in dimensions}
        fixed = {name: value for name, value in checked.items() if name not in searched}
        return cls(kind, n_features, fixed, tuple(dimensions))

    @classmethod
    def of_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**fields, "dimensions": tuple(Dimension(**each) for each in fields["dimensions"])})

    def to_dict(self) -> dict[str, Any]:
        """As a study keeps it, so that it goes on in the space it began in."""
        return asdict(self)

    def choice(self, values: Mapping[str, float]) -> Choice:
        """The settings that values by dimension stand for; those that are not named stay at their start."""
        set_ = {each.name: each.setting(values.get(each.name, each.start)) for each in self.dimensions}
        half_life, learning_rate = set_.pop(HALF_LIVES), set_.pop(LEARNING_RATE, None)
        return Choice({**self.fixed, **{name: int(value) for name, value in set_.items()}}, half_life, learning_rate)

    def drawn(self, trial: optuna.Trial) -> Choice:
        """The settings that a trial is to try."""
        return self.choice({each.name: each.drawn(trial) for each in self.dimensions})

    @property
    def start(self) -> dict[str, float]:
        """What the detector has before the search, by dimension."""
        return self._corner("start")

    @property
    def smallest(self) -> dict[str, float]:
        """The smallest and quickest network, otherwise as at the start."""
        start = self.start
        return self._corner("low") | {name: start[name] for name in (LEARNING_RATE, HALF_LIVES) if name in start}

    def longest_warm_up(self, error: ErrorOptions) -> int:
        """Points after which every detector of the space has a score."""
        largest = self.choice({name: value for name, value in self._corner("high").items() if name != LEARNING_RATE})
        network = network_class(self.kind).dense(self.n_features, largest.options)
        return warm_up(network, ErrorOptions(largest.half_life, error.aggregate, error.missing))

    def _corner(self, bound: str) -> dict[str, float]:
        return {each.name: float(getattr(each, bound)) for each in self.dimensions}


@dataclass(frozen=True)
class Range:
    """Bounds that suit an option of most networks."""

    low: int
    high: int
    log: bool = True


RANGES: Mapping[str, Range] = {
    "window": Range(8, 128),
    "isolation_forest.window": Range(1, 32),
    "layers": Range(1, 3, log=False),
    "depth": Range(1, 2, log=False),
    "bottleneck": Range(2, 64),
    "conv_autoencoder.bottleneck": Range(1, 16),  # channels at each position
    "latent": Range(1, 32),
    "bidirectional": Range(0, 1, log=False),
    "trees": Range(25, 200),
    "samples": Range(32, 512),
}
"""By option, or by kind and option where the kind differs. What is not here is not searched."""


def _sizes(prefix: str, member: Network, longest_window: int) -> Iterator[Dimension]:
    """The dimensions of one network's options, in the order in which it offers them."""
    for option, (least, most) in member.dense_options.items():
        start = size_of(member, option)
        if option == "width":
            own = size_of(type(member).dense(member.n_features, {}), option)
            bounds, grid = Range(GRID, max(GRID, own)), GRID  # its own width is a generous parent's
        elif known := RANGES.get(f"{member.kind}.{option}", RANGES.get(option)):
            bounds, grid = known, 1
        else:
            continue
        high = min(bounds.high, longest_window) if option == "window" else bounds.high
        low = max(min(bounds.low, start), least, member.stride if option == "window" else 0)
        yield Dimension(f"{prefix}{option}", low, min(max(high, start), most), start, bounds.log, grid=grid)


def size_of(network: Network, option: str) -> int:
    """The value of an option that `dense` would make the network with.

    >>> from detectors.training.networks import LSTM
    >>> lstm = LSTM.dense(3, {"layers": 3, "width": 16})
    >>> size_of(lstm, "layers"), size_of(lstm, "width")
    (3, 16)
    """
    units, options = network.units, network.options
    if option in options:
        return int(options[option])
    if option in units:
        return units[option]
    if option == "width":
        return next(iter(units.values()))
    numbered = {"layers": "layer", "depth": "encoder"}[option]
    return sum(name.startswith(numbered) for name in units)
