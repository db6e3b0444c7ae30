"""Draws what a load has found. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from server.figures import BLUE, DOTS, GREY, PALE, VERMILLION, save
from server.quantities import format_duration

WIDTH, HEIGHT = 11.0, 4.4  # inches
BARS = 6  # of an octave: the histogram's own buckets are too narrow to see
KINDS = (
    ("latency_from_due", VERMILLION, "since it was due"),
    ("latency_from_sent", BLUE, "since it was sent"),
)


def draw(found: Mapping[str, Any], out: Path, kind: str) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        found: As `prunewatch bench --json` writes it, of one load or of a sweep.
        out: The file.
        kind: One of `server.figures.FORMATS`.
    """
    save(lambda: _sweep(found) if "sweep" in found else _run(found), out, kind)


def _run(found: Mapping[str, Any]) -> Figure:
    """A histogram of latencies, and the latency of each percentile."""
    run = found["run"]
    loop = "closed loop" if run["load"]["rate"] is None else f"{run['load']['rate']:,.0f} points/s asked for"
    figure, (histogram, percentiles) = _figure(
        f"{found['detector']}: {loop}, {run['answered_points_per_second']:,.0f} points/s answered"
    )
    for key, colour, label in KINDS if run["load"]["rate"] is not None else KINDS[1:]:
        buckets = run[key]["buckets"]
        if buckets:
            _histogram(histogram, buckets, colour, label)
            _percentiles(percentiles, buckets, colour, label)
    histogram.set_xscale("log")
    _time_axis(histogram.xaxis)
    histogram.set_yscale("log")
    histogram.yaxis.set_major_formatter(_plain())
    histogram.yaxis.set_minor_locator(NullLocator())
    _titled(histogram, "messages by latency", "latency")
    percentiles.set_xscale("log")
    percentiles.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 - 100 / x:.10g} %" if x >= 1 else ""))
    percentiles.xaxis.set_minor_locator(NullLocator())
    percentiles.set_yscale("log")
    _time_axis(percentiles.yaxis)
    _titled(percentiles, "latency that this share of messages kept", "share of messages")
    _legend(figure, histogram)
    return figure


def _sweep(found: Mapping[str, Any]) -> Figure:
    """Latency against what was offered, and what was answered of it."""
    sweep = found["sweep"]
    steps = [it for it in sweep["steps"] if it["latency_from_due"]["count"]]
    knee = sweep["knee_points_per_second"]
    told = "no rate was kept" if knee is None else f"kept up to {knee:,.0f} points/s"
    figure, (latency, answered) = _figure(
        f"{found['detector']}: p99 within {format_duration(sweep['limit_seconds'])}: {told}"
    )
    rates = [it["offered_points_per_second"] for it in steps]
    for name, colour in (("p50", BLUE), ("p99", VERMILLION)):
        latency.plot(
            rates, [it["latency_from_due"][name] for it in steps], color=colour, marker="o", markersize=4, label=name
        )
    latency.axhline(sweep["limit_seconds"], color=GREY, linewidth=1, linestyle="--", label="limit of p99")
    latency.set_yscale("log")
    _time_axis(latency.yaxis)
    _titled(latency, "latency since a message was due", "points/s offered")
    answered.plot(rates, rates, color=GREY, linewidth=1, linestyle="--", label="all that was offered")
    answered.plot(
        rates,
        [it["answered_points_per_second"] for it in steps],
        color=BLUE, marker="o", markersize=4, label="answered",
    )  # fmt: skip
    _titled(answered, "points/s answered with scores", "points/s offered")
    for axes in (latency, answered):
        axes.xaxis.set_major_formatter(_plain())
        if knee is not None:
            axes.axvline(knee, color=PALE, linewidth=6, zorder=0)
        axes.legend(frameon=False, fontsize=8)
    answered.yaxis.set_major_formatter(_plain())
    return figure


def _histogram(axes: Axes, buckets: Sequence[Sequence[float]], colour: str, label: str) -> None:
    edges, counts = np.array([it[0] for it in buckets]), np.array([it[1] for it in buckets])
    places = np.ceil(np.log2(edges) * BARS).astype(int)
    bars = np.bincount(places - places.min(), weights=counts)
    at = 2.0 ** ((np.arange(len(bars) + 1) + places.min() - 1) / BARS)
    axes.stairs(bars, at, color=colour, label=label, linewidth=1.2, fill=False, baseline=0.5)
    axes.stairs(bars, at, color=colour, alpha=0.15, fill=True, baseline=0.5)


def _percentiles(axes: Axes, buckets: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Share of messages against latency; the last nines are as wide as the first."""
    edges, counts = np.array([it[0] for it in buckets]), np.cumsum([it[1] for it in buckets])
    total = int(counts[-1])
    beyond = np.maximum(total - np.r_[0, counts[:-1]], 1) / total  # share that is slower than all buckets before
    axes.plot(1 / beyond, edges, color=colour, drawstyle="steps-post", linewidth=1.4, label=label)


def _figure(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, weight="bold")
    return figure, figure.subplots(1, 2)


def _time_axis(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: format_duration(seconds) if seconds > 0 else ""))


def _plain() -> FuncFormatter:
    return FuncFormatter(lambda number, _: f"{number:,.0f}")


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(below, color=GREY, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
