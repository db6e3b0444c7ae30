"""What came of a replay: scores with the loop and without, cycles, and what versions cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.records import AdoptionRow, CycleRow


@dataclass(frozen=True)
class Ran:
    """A cycle of a replay: how many rows had been streamed when it began, and what became of what it made."""

    row: int
    cycle: CycleRow
    adoption: AdoptionRow | None

    @property
    def went_back(self) -> bool:
        """Whether what it made was rolled back."""
        return self.adoption is not None and self.adoption.state == "rolled_back"


@dataclass(frozen=True)
class Size:
    """What a version costs on the hub; times are None where nothing was measured."""

    version: int
    bytes: int
    parameters: int
    units: dict[str, int]
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        name: Of the detector.
        first_row: The first row that was scored; those before were learned from.
        stamps: [N] of the rows scored.
        labels: [N]; None where the file has none.
        threshold: From which a score counts as flagged.
        scores: [N] of the detector with the loop; NaN where there is none.
        versions: [N] that gave them.
        frozen: [N] scores of the first version on the same rows.
        cycles: All that ran, oldest first.
        sizes: Of every version there was, oldest first.
        seconds: That the replay took.
    """

    name: str
    first_row: int
    stamps: NDArray[np.int64]
    labels: NDArray[np.bool_] | None
    threshold: float
    scores: FloatArray
    versions: NDArray[np.int64]
    frozen: FloatArray
    cycles: list[Ran]
    sizes: list[Size]
    seconds: float


def runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First row of every run of true rows, and the row after it.

    >>> runs(np.array([True, False, True, True]))
    [(0, 1), (2, 4)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]
