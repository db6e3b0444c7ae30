"""Where series go that have been silent for longest when there is no room for them, and from where they come back.

A shelf holds what a series needs to go on bit by bit as if it had never left: its state under the version that carried
it, its last points, stamp and counts. It also outlives the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

GONE = -1


@dataclass(frozen=True, slots=True)
class Shelved:
    """One series.

    Attributes:
        name: Of the series.
        last_stamp: Of its newest point.
        seen: Accepted points since it began.
        heard: When it last took a point, in seconds since the epoch.
        bundle_hash: Of the version that carried the state.
        state: The state tensors of this series, float32, one after the other.
        ring: Its newest points [T, F], float32, oldest first.
        turn: Raised with every writing: an older row never replaces a newer one.
    """

    name: str
    last_stamp: int
    seen: int
    heard: float
    bundle_hash: str
    state: bytes
    ring: bytes
    turn: int


@dataclass(frozen=True, slots=True)
class Label:
    """What stands on the outside of a series on the shelf; fields as of `Shelved`.

    Of a series that was let go a label is left, with `seen` = `GONE`: whoever knows its old points from elsewhere must
    not bring it back.
    """

    name: str
    last_stamp: int
    seen: int
    heard: float
    turn: int


class Shelf(Protocol):
    """Keeps series; may be called from two threads (`server.series_file` is one)."""

    def put(self, rows: Sequence[Shelved]) -> None:
        """Keeps series, all or none; OSError when they can not be written."""

    def get(self, names: Sequence[str]) -> list[Shelved]:
        """Those of the series that are there."""

    def let_go(self, labels: Sequence[Label]) -> None:
        """Forgets series but for these labels; OSError when that can not be written."""

    def clear(self) -> None:
        """Forgets all."""

    def labels(self) -> Iterator[Label]:
        """Of everything that is there or was let go, the one that was heard of last first."""
