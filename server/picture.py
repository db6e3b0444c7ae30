"""What a picture of scored points shows: lines, spans and words. `server.drawing` puts it on paper.

Everything that is flagged, named or counted here comes from all rows; only the lines are thinned, and so that no spike
is lost. Places on the axis of time are float64, relative to `Axis.origin` and in the unit of the stamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError
from detectors.stamps import Status
from server.anomalies import top_shares
from server.csv_input import Table
from server.lines import PLACES, Line, Places, Rows, line
from server.scores_csv import Scores
from server.time_axis import Axis, Window, gaps, on_axis, runs

PANELS = 6  # features drawn, unless some are asked for
NAMED_SPANS = 10  # the highest ones get a number and a row of the list
JOIN_ROWS = 5  # rows below the threshold inside a span: the half-life of a smoothed error
LEAST_SHARE = 0.05  # of the error; features below are not named
LISTED = 64  # names of features in a note

Extents = NDArray[np.float64]
"""[N, 2] places on the axis from where to where."""


@dataclass(frozen=True)
class Span:
    """A stretch of flagged points, at most `JOIN_ROWS` others between two of them.

    Attributes:
        rows: First and last flagged row of the file.
        extent: Where it is on the axis.
        start: Stamp of the first row as it was written.
        end: The same of the last row.
        points: Flagged points.
        peak: The highest score.
        features: Those that contributed most, largest first, with their mean share of the error.
    """

    rows: tuple[int, int]
    extent: tuple[float, float]
    start: str
    end: str
    points: int
    peak: float
    features: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Panel:
    """One feature.

    Attributes:
        name: Of the feature.
        share: Mean share of the error of all flagged points; None where no point is flagged.
        line: Its values.
        leads: The spans that name it.
    """

    name: str
    share: float | None
    line: Line
    leads: tuple[Span, ...]


@dataclass(frozen=True)
class Picture:
    """Everything to be drawn.

    Attributes:
        title: Detector, version, number of spans.
        subtitle: Points, threshold and time.
        axis: Of time.
        score: Scores.
        threshold: A score at or above it is flagged.
        spans: In the order of time.
        named: Those with a number, counted from 1; in the order of time.
        warming: Where there is no score since too few points went before.
        unscored: Where there is no score for another reason.
        labelled: Where the column `label` marks rows; None where there is no such column.
        panels: Features, those that contributed most first.
        univariate: Whether there is one feature only, so that nobody has to be told which.
        notes: What else must be said, a sentence each.
    """

    title: str
    subtitle: str
    axis: Axis
    score: Line
    threshold: float
    spans: tuple[Span, ...]
    named: tuple[Span, ...]
    warming: Extents
    unscored: Extents
    labelled: Extents | None
    panels: tuple[Panel, ...]
    univariate: bool
    notes: tuple[str, ...]


def picture_of(
    name: str, table: Table, scores: Scores, window: Window | None = None, wanted: Sequence[str] | None = None
) -> Picture:
    """What to draw of scored points.

    Args:
        name: The detector.
        table: The points.
        scores: What became of them, with contributions.
        window: Rows to draw; None: all.
        wanted: Features to draw, in this order; None: the `PANELS` that contributed most to flagged points.

    Raises:
        InvalidInputError: there are no rows in the window, or no such feature.
    """
    table = table.in_order_of(scores.features)
    asked = chosen(table.features, wanted)
    drawn = _Drawn.of(table, scores, (window or Window()).rows(table))
    spans = drawn.spans()
    named = sorted(sorted(spans, key=lambda span: -span.peak)[:NAMED_SPANS], key=lambda span: span.extent)
    panels = drawn.panels(asked, spans)
    status = drawn.status
    return Picture(
        title=_title(name, scores.version[drawn.rows], len(spans)),
        subtitle=_subtitle(drawn),
        axis=drawn.axis,
        score=drawn.score_line(),
        threshold=float(scores.threshold),
        spans=tuple(spans),
        named=tuple(named),
        warming=drawn.extents(status == Status.WARMING_UP),
        unscored=drawn.extents(np.isin(status, (Status.INVALID, Status.LEARNING, Status.TOO_FAR))),
        labelled=None if table.labels is None else drawn.extents(table.labels[drawn.rows]),
        panels=tuple(panels),
        univariate=len(table.features) == 1,
        notes=tuple(_notes(drawn, panels, len(spans) - len(named))),
    )


@dataclass(frozen=True)
class _Drawn:
    """The rows of the window in the order of time.

    Attributes:
        table: The whole file.
        scores: Of the whole file.
        rows: [N] numbers of the rows.
        axis: Of time.
        at: [N] places.
        half: Half a step: how far a row reaches to either side.
        gap: [N]; whether there is one before a row.
        shares: [A, F] shares of the error, of the flagged rows among them.
    """

    table: Table
    scores: Scores
    rows: Rows
    axis: Axis
    at: Places
    half: float
    gap: NDArray[np.bool_]
    shares: NDArray[np.float32]

    @classmethod
    def of(cls, table: Table, scores: Scores, inside: Rows) -> _Drawn:
        """Puts the rows of a window in order."""
        rows, axis, at, half = on_axis(table, inside)
        none = np.zeros(len(scores.features), np.float32)
        found = [scores.contributions.get(row, none) for row in rows[scores.is_anomaly[rows]].tolist()]
        shares = np.array(found, np.float32).reshape(-1, len(none))
        return cls(table, scores, rows, axis, at, half, gaps(at), shares)

    @property
    def status(self) -> NDArray[np.uint8]:
        """[N] of `Status`."""
        return self.scores.status[self.rows]

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """[N]."""
        return self.scores.is_anomaly[self.rows]

    def extents(self, mask: NDArray[np.bool_]) -> Extents:
        """Where the rows of a mask are."""
        stretches = runs(mask, np.ones_like(mask), self.gap)
        found = [(self.at[first] - self.half, self.at[last] + self.half) for first, last in stretches]
        return np.array(found, np.float64).reshape(-1, 2)

    def spans(self) -> list[Span]:
        """Stretches of flagged rows; rows that were not due count as if they were not there."""
        flagged, texts, spans = self.flagged, self.table.stamp_text, []
        before = 0
        for first, last in runs(flagged, self.status != Status.NOT_DUE, self.gap, JOIN_ROWS):
            own = self.rows[first : last + 1][flagged[first : last + 1]]
            shares = self.shares[before : before + len(own)]
            before += len(own)
            spans.append(
                Span(
                    (int(own[0]), int(own[-1])),
                    (float(self.at[first] - self.half), float(self.at[last] + self.half)),
                    texts[own[0]],
                    texts[own[-1]],
                    len(own),
                    float(self.scores.score[own].max()),
                    top_features(shares, self.table.features),
                )
            )
        return spans

    def panels(self, asked: Rows | None, spans: Sequence[Span]) -> list[Panel]:
        """Panels of the features that are asked for, or of those that contributed most."""
        features = self.table.features
        mean = self.shares.mean(axis=0) if len(self.shares) else None
        if asked is None:
            asked = np.arange(len(features)) if mean is None else np.argsort(-mean, kind="stable")
            asked = asked[:PANELS]
        return [
            Panel(
                features[column],
                None if mean is None else float(mean[column]),
                line(self.at, self.table.values[self.rows, column], self.gap),
                tuple(span for span in spans if features[column] in dict(span.features)),
            )
            for column in asked.tolist()
        ]

    def score_line(self) -> Line:
        """Scores; rows that were not due or not taken do not break the line."""
        there = ~np.isin(self.status, (Status.NOT_DUE, Status.LATE, Status.DUPLICATE))
        gap = np.diff(np.cumsum(self.gap)[there], prepend=0) > 0
        return line(self.at[there], self.scores.score[self.rows[there]], gap)


def chosen(features: Sequence[str], wanted: Sequence[str] | None) -> Rows | None:
    """Columns of the features that are asked for, each once; None when none are.

    Raises:
        InvalidInputError: there is no such feature.
    """
    if wanted is None:
        return None
    unknown = [name for name in wanted if name not in features]
    if unknown or not wanted:
        raise InvalidInputError(
            f"there is no feature {unknown[0]!r}." if unknown else "no feature is named.",
            field="--features",
            hint=f"There are: {', '.join(features)}.",
        )
    return np.array([features.index(name) for name in dict.fromkeys(wanted)])


def top_features(shares: NDArray[np.float32], features: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The features that contributed most to a span, largest first, with their mean share of the error.

    Args:
        shares: [N, F] of its flagged points.
        features: [F] names.

    >>> top_features(np.array([[0.5, 0.5, 0], [0.7, 0.26, 0.04]], np.float32), "abc")
    (('a', 0.6), ('b', 0.38))
    """
    columns, found = top_shares(shares.mean(axis=0, dtype=np.float64)[None])
    named = zip(columns[0].tolist(), found[0].tolist(), strict=True)
    return tuple((features[column], round(share, 6)) for column, share in named if share >= LEAST_SHARE)


