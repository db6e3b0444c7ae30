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
from detectors.training.graph import Graph

TensorState = tuple[Tensor, ...]


@dataclass(frozen=True)
class Slice:
    """One axis of one tensor along which the units of a group lie.

    Attributes:
        tensor: Name in the network's `state_dict`.
        axis: Axis of that tensor.
        blocks: How often the units repeat along the axis (four gates of an LSTM: unit j is at j, H+j, 2H+j, 3H+j).
        bias: For consumers: the bias of the same module, which takes over the constant part of a removed input.
    """

    tensor: str
    axis: int
    blocks: int = 1
    bias: str | None = None


@dataclass(frozen=True)
class Group:
    """Hidden units of one kind; unit j leaves every slice at once.

    Attributes:
        name: As users see it.
        width: Number of units.
        own: Where the units are made: rows of weights and biases.
        consumers: Where the units are read: columns of weights. Zeroing them or removing the unit is the same.
        protected: Not offered for pruning.
    """

    name: str
    width: int
    own: tuple[Slice, ...]
    consumers: tuple[Slice, ...]
    protected: bool = False


class Normal(NamedTuple):
    """Normalised residual = (residual - center) * inverse, by feature [F]."""

    center: NDArray[np.float32]
    inverse: NDArray[np.float32]


class Pass(NamedTuple):
    """What a network makes of a stretch of points.

    Attributes:
        residual: [B, T, R, F], what it got wrong at each point, in scaled units. R = 1 for forecasters, the window's
            length for networks that reconstruct a window.
        state: What to carry to the next stretch.
        activations: For each group the units' outputs [B, T, H] as its consumers read them.
    """

    residual: Tensor
    state: TensorState
    activations: dict[str, Tensor]


class Network(nn.Module, ABC):
    """A network over scaled points. Training, calibration, pruning and export know nothing else of it."""

    kind: ClassVar[str]
    chunk_points: ClassVar[int]
    """Points of a lane in one training step (how far gradients reach back)."""
    dense_options: ClassVar[Mapping[str, tuple[int, int]]]
    """What users may give for the dense parent: name -> smallest and largest value."""
    n_features: int

    @property
    @abstractmethod
    def warm_up_points(self) -> int:
        """Points of a series that must have gone before until an error means something."""

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
        """Multiply-accumulates for one point."""

    @classmethod
    @abstractmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Mapping[str, int | float | str | bool]) -> Self:
        """A new network of this kind with the given units by group; weights from torch's global generator."""

    @classmethod
    @abstractmethod
    def dense(cls, n_features: int, options: Mapping[str, int | float | str | bool]) -> Self:
        """The generous parent that a fit starts from."""

    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The hidden units, in the order of the forward pass."""

    @abstractmethod
    def fresh(self, batch: int) -> TensorState:
        """The state of `batch` series that have seen nothing: zeros, each [B, ...]."""

    @abstractmethod
    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Runs over points [B, T, F]."""

    @abstractmethod
    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Draws one step and declares its states.

        Args:
            graph: Where to.
            point: The scaled point, [B, F].
            scale: How residuals are normalised; to be folded into weights, each node less lowers the floor of a step.

        Returns:
            [B, F], the mean over R of the squared normalised residual.
        """

    @classmethod
    def checked_options(cls, options: Mapping[str, int | float | str | bool]) -> dict[str, int]:
        """Options of the dense parent as whole numbers.

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
        return {name: int(value) for name, value in options.items()}

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


def weight(module: nn.Module, name: str) -> Tensor:
    """A parameter as a plain float32 tensor, detached."""
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value.detach().to(torch.float32)


def linear(module: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [in, out] and bias [out] of a linear layer, as a graph's Gemm takes them."""
    return weight(module, "weight").numpy().T, weight(module, "bias").numpy()
