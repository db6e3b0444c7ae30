"""Draws a picture of scored points. Needs matplotlib, which the base install does not have.

Everything stands in one column over one axis of time: the scores, the labels, a panel for each feature, and below them
the list of the numbered spans.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from server.annotations import percent, spread, value_texts
from server.commands.tables import printable
from server.figures import BLUE, GREY, INK, ORANGE, PALE, PURPLE, VERMILLION, save
from server.lines import Line, Places
from server.picture import Extents, Panel, Picture, Span
from server.time_axis import Axis

WIDTH, LEFT, RIGHT, EDGE = 12.0, 1.75, 0.75, 0.25  # inches
TITLE, LEGEND, NUMBERS, SCORE, LABELS, TIME, ROW, NOTE, BETWEEN = 0.72, 0.28, 0.28, 1.7, 0.16, 0.38, 0.2, 0.18, 0.1
PANEL_HEIGHTS = ((3, 1.3), (6, 1.0), (16, 0.7), (4096, 0.45))  # with up to so many panels, inches each
ACROSS = WIDTH - LEFT - RIGHT
NUMBER_WIDTH, LINE_HEIGHT = 0.22, 0.16
NAME_LETTERS, NOTE_LETTERS, FEATURES_LETTERS = 19, 175, 82  # that fit

NANOSECONDS_A_DAY = 86_400e9  # a day is one on matplotlib's axes of dates, which begin at the epoch
LIST = (0.0, 0.3, 2.55, 5.2, 5.75, 6.0)
"""Columns of the list of spans, inches from its left edge, or from there to the right edge of a number."""
NUMBER_COLUMNS = {3, 4}
STEPS = (1, 2, 2.5, 5, 10)  # of ticks


def draw(picture: Picture, out: Path, kind: str) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        picture: What to draw.
        out: The file.
        kind: One of `FORMATS`.
    """
    save(lambda: _Sheet(picture).figure, out, kind)


def height_inches(picture: Picture) -> float:
    """Of the whole picture; it is `WIDTH` wide."""
    panels = len(picture.panels) * (_panel_height(picture) + BETWEEN)
    labels = 0.0 if picture.labelled is None else LABELS + BETWEEN
    spans = (len(picture.named) + 2) * ROW if picture.named else 0.0
    notes = (len(_note_lines(picture)) + 1) * NOTE
    return TITLE + LEGEND + NUMBERS + SCORE + BETWEEN + labels + panels + TIME + spans + notes


