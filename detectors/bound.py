"""Steps of always the same number of points, in memory that ONNX Runtime has been told of once.

Handing a step its arrays, and taking new ones from it, costs as much as many of its operations, which a step of one
point feels most. Streams ask for the same number of points again and again, so that is done once for it.
"""

from __future__ import annotations

import numpy as np

from detectors.runtime import FloatArray, Runtime, State, Step

STEPS_BEFORE = 8
"""Steps of a size in a row before it is worth it."""
SIZES = 4
"""Sizes that are kept, those that were bound last."""
MOST_POINTS = 4096
"""Of one step; what the arrays of larger ones would hold is not worth what they save."""


class Bound:
    """Steps of B points that go from one set of state arrays to the other.

    Args:
        runtime: What steps.
        batch: B.
    """

    def __init__(self, runtime: Runtime, batch: int) -> None:
        points = (batch, runtime.n_features) if runtime.stride == 1 else (batch, runtime.stride, runtime.n_features)
        self._values = np.empty(points, np.float32)
        self._score = np.empty(batch, np.float32)
        self._contribution = np.empty((batch, runtime.n_features), np.float32)
        self._sets = runtime.fresh(batch), runtime.fresh(batch)
        self._runs = [
            runtime.bound((self._values, *before), (self._score, self._contribution, *after))
            for before, after in (self._sets, self._sets[::-1])
        ]

    @property
    def room(self) -> State:
        """State of B series can be put here before a step; only while the present one does not lie here."""
        return self._sets[0]

    def holds(self, state: State) -> bool:
        """Whether these arrays are one of the two sets: the next steps write to them."""
        return state is self._sets[0] or state is self._sets[1]

    def step(self, values: FloatArray, state: State) -> Step:
        """As `Runtime.step`; what becomes of the state lies in one of the two sets, until the step after the next."""
        self._values[:] = values
        turn = 1 if state is self._sets[1] else 0
        if state is not self._sets[turn]:
            for own, other in zip(self._sets[0], state, strict=True):
                own[:] = other
        self._runs[turn]()
        return Step(self._score.copy(), self._contribution.copy(), self._sets[1 - turn])


class Bindings:
    """The sizes of steps that are bound, of one version."""

    def __init__(self) -> None:
        self._bound: dict[int, Bound] = {}
        self._last = self._times = 0

    def of(self, runtime: Runtime, batch: int) -> Bound | None:
        """Steps of so many points; None where they were not asked for often enough."""
        if (bound := self._bound.get(batch)) is not None:
            return bound
        self._times = self._times + 1 if batch == self._last else 1
        self._last = batch
        if self._times < STEPS_BEFORE or not 0 < batch <= MOST_POINTS or not runtime.can_be_bound:
            return None
        while len(self._bound) >= SIZES:
            del self._bound[next(iter(self._bound))]
        self._bound[batch] = bound = Bound(runtime, batch)
        return bound

    def clear(self) -> None:
        """Forgets them: another version steps."""
        self._bound.clear()
