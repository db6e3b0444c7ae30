"""Whether live points are still those that a detector was calibrated on: of their errors, and of their inputs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.sketch import CUTS, Counts, Reference, by_cuts, reference_of, to_counts, watched

BLOCKS = 4
"""A window moves on by a block, and has so many of them."""
PATIENCE = 4
"""Windows in a row that must lie above a limit: drift has come to stay."""
MAXIMUM_WAITING = 50_000
"""Points that wait to be looked at; where more come at once the oldest are skipped."""
TRIMMED = 0.05
"""Flagged points are left out, up to this share of a block: an incident is no drift, what stays flagged is."""
ERRORS_HIGH, ERRORS_LOW = 0.4, 0.25
INPUTS_HIGH, INPUTS_LOW = 0.4, 0.25
"""Distances, 0 to 1, from which there is drift, and below which there is none any more (`benchmarks/drift.py`)."""
PROBABILITIES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01])
"""Tail probabilities of an error where distributions are compared ..."""
SCORES = -np.log10(PROBABILITIES)
"""... and the scores that say so."""


@dataclass(frozen=True)
class Block:
    """Counts of some points: of scores below each of `SCORES`, and of each feature by its cuts.

    Attributes:
        points: N.
        below: [11], of scores.
        inputs: [F, 2 * CUTS + 1]: at odd places those that lie on a cut; None until there are cuts.
    """

    points: int
    below: Counts
    inputs: Counts | None = None


@dataclass(frozen=True)
class Part:
    """Live points: of one request, or of some."""

    version: int
    scores: FloatArray
    flagged: NDArray[np.bool_]
    values: FloatArray

    def rows(self, which: slice) -> Part:
        """Some of them."""
        return Part(self.version, self.scores[which], self.flagged[which], self.values[which])


@dataclass
class Side:
    """Errors, or inputs: how far they are from what they were, with hysteresis.

    Attributes:
        high: Distance from which there is drift.
        low: Distance below which there is none any more.
        distance: Of the last window, 0 to 1.
        above: Windows in a row above `high`.
        drifts: What it came to.
    """

    high: float
    low: float
    distance: float = 0.0
    above: int = 0
    drifts: bool = False

    def take(self, distance: float) -> None:
        """Looks at the next window.

        >>> errors = Side(high=0.4, low=0.2)
        >>> for distance in (0.5, 0.5, 0.3, 0.5, 0.5, 0.5):
        ...     errors.take(distance)
        >>> errors.drifts
        False
        >>> errors.take(0.5)
        >>> errors.take(0.3)
        >>> errors.drifts
        True
        """
        self.distance = distance
        self.above = self.above + 1 if distance > self.high else 0
        if self.above >= PATIENCE:
            self.drifts = True
        elif distance < self.low:
            self.drifts = False


class Drift:
    """The drift of one detector. `take` is cheap and belongs on the scoring path; `work` belongs in a thread.

    Args:
        window: Points of a window.
    """

    def __init__(self, window: int) -> None:
        self.block_points = max(window // BLOCKS, 1)
        self.version = 0
        """That scored the points."""
        self.errors = Side(ERRORS_HIGH, ERRORS_LOW)
        self.inputs = Side(INPUTS_HIGH, INPUTS_LOW)
        self.changed = False
        """Whether something has been counted since this was last saved."""
        self._handing, self._working = threading.Lock(), threading.Lock()
        self._width = 0
        """Features of a point."""
        self._waiting: deque[Part] = deque()
        self._points = 0
        """That wait."""
        self._rest: Part | None = None
        """Points of a block that is not whole."""
        self._first: list[FloatArray] = []
        """Values of the first window, until there are cuts."""
        self._reference: Reference | None = None
        self._blocks: deque[Block] = deque(maxlen=BLOCKS)
        self._since_reference = 0

    def take(self, version: int, scores: FloatArray, flagged: NDArray[np.bool_], values: FloatArray) -> None:
        """Has points looked at later; those without a score are left out.

        Args:
            version: That scored them.
            scores: [N].
            flagged: [N].
            values: [N, F].
        """
        with self._handing:
            self._waiting.append(Part(version, scores, flagged, values))
            self._points += len(scores)
            while len(self._waiting) > 1 and self._points > MAXIMUM_WAITING:
                self._points -= len(self._waiting.popleft().scores)

    @property
    def drifts(self) -> bool:
        """Whether there is drift that has come to stay."""
        return self.errors.drifts or self.inputs.drifts

    @property
    def cause(self) -> str:
        """The same in words; empty where there is none."""
        said = []
        if self.errors.drifts:
            said.append(f"errors are higher than calibrated (by {self.errors.distance:.0%} of the points)")
        if self.inputs.drifts:
            said.append(f"inputs have moved (by {self.inputs.distance:.0%} of the points)")
        return " and ".join(said)

    def work(self) -> None:
        """Counts what waits."""
        with self._working:
            with self._handing:
                waiting, self._waiting, self._points = self._waiting, deque(), 0
            for (version, width), parts in groupby(waiting, lambda part: (part.version, part.values.shape[1])):
                if (version, width) != (self.version, self._width):
                    self._begin(version, width)
                self._collect(_joined(list(parts)))

    def _begin(self, version: int, width: int) -> None:
        """Another version took over: nothing that was counted says anything of it."""
        self.version, self._width = version, width
        self.errors, self.inputs = Side(ERRORS_HIGH, ERRORS_LOW), Side(INPUTS_HIGH, INPUTS_LOW)
        self._rest, self._first, self._reference, self._since_reference = None, [], None, 0
        self._blocks.clear()
        self.changed = True

    def _collect(self, part: Part) -> None:
        """Counts whole blocks; the rest waits for more."""
        sound, columns = np.isfinite(part.scores), watched(part.values.shape[1])
        found = Part(part.version, part.scores[sound], part.flagged[sound], part.values[sound][:, columns])
        joined = found if self._rest is None else _joined([self._rest, found])
        whole = len(joined.scores) - len(joined.scores) % self.block_points
        for start in range(0, whole, self.block_points):
            self._count(joined.rows(slice(start, start + self.block_points)))
        self._rest = joined.rows(slice(whole, None))

    def _count(self, block: Part) -> None:
        kept = _trimmed(block.flagged)
        scores, values = block.scores[kept], block.values[kept]
        below = np.searchsorted(np.sort(scores), SCORES).astype(np.int64)
        inputs = None if self._reference is None else by_cuts(values, self._reference.cuts)
        self._blocks.append(Block(len(scores), below, inputs))
        self.changed = True
        if self._reference is None:
            self._first.append(values)
            if len(self._first) == BLOCKS:
                self._reference = reference_of(self._first)
                self._first = []
        elif not self._reference.is_whole:
            self._since_reference += 1
            if self._since_reference % BLOCKS == 0:
                self._reference.windows.append(_inputs(self._blocks))
        if len(self._blocks) == BLOCKS:
            self._judge()

    def _judge(self) -> None:
        points = sum(block.points for block in self._blocks)
        below = np.sum([block.below for block in self._blocks], axis=0) / points
        self.errors.take(float(np.max((1 - PROBABILITIES) - below).clip(0)))
        reference = self._reference
        if reference is not None and reference.is_whole:
            self.inputs.take(reference.distance(_inputs(self._blocks)))

    def to_json(self) -> dict[str, Any]:
        """What must survive a restart; points of a block that is not whole, and of the first window, do not."""
        with self._working:
            return self._fields()

    def _fields(self) -> dict[str, Any]:
        reference = self._reference
        return {
            "version": self.version,
            "width": self._width,
            "block_points": self.block_points,
            "errors": _side_to_json(self.errors),
            "inputs": _side_to_json(self.inputs),
            "cuts": None if reference is None else reference.cuts.tolist(),
            "windows": [] if reference is None else [window.tolist() for window in reference.windows],
            "blocks": [
                [block.points, block.below.tolist(), None if block.inputs is None else block.inputs.tolist()]
                for block in self._blocks
            ],
            "since_reference": self._since_reference,
        }

    @classmethod
    def from_json(cls, window: int, fields: Mapping[str, Any]) -> Self:
        """The same again.

        Raises:
            ValueError, KeyError, TypeError: it is damaged, or of windows of another length.
        """
        drift = cls(window)
        if fields["block_points"] != drift.block_points:
            raise ValueError("it counts windows of another length")
        drift.version, drift._width = int(fields["version"]), int(fields["width"])
        for side, name in ((drift.errors, "errors"), (drift.inputs, "inputs")):
            side.distance, side.above = float(fields[name]["distance"]), int(fields[name]["above"])
            side.drifts = bool(fields[name]["drifts"])
        if fields["cuts"] is not None:
            cuts = np.array(fields["cuts"], np.float32).reshape(-1, CUTS)
            drift._reference = Reference(cuts, [to_counts(it, len(cuts)) for it in fields["windows"]])
            drift._since_reference = int(fields["since_reference"])
            width = len(cuts)
            for points, below, inputs in fields["blocks"]:
                counted = None if inputs is None else to_counts(inputs, width)
                drift._blocks.append(Block(int(points), np.array(below, np.int64).reshape(len(SCORES)), counted))
        return drift


def _side_to_json(side: Side) -> dict[str, Any]:
    return {"distance": side.distance, "above": side.above, "drifts": side.drifts}


def _joined(parts: Sequence[Part]) -> Part:
    return Part(
        parts[0].version,
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.flagged for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def _trimmed(flagged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows that count: the first flagged ones are left out, as far as they may be."""
    out = np.flatnonzero(flagged)[: int(TRIMMED * len(flagged))]
    return np.delete(np.arange(len(flagged)), out)


def _inputs(blocks: Sequence[Block] | deque[Block]) -> Counts:
    return np.asarray(np.sum([block.inputs for block in blocks if block.inputs is not None], axis=0), np.int64)
