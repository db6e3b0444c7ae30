"""What every network declares: how it runs, how it is drawn as a graph, and which tensors know which hidden unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors.errors import InvalidInputError
from detectors.training.calibrate import Scaler
from detectors.training.graph import Graph
from detectors.training.stretches import Stretches

TensorState = tuple[Tensor, ...]
Options = Mapping[str, int | float | str | bool]
"""Sizes and switches of a network, as they travel in JSON."""


@dataclass(frozen=True)
class Slice:
    """One axis of one tensor along which the units of a group lie.

    Attributes:
        tensor: Name in the network's `state_dict`.
        axis: Axis of that tensor.
        blocks: How often the units repeat along the axis (four gates of an LSTM: unit j is at j, H+j, 2H+j, 3H+j).
        bias: For consumers: the bias of the same module, which takes over the constant part of a removed input.
        phases: For consumers: how many output positions share the taps of a kernel between them (a transposed
            convolution's stride).
        inner: How many neighbouring entries belong to one unit (the L positions of a filter whose output is flattened).
        voices: For consumers: which of `Pass.activations` each block reads; empty: the group's own. Units that leave
            together may say different things in different places (both directions of a bidirectional layer).
    """

    tensor: str
    axis: int
    blocks: int = 1
    bias: str | None = None
    phases: int = 1
    inner: int = 1
    voices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Hidden units of one kind; unit j leaves every slice at once.

    Attributes:
        name: As users see it.
        width: Number of units.
        own: Where the units are made: rows of weights and biases.
        consumers: Where the units are read: columns of weights. Zeroing them or removing the unit is the same.
        protected: Not offered for pruning; idle units may leave where `criterion` can tell them.
        criterion: How its units are judged whatever is asked for (`pruning.importance`): for those that have a measure
            of their own, or no gradients. None: as asked.
        reads: The group whose units this layer reads, where the layer may be bypassed (`Network.without`).
    """

    name: str
    width: int
    own: tuple[Slice, ...]
    consumers: tuple[Slice, ...]
    protected: bool = False
    criterion: str | None = None
    reads: str | None = None


@dataclass(frozen=True)
class Lever:
    """A size of a network that is no width: pulled only where widths alone do not meet a budget.

    Attributes:
        name: `window`, `depth`, ...
        value: What it is.
        smallest: What it can be pulled to.
    """

    name: str
    value: int
    smallest: int

    def require(self, value: int) -> None:
        """Refuses what it can not be pulled to.

        Raises:
            InvalidInputError: smaller than `smallest`, or larger than it is.
        """
        if not self.smallest <= value <= self.value:
            raise InvalidInputError(f"must be from {self.smallest} to {self.value}.", field=self.name)


class Normal(NamedTuple):
    """Normalised residual = (residual - center) * inverse, by feature [F]."""

    center: NDArray[np.float32]
    inverse: NDArray[np.float32]


class Pass(NamedTuple):
    """What a network makes of a stretch of points.

    Attributes:
        residual: [B, T, R, F], what it got wrong at each point, in scaled units; R is `Network.positions`.
        state: What to carry to the next stretch.
        activations: For each group the units' outputs as its consumers read them: [B, T, H], or [B, T, ..., H] where a
            unit speaks several times for one point (filters along a window, steps of a decoder). Beside them the
            voices that slices name.
        loss: [B, T], what training adds to the squared residual (a variational network's divergence); None: nothing.
    """

    residual: Tensor
    state: TensorState
    activations: dict[str, Tensor]
    loss: Tensor | None = None


class Network(nn.Module, ABC):
    """A network over scaled points. Training, calibration, pruning and export know nothing else of it.

    It is in evaluation mode but while `detectors.training.fit` makes a training step: scoring never draws lots.

    A *carried* network (`window == 0`) steps from point to point. A *window* network sees the last `window` points; its
    only state is the `window - 1` points before, so it can be started anywhere.
    """

    kind: ClassVar[str]
    chunk_points: ClassVar[int] = 64
    """Points of a lane in one training step of a carried network (how far gradients reach back)."""
    windows_per_update: ClassVar[int] = 128
    """Windows in one training step of a window network."""
    learned_by_gradient: ClassVar[bool] = True
    """Whether `detectors.training.fit` trains it; if not, it has a method `grow`."""
    dense_options: ClassVar[Mapping[str, tuple[int, int]]]
    """What users may give for the dense parent: name -> smallest and largest value."""
    n_features: int
    window: int = 0
    stride: int = 1
    """Every how many points it scores; 1 for carried networks."""

    @property
    def members(self) -> Mapping[str, Network]:
        """The networks that are trained, normalised and calibrated each for itself; a lone one is its own member ''."""
        return {"": self}

    def with_members(self, members: Mapping[str, Network]) -> Network:
        """The same detector's network out of other members."""
        return members[""]

    @property
    def positions(self) -> int:
        """R: 1 for what judges a point, the window's length for what reconstructs a window."""
        return 1

    @property
    @abstractmethod
    def warm_up_points(self) -> int:
        """Points of a series that must have gone before until a residual means something."""

    @property
    @abstractmethod
    def blind_points(self) -> int:
        """Points of a fresh series whose error must not be trained on."""

    @property
    @abstractmethod
    def options(self) -> dict[str, int | float | str | bool]:
        """What `build` needs beside features and units."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates for one point that is scored."""

    @classmethod
    @abstractmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """A new network of this kind with the given units by group; weights from torch's global generator."""

    @classmethod
    @abstractmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """The generous parent that a fit starts from."""

    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The hidden units, in the order of the forward pass."""

    def levers(self) -> tuple[Lever, ...]:
        """Sizes beside the widths that can be made smaller without new weights, mildest first."""
        return ()

    def pulled(self, lever: str, value: int) -> Self:
        """The same weights with a lever at a smaller value; a new network."""
        raise NotImplementedError(f"{self.kind} has no lever {lever!r}")

    def without(self, group: str, mapping: Tensor, constant: Tensor) -> Network:
        """A layer bypassed: what it said is replaced by a linear map of what it read, folded into its reader.

        Args:
            group: A group that `reads` another.
            mapping: [I, H] from the I units it reads to its H units.
            constant: [H].
        """
        raise NotImplementedError(f"{self.kind} can not do without {group!r}")

    @abstractmethod
    def fresh(self, batch: int) -> TensorState:
        """The state of `batch` series that have seen nothing: zeros, each [B, ...]."""

    @abstractmethod
    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Runs over points [B, T, F]; a residual for each, whatever the stride."""

    def grow(self, training: Stretches, scaler: Scaler, seed: int) -> None:
        """Learns from normal points without gradients; only where `learned_by_gradient` is False."""
        raise NotImplementedError

    def draw_window(self, graph: Graph, newest: str, name: str = "window") -> str:
        """Carries points so that a step sees the whole window, [B, W * F]; only window networks can."""
        raise NotImplementedError

    @abstractmethod
    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Draws one step and declares its states.

        Args:
            graph: Where to.
            point: The scaled point, [B, F]; with a stride the newest n points, [B, n * F].
            scale: How residuals are normalised; to be folded into weights, each node less lowers the floor of a step.

        Returns:
            The normalised residual, [B, R * F], position by position.
        """

    @classmethod
    def checked_options(cls, options: Options) -> dict[str, int | float | str | bool]:
        """Options of the dense parent; those in `dense_options` as whole numbers.

        Raises:
            InvalidInputError: an option that this kind does not have, or a value that it can not have.
        """
        for name, value in options.items():
            if name not in cls.dense_options:
                raise InvalidInputError(
                    f"the {cls.kind} network has no such option.",
                    field=f"options.{name}",
                    hint=f"It has {', '.join(cls.dense_options)}.",
                )
            low, high = cls.dense_options[name]
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == round(value, 0)
            if not whole or not low <= float(value) <= high:
                raise InvalidInputError(f"must be a whole number from {low} to {high}.", field=f"options.{name}")
        whole_options: dict[str, int | float | str | bool] = {name: int(value) for name, value in options.items()}
        if int(whole_options.get("stride", 1)) > int(whole_options.get("window", DEFAULT_WINDOW)):
            raise InvalidInputError("must not be larger than the window.", field="options.stride")
        return whole_options

    @property
    def units(self) -> dict[str, int]:
        """Hidden units by group."""
        return {group.name: group.width for group in self.groups()}

    @property
    def parameters_count(self) -> int:
        """Trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def resized(self, units: Mapping[str, int]) -> Self:
        """A network of this kind and these options with other widths and fresh weights."""
        return type(self).build(self.n_features, {**self.units, **units}, self.options)

    def rebuilt(self, units: Mapping[str, int], options: Options, tensors: Mapping[str, Tensor]) -> Self:
        """A network of this kind of other sizes that holds the given tensors, copied."""
        made = type(self).build(self.n_features, units, options)
        made.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
        made.load_state_dict(tensors)
        return made


DEFAULT_WINDOW = 50
"""Points, of every window network: the field's usual choice (PyOD's LSTMAD, TSB-AD)."""


class WindowNetwork(Network):
    """A network whose state is the last W - 1 scaled points."""

    @property
    def warm_up_points(self) -> int:
        """All but the last point of the first whole window."""
        return self.window - 1

    @property
    def blind_points(self) -> int:
        """The same: a window that is not full is not trained on."""
        return self.window - 1

    def fresh(self, batch: int) -> TensorState:
        """The last W - 1 points, zeros (the mean) while there are none: [B, W - 1, F]."""
        like = next((it for it in (*self.parameters(), *self.buffers()) if it.is_floating_point()), torch.zeros(0))
        return (like.new_zeros(batch, self.window - 1, self.n_features),)

    def windows(self, points: Tensor, state: TensorState) -> tuple[Tensor, TensorState]:
        """The window that ends at each point, [B, T, W, F], and the state after the last."""
        joined = torch.cat([state[0], points], dim=1)  # [B, W - 1 + T, F]
        return joined.unfold(1, self.window, 1).transpose(2, 3), (joined[:, points.shape[1] :],)

    def draw_window(self, graph: Graph, newest: str, name: str = "window") -> str:
        """Carries the last W - stride points, flat; returns the whole window, [B, W * F]."""
        n_features, window, stride = self.n_features, self.window, self.stride
        if window == stride:
            return newest
        past = graph.state(name, ((window - stride) * n_features,))
        flat = graph.op("Concat", past, newest, axis=1)
        first, last, axis = (graph.const([value], np.int64) for value in (stride * n_features, window * n_features, 1))
        graph.carry(past, graph.op("Slice", flat, first, last, axis))
        return flat


MANY_FEATURES = 8


def generous_width(n_features: int) -> int:
    """Units a layer of a dense recurrent parent: twice as many buy nothing on narrow series, and quadruple the cost."""
    return 128 if n_features > MANY_FEATURES else 64


def fold(tensors: dict[str, Tensor], weight: str, bias: str, mapping: Tensor, constant: Tensor) -> None:
    """Lets a reader of H units read the I units that they are a linear map of; its two tensors are replaced.

    Args:
        tensors: Of a network.
        weight: Name of the reader's weight, [out, H].
        bias: Name of its bias, [out].
        mapping: [I, H].
        constant: [H].
    """
    read = tensors[weight]
    tensors[weight] = read @ mapping.T
    tensors[bias] = tensors[bias] + read @ constant


def weight(module: nn.Module, name: str) -> Tensor:
    """A parameter as a plain float32 tensor, detached."""
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value.detach().to(torch.float32)


def linear(module: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [in, out] and bias [out] of a linear layer, as a graph's Gemm takes them."""
    return weight(module, "weight").numpy().T, weight(module, "bias").numpy()