def _title(name: str, versions: NDArray[np.int64], spans: int) -> str:
    numbers = ", ".join(map(str, np.unique(versions).tolist()))
    return f"{name} · version{'s' * (',' in numbers)} {numbers} · {counted(spans, 'flagged span')}"


def _subtitle(drawn: _Drawn) -> str:
    texts, threshold = drawn.table.stamp_text, drawn.scores.threshold
    return (
        f"{np.count_nonzero(drawn.flagged):,} of {counted(len(drawn.rows), 'point')} at or above the threshold "
        f"{threshold:.4g} (one normal point in {10 ** float(threshold):,.0f}) · "
        f"{texts[drawn.rows[0]]} to {texts[drawn.rows[-1]]}"
    )


def _notes(drawn: _Drawn, panels: Sequence[Panel], unnamed: int) -> list[str]:
    shown = {panel.name for panel in panels}
    left = [name for name in drawn.table.features if name not in shown]
    inside, every = len(drawn.rows), len(drawn.table)
    refused = {it: np.count_nonzero(drawn.status == it) for it in (Status.DUPLICATE, Status.LATE, Status.INVALID)}
    said = []
    if unnamed:
        said.append(f"{counted(unnamed, 'more span')} with lower peaks not listed.")
    if left:
        more = f" and {len(left) - LISTED} more" if len(left) > LISTED else ""
        said.append(f"{counted(len(left), 'feature')} not drawn (--features): {', '.join(left[:LISTED])}{more}.")
    if inside < every:
        said.append(f"{inside:,} of {every:,} rows of the file are drawn; all were scored.")
    if any(refused.values()):
        counts = (f"{n:,} {status.name.lower()}" for status, n in refused.items() if n)
        said.append(f"Rows that were not taken: {', '.join(counts)}.")
    if any(panel.line.thinned for panel in panels):
        said.append(
            f"Lines are thinned: at each of {PLACES:,} places the first, last, lowest and highest row are drawn; "
            "no spike is lost."
        )
    return said


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "span"), counted(1200, "span")
    ('1 span', '1,200 spans')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"
