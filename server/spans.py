"""Stretches of time that people have said something of: which points lie in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from server.records import FeedbackRow, Label, WindowRow


@dataclass(frozen=True)
class Span:
    """Points from `first` to `last`, both included; of all series where `series` is empty."""

    series: str
    first: int
    last: int

    @classmethod
    def of(cls, row: FeedbackRow | WindowRow) -> Self:
        """What a label or a maintenance window is about."""
        return cls(row.series, row.first_stamp, row.last_stamp)


class Spans:
    """Many of them, asked at once. False where there are none.

    Args:
        spans: In any order.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = list(spans)
        self._first = np.array([span.first for span in self._spans], np.int64)
        self._last = np.array([span.last for span in self._spans], np.int64)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def cover(self, names: Sequence[str], index: NDArray[np.int64], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which points lie in one.

        Args:
            names: Of series; the same may come more than once.
            index: [N] into `names`.
            stamps: [N].

        Returns:
            [N].
        """
        covered = np.zeros(len(stamps), np.bool_)
        if not len(stamps) or not self._spans:
            return covered
        near = np.flatnonzero((self._first <= stamps.max()) & (self._last >= stamps.min()))
        for span in (self._spans[at] for at in near):
            inside = (stamps >= span.first) & (stamps <= span.last)
            if span.series:
                inside &= np.fromiter((name == span.series for name in names), np.bool_, len(names))[index]
            covered |= inside
        return covered


@dataclass(frozen=True)
class Said:
    """What people said of the points of a detector, as a job carries it.

    Attributes:
        labels: Oldest first: of two that are about the same point, the later one counts.
        windows: Maintenance windows.
    """

    labels: tuple[tuple[Span, Label], ...] = ()
    windows: tuple[Span, ...] = ()

    @classmethod
    def of(cls, labels: Iterable[FeedbackRow], windows: Iterable[WindowRow]) -> Self:
        """From rows of the catalog, labels oldest first."""
        return cls(tuple((Span.of(row), row.label) for row in labels), tuple(map(Span.of, windows)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Back from `to_json`; whatever is not there was not said."""
        return cls(
            tuple((Span(**span), label) for span, label in fields.get("labels", ())),
            tuple(Span(**span) for span in fields.get("windows", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and objects."""
        return {
            "labels": [[asdict(span), label] for span, label in self.labels],
            "windows": [asdict(span) for span in self.windows],
        }

    def labelled(
        self, names: Sequence[str], index: NDArray[np.int64], stamps: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which points are called anomalies, and which normal, by the newest label of each; arguments as of `Spans`."""
        anomaly, normal = np.zeros(len(stamps), np.bool_), np.zeros(len(stamps), np.bool_)
        for span, label in self.labels:
            inside = Spans([span]).cover(names, index, stamps)
            anomaly[inside], normal[inside] = label == "anomaly", label == "normal"
        return anomaly, normal
