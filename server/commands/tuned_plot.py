"""Draws a search: how it went, what a step costs, and what each setting did. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from server.figures import BLUE, GREY, INK, ORANGE, VERMILLION, save
from server.quantities import format_duration

if TYPE_CHECKING:
    from pruning.tuned import Tried, Tuned

WIDTH, ROW = 11.0, 2.9  # inches
COLUMNS = 4  # slices beside each other, at the most
FOUND = "average precision"


def draw(tuned: Tuned, out: Path, kind: str) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        tuned: At least one trial.
        out: The file.
        kind: One of `server.figures.FORMATS`.
    """
    save(lambda: _figure(tuned), out, kind)


def _figure(tuned: Tuned) -> Figure:
    settings = _searched(tuned)
    rows = -(-len(settings) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.5 + ROW * (1 + rows)), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{tuned.network}: {len(tuned.trials)} trials, {FOUND} on {tuned.events} injected anomalies", weight="bold"
    )
    grid = figure.add_gridspec(1 + rows, 1)
    above = grid[0].subgridspec(1, 2)
    _history(figure.add_subplot(above[0]), tuned)
    _latency(figure.add_subplot(above[1]), tuned)
    if settings:
        columns = -(-len(settings) // rows)
        below = grid[1:].subgridspec(rows, columns)
        for i, (name, values) in enumerate(settings.items()):
            _slice(figure.add_subplot(below[divmod(i, columns)]), tuned, name, values)
    return figure


def _history(axes: Axes, tuned: Tuned) -> None:
    """Trials in their order, and the best so far."""
    done = _done(tuned)
    numbers, found = [trial.number for trial in done], [trial.average_precision or 0.0 for trial in done]
    axes.step(numbers, np.maximum.accumulate(found) if found else [], where="post", color=INK, label="best so far")
    axes.scatter(numbers, found, color=BLUE, s=22, zorder=3, label="trial")
    low = axes.get_ylim()[0]
    for state, colour, label in (("stopped", ORANGE, "stopped"), ("over_budget", VERMILLION, "over budget")):
        at = [trial.number for trial in tuned.trials if trial.state == state]
        if at:
            axes.scatter(at, [low] * len(at), color=colour, marker="x", s=22, label=label, clip_on=False, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _named(axes, "How it went", "trial", FOUND)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _latency(axes: Axes, tuned: Tuned) -> None:
    """What a step costs against what is found; budgets as lines."""
    for trial in _done(tuned):
        best = tuned.best is not None and trial.number == tuned.best.number
        axes.scatter(
            trial.p50_seconds or 0.0,
            trial.average_precision or 0.0,
            color=VERMILLION if best else BLUE,
            s=44 if best else 22,
            zorder=4 if best else 3,
        )
        if best or trial is tuned.start:
            axes.annotate(
                f"{'best' if best else 'start'} ({trial.number})",
                (trial.p50_seconds or 0.0, trial.average_precision or 0.0),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
            )
    over = [trial.p50_seconds for trial in tuned.trials if trial.state == "over_budget" and trial.p50_seconds]
    if over:
        axes.scatter(
            over, [axes.get_ylim()[0]] * len(over), color=VERMILLION, marker="x", s=22, clip_on=False, zorder=3
        )
    if tuned.budget is not None and tuned.budget.p50_seconds is not None:
        axes.axvline(tuned.budget.p50_seconds, color=VERMILLION, linewidth=1.1, linestyle=(0, (5, 3)))
        axes.annotate(
            "budget", (tuned.budget.p50_seconds, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", color=VERMILLION, fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_as_duration))
    axes.xaxis.set_minor_locator(NullLocator())
    _named(axes, f"Quality against time (p50 of a step of {tuned.batch} points)", "", FOUND)


def _slice(axes: Axes, tuned: Tuned, name: str, values: Sequence[float]) -> None:
    """One setting against what was found; the darker, the later."""
    done = _done(tuned)
    found = [trial.average_precision or 0.0 for trial in done]
    axes.scatter(values, found, c=[trial.number for trial in done], cmap="Blues", vmin=-len(done), s=22, zorder=3)
    if name == "learning_rate":
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda _value, _at: ""))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:g}"))
    elif all(value == round(value) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    share = tuned.importance.get(name)
    _named(axes, name if share is None else f"{name}  ({share:.0%} of the differences)", "", "")


def _searched(tuned: Tuned) -> dict[str, list[float]]:
    """Settings that differ between finished trials, with their values."""
    done = _done(tuned)
    rows = [
        {
            **{name: value for name, value in trial.settings.options.items() if isinstance(value, int | float)},
            **({} if trial.settings.learning_rate is None else {"learning_rate": trial.settings.learning_rate}),
            "half_life": trial.settings.half_life,
        }
        for trial in done
    ]
    names = list(rows[0]) if rows else []
    columns = {name: [float(row[name]) for row in rows] for name in names}
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def _done(tuned: Tuned) -> list[Tried]:
    return [trial for trial in tuned.trials if trial.average_precision is not None]


def _as_duration(seconds: float, _at: int) -> str:
    return format_duration(seconds) if seconds > 0 else ""


def _named(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(across, color=GREY, fontsize=8)
    axes.set_ylabel(up, color=GREY, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E2E2E2", linewidth=0.6)
    axes.set_axisbelow(True)
