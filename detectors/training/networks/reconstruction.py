"""What networks share that give a whole window again: they can do with a shorter one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from detectors.training.networks.base import Lever, WindowNetwork

SHORTEST = 8  # points: a shorter window has no course over time to speak of


class Reconstruction(WindowNetwork):
    """A network whose residual is a window minus its reconstruction.

    When its window is pulled, the oldest points leave.
    """

    @property
    def positions(self) -> int:
        """Every point of the window."""
        return self.window

    def levers(self) -> tuple[Lever, ...]:
        """The window, down to `SHORTEST` points or the stride."""
        return (Lever("window", self.window, min(self.window, max(self.stride, SHORTEST))),)

    def pulled(self, lever: str, value: int) -> Self:
        """See `Network.pulled`.

        Raises:
            InvalidInputError: a window beyond the lever's range.
        """
        if lever != "window":
            return super().pulled(lever, value)
        self.levers()[0].require(value)
        return self.rebuilt(self.units, {**self.options, "window": value}, self.tensors_over(value))

    def tensors_over(self, window: int) -> Mapping[str, Tensor]:
        """The tensors that know only the last `window` points; where none knows how many there are, as they are."""
        del window
        return self.state_dict()


def newest(tensors: Mapping[str, Tensor], values: int, first: str, last: str) -> dict[str, Tensor]:
    """Tensors of a dense network over the last `values` of its flat window, oldest point first.

    Args:
        tensors: Over the whole window.
        values: Window times features.
        first: The layer that reads the window; it loses columns.
        last: The layer that gives it again; it loses rows.
    """
    weights, again, bias = (f"{first}.weight", f"{last}.weight", f"{last}.bias")
    return {
        **tensors,
        weights: tensors[weights][:, -values:],
        again: tensors[again][-values:],
        bias: tensors[bias][-values:],
    }
