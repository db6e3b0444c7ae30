"""Draws a frontier: error and agreement against the time of a step. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from server.commands.tables import printable
from server.drawing import BLUE, DOTS, FORMATS, GREY, INK, STYLE, VERMILLION
from server.quantities import format_duration, format_size

WIDTH, HEIGHT = 11.0, 4.4  # inches
SMALLEST, LARGEST = 20.0, 220.0  # areas of dots: the parent's bytes are the largest


def draw(shown: Mapping[str, Any], out: Path, kind: str) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        shown: As `prunewatch frontier --json` prints it.
        out: The file.
        kind: One of `server.drawing.FORMATS`.
    """
    partial = out.with_name(f".{out.name}.partial")
    with mpl.rc_context(STYLE):
        _figure(shown).savefig(partial, format=kind, dpi=DOTS, metadata=FORMATS[kind])
    partial.replace(out)


def _figure(shown: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{printable(shown['name'])} on {printable(shown['device_class'])}: children of version "
        f"{shown['parent']['version']}, p50 of a step of {shown['batch']} points",
        weight="bold",
    )
    error, agreement = figure.subplots(1, 2)
    _against_time(error, shown, "error_ratio", "error, times the parent's")
    _against_time(agreement, shown, "agreement", "alarms shared with the parent")
    error.legend(frameon=False, fontsize=8, loc="best", markerscale=0.5)
    return figure


def _against_time(axes: Axes, shown: Mapping[str, Any], name: str, title: str) -> None:
    """One measure of all children; the larger a dot, the more bytes."""
    parent, points = shown["parent"], shown["points"]
    front = sorted((it for it in points if it["on_front"]), key=_time)
    others = [it for it in points if not it["on_front"]]
    axes.plot([_time(it) for it in front], [it[name] for it in front], color=BLUE, linewidth=1.1, zorder=2)
    for some, colour, label in ((front, BLUE, "on the front"), (others, GREY, "beaten by another one")):
        if some:
            sizes = _areas(some, parent["bytes"])
            axes.scatter(
                list(map(_time, some)), [it[name] for it in some], s=sizes, color=colour, label=label, zorder=3
            )
    axes.scatter([_time(parent)], [1.0], s=LARGEST, color=VERMILLION, marker="D", label="parent", zorder=3)
    for it, value in [(parent, 1.0), *((it, it[name]) for it in points)]:
        axes.annotate(
            format_size(it["bytes"]),
            (_time(it), value),
            xytext=(2, 8),
            textcoords="offset points",
            fontsize=7,
            color=INK,
            rotation=30,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_duration(seconds) if seconds > 0 else ""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.15)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("p50 of a step", color=GREY, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E2E2E2", linewidth=0.6)
    axes.set_axisbelow(True)


def _time(made: Mapping[str, Any]) -> float:
    return float(made["p50_seconds"])


def _areas(points: Sequence[Mapping[str, Any]], largest: int) -> list[float]:
    return [max(SMALLEST, LARGEST * it["bytes"] / largest) for it in points]
