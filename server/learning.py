"""What a detector runs before its first fit."""

from __future__ import annotations

import numpy as np

from detectors.runtime import FloatArray, Runtime, State, Step
from detectors.served import Served

LEARNING_VERSION = 0


class LearningRuntime(Runtime):
    """Takes points and scores none.

    So a detector that learns fills its series' rings like any other, and its first version takes over like any other.

    Args:
        n_features: F.
        takes_missing: Whether values may be missing, as they may be for the version to come.
    """

    can_be_bound = False

    def __init__(self, n_features: int, *, takes_missing: bool) -> None:
        self.n_features = n_features
        self.stride = 1
        self.takes_missing = takes_missing
        self.state_shapes = ()
        self.state_bytes = 0

    def step(self, values: FloatArray, state: State) -> Step:
        """No score."""
        return Step(np.full(len(values), np.nan, np.float32), np.zeros_like(values), state)


def learning(n_features: int, *, takes_missing: bool = False) -> Served:
    """The version that a detector of `n_features` has before its first."""
    return Served(LEARNING_VERSION, "", LearningRuntime(n_features, takes_missing=takes_missing), 0)
