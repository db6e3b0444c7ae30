"""The series of one request or stream, resolved to slots once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.scorer import Scorer
from detectors.series import Slots

MAX_SERIES_NAME = 256
Index = NDArray[np.int64]


class Track:
    """Names of series in the order they were sent, and their slots in the scorer of the moment.

    Args:
        scorer: Says which scorer takes the points; asked each time, because a detector may get another one.
    """

    def __init__(self, scorer: Callable[[], Scorer]) -> None:
        self._current = scorer
        self.names: list[str] = []
        """Append-only, so that an index into it stays right."""
        self._resolved: Scorer | None = None
        self._epoch = 0
        self._slots: Slots = np.empty(0, np.int64)
        self.run: slice | None = None
        """The slots of all names as a slice, where they are consecutive."""

    def add(self, names: Sequence[str]) -> tuple[Scorer, Slots]:
        """Takes more names; returns the scorer and the slots of all names so far.

        Raises:
            InvalidInputError: a name is empty or too long; nothing was added.
            ExhaustedError: the detector would hold too many series; nothing was added.
        """
        scorer = self._current()
        is_known = scorer is self._resolved and scorer.series.epoch == self._epoch
        if is_known and not names:
            return scorer, self._slots
        if not is_known:
            self._slots = scorer.series.slots([*self.names, *_checked(names)])
            self._resolved, self._epoch = scorer, scorer.series.epoch
            self.names.extend(names)
        else:
            self._slots = np.concatenate([self._slots, scorer.series.slots(_checked(names))])
            self.names.extend(names)
        slots = self._slots
        consecutive = len(slots) == 1 or (len(slots) > 1 and bool((slots[1:] == slots[:-1] + 1).all()))
        self.run = slice(int(slots[0]), int(slots[-1]) + 1) if consecutive else None
        return scorer, slots


def _checked(names: Sequence[str]) -> Sequence[str]:
    if names and not (min(map(len, names)) and max(map(len, names)) <= MAX_SERIES_NAME):
        raise InvalidInputError(
            "a name of a series is empty or too long.",
            field="series",
            hint=f"Write 1 to {MAX_SERIES_NAME} characters.",
        )
    return names