class _Sheet:
    """A figure, filled from its top down; `_y` is how far, in inches.

    Args:
        picture: What to draw.
    """

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._height = height_inches(picture)
        self._y = 0.0
        self.figure = Figure(figsize=(WIDTH, self._height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self._title()
        self._score()
        if picture.labelled is not None:
            self._labels(picture.labelled)
        for panel in picture.panels:
            self._panel(panel)
        self._time()
        self._list()
        self._notes()

    def _title(self) -> None:
        self._write(EDGE, 0.36, self._picture.title, size=14, weight="bold")
        self._write(EDGE, 0.62, self._picture.subtitle, color=GREY)
        self._y += TITLE
        self.figure.legend(
            handles=_legend(self._picture),
            loc="center left",
            bbox_to_anchor=(EDGE / WIDTH, 1 - (self._y + LEGEND / 2) / self._height),
            ncols=8,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.6,
            columnspacing=1.8,
        )
        self._y += LEGEND

    def _score(self) -> None:
        picture = self._picture
        self._y += NUMBERS
        axes = self._axes(SCORE, "score", "-log10 of how rare such an error is among normal points")
        _fill(axes, self._across(picture.warming), facecolor="none", edgecolor="#B5B5B5", hatch="////", linewidth=0.0)
        _fill(axes, self._across(picture.unscored), facecolor=PALE, edgecolor=PALE, linewidth=0.8)
        self._line(axes, picture.score, INK)
        axes.axhline(picture.threshold, color=VERMILLION, linewidth=1.1, linestyle=(0, (5, 3)))
        axes.set_ylim(0, 1.08 * float(np.nanmax([*picture.score.values, picture.threshold])))
        _value_ticks(axes, 4)
        self._numbers(axes)

    def _numbers(self, axes: Axes) -> None:
        """Numbers of the spans above the scores, beside each other where spans are close."""
        first, last = axes.get_xlim()
        extents = self._at(np.array([span.extent for span in self._picture.named]).reshape(-1, 2))
        middles = ((extents.mean(axis=1) - first) / (last - first)).tolist()
        bottom, top = 1.01, 1 + 0.09 / SCORE
        for i, (there, here) in enumerate(zip(middles, spread(middles, NUMBER_WIDTH / ACROSS), strict=True), start=1):
            axes.plot([there, here], [bottom, top], color=GREY, linewidth=0.7, transform=axes.transAxes, clip_on=False)
            axes.text(here, top + 0.01, str(i), ha="center", va="bottom", weight="bold", transform=axes.transAxes)

    def _labels(self, labelled: Extents) -> None:
        axes = self._axes(LABELS, "labelled")
        _fill(axes, self._across(labelled), facecolor=PURPLE, edgecolor=PURPLE, linewidth=0.8, zorder=2)
        axes.set_ylim(0, 1)
        axes.set_yticks([])

    def _panel(self, panel: Panel) -> None:
        share = "" if panel.share is None or self._picture.univariate else f"{percent(panel.share)} of flagged error"
        height = _panel_height(self._picture)
        axes = self._axes(height, panel.name, share)
        leads = () if self._picture.univariate else panel.leads
        _fill(axes, self._of_spans(leads), facecolor=ORANGE, edgecolor=ORANGE, alpha=0.35, linewidth=0.8)
        self._line(axes, panel.line, BLUE)
        _values(axes, panel.line, 3 if height >= 1 else 2)

    def _time(self) -> None:
        """Labels of the axis of time, below the lowest panel."""
        self.figure.axes[-1].tick_params(axis="x", labelbottom=True)
        words = {"dates": "time, UTC", "numbers": "time", "rows": "row"}[self._picture.axis.kind]
        self._write(EDGE, 0.18 - BETWEEN, words, color=GREY, size=8)
        self._y += TIME

    def _list(self) -> None:
        """The numbered spans."""
        if not self._picture.named:
            return
        features = not self._picture.univariate
        heads = ("", "flagged from", "to", "points", "peak", "contributed most to the error" if features else "")
        self._row(heads, color=GREY)
        for i, span in enumerate(self._picture.named, start=1):
            told = ", ".join(f"{name} {percent(share)}" for name, share in span.features) if features else ""
            told = textwrap.shorten(told, FEATURES_LETTERS, placeholder=" …")
            self._row(
                (
                    str(i),
                    span.start,
                    span.end,
                    f"{span.points:,}",
                    f"{span.peak:.1f}" if span.peak < 1e4 else f"{span.peak:.2g}",
                    told,
                )
            )
        self._y += ROW

    def _row(self, cells: Sequence[str], **look: Any) -> None:
        self._y += ROW
        for column, cell in enumerate(cells):
            number = column in NUMBER_COLUMNS
            weight = "bold" if column == 0 else "normal"
            place = EDGE + LIST[column]
            self._write(place, 0, cell, ha="right" if number else "left", weight=weight, **look)

    def _notes(self) -> None:
        for text in _note_lines(self._picture):
            self._y += NOTE
            self._write(EDGE, 0, text, color=GREY, size=8)

    def _axes(self, height: float, name: str, below: str = "") -> Axes:
        """The next panel: named at its left, values at its right, flagged spans shaded."""
        lines = textwrap.wrap(printable(name), NAME_LETTERS, max_lines=2 if height > 0.3 else 1, placeholder="…")
        self._write(EDGE, 0.0, "\n".join(lines), va="top")
        if below and height > 0.6:
            explained = "\n".join(textwrap.wrap(below, NAME_LETTERS + 4))
            self._write(EDGE, 0.04 + LINE_HEIGHT * len(lines), explained, va="top", color=GREY, size=7.5)
        self._y += height
        bottom = 1 - self._y / self._height
        axes = self.figure.add_axes((LEFT / WIDTH, bottom, ACROSS / WIDTH, height / self._height))
        self._y += BETWEEN
        axes.set_xlim(*self._at(np.array(self._picture.axis.limits)))
        _time_ticks(axes, self._picture.axis)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(length=0, labelbottom=False)
        axes.yaxis.tick_right()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        _fill(axes, self._of_spans(self._picture.spans), facecolor=ORANGE, edgecolor=ORANGE, alpha=0.25, linewidth=0.8)
        return axes

    def _line(self, axes: Axes, line: Line, color: str) -> None:
        if not len(line.at):
            axes.text(0.5, 0.5, "nothing to show", color=GREY, ha="center", va="center", transform=axes.transAxes)
        at = self._at(line.at)
        axes.plot(at, line.values, color=color, linewidth=0.9, solid_joinstyle="round")
        axes.plot(at[line.alone], line.values[line.alone], color=color, linestyle="none", marker=".", markersize=2.5)

    def _of_spans(self, spans: Sequence[Span]) -> list[tuple[float, float]]:
        return self._across(np.array([span.extent for span in spans], np.float64).reshape(-1, 2))

    def _across(self, extents: Extents) -> list[tuple[float, float]]:
        """From where, and how wide."""
        at = self._at(extents)
        return list(zip(at[:, 0].tolist(), (at[:, 1] - at[:, 0]).tolist(), strict=True))

    def _at(self, places: Places) -> Places:
        """Places as matplotlib's axis has them."""
        axis = self._picture.axis
        return (axis.origin + places) / NANOSECONDS_A_DAY if axis.kind == "dates" else places

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        """Text at inches from the left and below `_y`."""
        shown = "\n".join(printable(each) for each in text.split("\n"))
        self.figure.text(x / WIDTH, 1 - (self._y + y) / self._height, shown, **{"va": "baseline", **look})


def _legend(picture: Picture) -> list[Line2D | Patch]:
    """What is in the picture, and no more."""
    threshold = f"threshold {picture.threshold:.4g}"
    found: list[Line2D | Patch | None] = [
        Line2D([], [], color=INK, linewidth=0.9, label="score"),
        Line2D([], [], color=VERMILLION, linewidth=1.1, linestyle=(0, (5, 3)), label=threshold),
        Patch(facecolor=ORANGE, alpha=0.3, label="flagged") if picture.spans else None,
        Patch(facecolor=ORANGE, alpha=0.6, label="flagged, feature among its top three")
        if picture.spans and not picture.univariate
        else None,
        Patch(facecolor="none", edgecolor="#B5B5B5", hatch="////", linewidth=0.0, label="warming up")
        if len(picture.warming)
        else None,
        Patch(facecolor=PALE, label="no score") if len(picture.unscored) else None,
        Patch(facecolor=PURPLE, label="labelled") if picture.labelled is not None else None,
    ]
    return [it for it in found if it is not None]


def _panel_height(picture: Picture) -> float:
    return next(height for most, height in PANEL_HEIGHTS if len(picture.panels) <= most)


def _note_lines(picture: Picture) -> list[str]:
    return [line for note in picture.notes for line in textwrap.wrap(note, NOTE_LETTERS)]


def _fill(axes: Axes, extents: Sequence[tuple[float, float]], **look: Any) -> None:
    """Shades the whole height; what is narrower than a pixel is seen by its edge."""
    if extents:
        axes.broken_barh(extents, (0, 1), transform=axes.get_xaxis_transform(), **{"zorder": 0.5, **look})


def _time_ticks(axes: Axes, axis: Axis) -> None:
    if axis.kind == "dates":
        locator = AutoDateLocator(minticks=4, maxticks=14)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    else:
        digits = len(str(axis.origin + round(axis.limits[1])))
        axes.xaxis.set_major_locator(MaxNLocator(9 if digits < 12 else 5, integer=True, steps=STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _integer(place, axis.origin)))


def _integer(place: float, origin: int) -> str:
    """A stamp or row number; nothing between two of them, in a window of very few."""
    return str(round(place) + origin) if place == round(place) else ""


def _values(axes: Axes, line: Line, most: int) -> None:
    """All values with a little room, at most so many ticks; a value that never changes is in the middle."""
    values = line.values[np.isfinite(line.values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    room = 0.08 * (high - low) or abs(low) or 1.0
    axes.set_ylim(low - room, high + room)
    if low == high:
        axes.set_yticks([low] * len(values[:1]), value_texts([low])[: len(values)])
    else:
        _value_ticks(axes, most)


def _value_ticks(axes: Axes, most: int) -> None:
    low, high = axes.get_ylim()
    ticks = [tick for tick in map(float, MaxNLocator(most, steps=STEPS).tick_values(low, high)) if low <= tick <= high]
    axes.set_yticks(ticks, value_texts(ticks))
