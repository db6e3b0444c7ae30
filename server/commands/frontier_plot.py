"""Draws a frontier: error and agreement against the time of a step. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from server.commands.tables import printable
from server.figures import BLUE, DOTS, GREY, INK, VERMILLION, save
from server.quantities import format_duration, format_size

WIDTH, HEIGHT = 11.0, 4.4  # inches
SMALLEST, LARGEST = 20.0, 220.0  # areas of dots: the parent's bytes are the largest
SPAN = 0.1  # of the values that an axis shows at least: runs differ by hundredths
DOT = 13.0  # pixels around a point that stay free of words
GAP = 10.0  # pixels between words
RINGS = 40  # lines away from a point at most


def draw(shown: Mapping[str, Any], out: Path, kind: str) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        shown: As `prunewatch frontier --json` prints it.
        out: The file.
        kind: One of `server.figures.FORMATS`.
    """
    save(lambda: figure_of(shown), out, kind)


def figure_of(shown: Mapping[str, Any]) -> Figure:
    """The picture: a panel for the error and one for the alarms.

    Args:
        shown: As `prunewatch frontier --json` prints it.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{printable(shown['name'])} on {printable(shown['device_class'])}: children of version "
        f"{shown['parent']['version']}, p50 of a step of {shown['batch']} points",
        weight="bold",
    )
    error, agreement = figure.subplots(1, 2)
    _against_time(error, shown, "error_ratio", "error, times the parent's", better=-1)
    _against_time(agreement, shown, "agreement", "alarms shared with the parent", better=1)
    figure.legend(
        *error.get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=4,
        markerscale=0.5,
    )
    return figure


def _against_time(axes: Axes, shown: Mapping[str, Any], name: str, title: str, better: int) -> None:
    """One measure of all children, numbered from wide to narrow; the larger a dot, the more bytes.

    Args:
        axes: To draw on.
        shown: The frontier.
        name: The measure.
        title: The same for people.
        better: 1 where more is better, -1 where less is.
    """
    parent, points = shown["parent"], shown["points"]
    line = unbeaten([(_time(it), better * it[name]) for it in points])
    axes.plot(
        [_time(points[i]) for i in line],
        [points[i][name] for i in line],
        color=BLUE, linewidth=1.1, zorder=2, label="best for its time",
    )  # fmt: skip
    for on_front, colour, label in ((True, BLUE, "on the front"), (False, GREY, "beaten by another one")):
        some = [it for it in points if it["on_front"] is on_front]
        if some:
            axes.scatter(
                [_time(it) for it in some],
                [it[name] for it in some],
                s=_areas(some, parent["bytes"]), color=colour, label=label, zorder=3,
            )  # fmt: skip
    axes.scatter([_time(parent)], [1.0], s=LARGEST, color=VERMILLION, marker="D", label="parent", zorder=3)
    _scaled(axes, [1.0, *(it[name] for it in points)])
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("p50 of a step", color=GREY, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E2E2E2", linewidth=0.6)
    axes.set_axisbelow(True)
    labels = [(_time(parent), 1.0, format_size(parent["bytes"]))]
    labels += [(_time(it), it[name], f"{i}: {format_size(it['bytes'])}") for i, it in enumerate(points, 1)]
    _labelled(axes, labels)


def unbeaten(found: Sequence[tuple[float, float]]) -> list[int]:
    """Which of some (seconds, value) have none beside them that is as fast and as good, and better in one; by time.

    >>> unbeaten([(3.0, 0.9), (2.0, 0.9), (1.0, 0.5), (4.0, 1.0)])
    [2, 1, 3]
    """
    line: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][1])):
        if not line or found[i][1] > found[line[-1]][1]:
            line.append(i)
    return line


def _scaled(axes: Axes, values: Sequence[float]) -> None:
    """Times by logarithm; values over a span that is wide enough for noise to look like noise."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_duration(seconds) if seconds > 0 else ""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    middle, half = (max(values) + min(values)) / 2, max(SPAN, 1.4 * (max(values) - min(values))) / 2
    axes.set_ylim(middle - half, middle + half)


def _labelled(axes: Axes, labels: Sequence[tuple[float, float, str]]) -> None:
    """Writes beside every point, where nothing is written yet; a thin line leads to what had to go further away."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    dots = [axes.transData.transform((at, value)) for at, value, _ in labels]
    taken = [Bbox.from_bounds(x - DOT, y - DOT, 2 * DOT, 2 * DOT) for x, y in dots]
    for (at, value, text), (x, y) in zip(labels, dots, strict=True):
        written = axes.annotate(
            text, (at, value), (0, 0), textcoords="offset pixels", fontsize=7, color=INK, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}, zorder=4,
        )  # fmt: skip
        size = written.get_window_extent()
        box, offset = _free(size.width + GAP, size.height, (x, y), taken)
        written.set_position(offset)
        written.set_in_layout(False)  # the panels are laid out: what is free stays free
        taken.append(box)


def _free(
    width: float, height: float, at: tuple[float, float], taken: Sequence[Bbox]
) -> tuple[Bbox, tuple[float, float]]:
    """The box nearest to a point, above or below, that meets no other; and where that is from the point, in pixels."""
    for step in range(1, RINGS):
        for side, up in ((0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x, y = side * (width / 2 + DOT), up * (DOT + height * (step - 0.4))
            box = Bbox.from_bounds(at[0] + x - width / 2, at[1] + y - height / 2, width, height)
            if not any(box.overlaps(other) for other in taken):
                return box, (x, y)
    return box, (x, y)


def _time(made: Mapping[str, Any]) -> float:
    return float(made["p50_seconds"])


def _areas(points: Sequence[Mapping[str, Any]], largest: int) -> list[float]:
    return [max(SMALLEST, LARGEST * it["bytes"] / largest) for it in points]
