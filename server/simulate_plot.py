"""Draws a replay: what was flagged, how good the scores were, size and latency, and what began when.

Needs matplotlib, which the base install does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from server.commands.tables import printable
from server.drawing import NANOSECONDS_A_DAY
from server.figures import BLUE, GREY, INK, ORANGE, PALE, PURPLE, VERMILLION, save
from server.quantities import format_duration, format_size
from server.simulate_outcome import Ran, Replay, Size, runs
from server.simulate_quality import Quality, Segment, segments, served

WIDTH, PANEL, EXTRA = 11.0, 1.55, 1.2  # inches
ENDS = {"adopted": BLUE, "rejected": GREY, "failed": VERMILLION}
"""Colours of cycles by outcome."""
WENT_BACK = ORANGE
MOST_VERSIONS = 40
"""Beside each other."""


def draw(replay: Replay, out: Path, kind: str, *, dates: bool) -> None:
    """Writes the picture; the file appears whole or not at all.

    Args:
        replay: What to draw.
        out: The file.
        kind: One of `server.figures.FORMATS`.
        dates: Stamps are nanoseconds since the epoch; else the axis shows rows.
    """
    save(lambda: _Sheet(replay, dates=dates).figure, out, kind)


class _Sheet:
    """Panels over one axis of time."""

    def __init__(self, replay: Replay, *, dates: bool) -> None:
        self._replay = replay
        self._dates = dates
        self._at = (
            replay.stamps / NANOSECONDS_A_DAY if dates else replay.first_row + np.arange(len(replay.stamps))
        ).astype(np.float64)
        self._segments = segments(replay)
        self.figure = Figure(figsize=(WIDTH, EXTRA + 4 * PANEL), facecolor="white", layout="constrained")
        FigureCanvasAgg(self.figure)
        self.figure.suptitle(
            f"{printable(replay.name)}: {len(replay.scores):,} rows replayed, {len(replay.cycles)} cycles",
            weight="bold",
        )
        alarms, good, size, time = self.figure.subplots(4, 1, sharex=True)
        self._alarms(alarms)
        self._goodness(good)
        self._stairs(size, lambda it: it.bytes, "size of the step graph, and the version that scores", format_size)
        self._versions(size)
        self._stairs(time, lambda it: it.p50_seconds, "p50 of a step", format_duration)
        for axes in (alarms, good, size, time):
            self._common(axes)
        self._time(time)
        self.figure.legend(handles=self._legend(), frameon=False, fontsize=8, loc="outside lower center", ncols=7)

    def _alarms(self, axes: Axes) -> None:
        """Normal rows that were flagged, stretch by stretch."""
        self._both(axes, lambda it: (it.loop, it.frozen), lambda it: it.flagged_per_thousand)
        named = "rows" if self._replay.labels is None else "normal rows"
        axes.set_title(f"flagged, of 1,000 {named}", loc="left", fontsize=9)
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
        for ran in self._replay.cycles:
            if ran.cycle.trigger != "schedule":
                axes.annotate(
                    ran.cycle.trigger.replace("_", " "), (self._place(ran.row), 1.0), (2, -8),
                    xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7, color=INK,
                )  # fmt: skip

    def _goodness(self, axes: Axes) -> None:
        """Average precision so far where there are labels; else the mean score."""
        if self._replay.labels is not None and self._replay.labels.any():
            self._both(axes, lambda it: (it.loop_so_far, it.frozen_so_far), lambda it: it.average_precision)
            axes.set_title("average precision so far", loc="left", fontsize=9)
            axes.set_ylim(0, 1.02)
        else:
            self._both(axes, lambda it: (it.loop, it.frozen), lambda it: it.mean_score)
            axes.set_title("mean score", loc="left", fontsize=9)

    def _both(
        self,
        axes: Axes,
        sides: Callable[[Segment], tuple[Quality, Quality]],
        measure: Callable[[Quality], float | None],
    ) -> None:
        """One measure with the loop and without, at the end of every stretch."""
        ends = [self._place(it.first_row + it.rows - 1) for it in self._segments]
        for side, (color, style) in enumerate(((BLUE, "-"), (GREY, (0, (4, 2))))):
            found = [measure(sides(it)[side]) for it in self._segments]
            values = [np.nan if it is None else it for it in found]
            axes.plot(
                ends, values, color=color, linestyle=style, linewidth=1.2, zorder=3 - side, drawstyle="steps-pre"
            )  # a stretch has one value

    def _stairs(self, axes: Axes, of: Callable[[Size], float | None], title: str, text: Callable[[float], str]) -> None:
        """What the version costs that scores."""
        replay = self._replay
        known = {it.version: of(it) for it in replay.sizes}
        costs = [known.get(version) for version in replay.versions.tolist()]
        values = np.array([np.nan if it is None else it for it in costs], np.float64)
        axes.plot(self._at, values, color=INK, linewidth=1.2, drawstyle="steps-post")
        axes.set_title(title, loc="left", fontsize=9)
        if np.isfinite(values).any():
            axes.set_ylim(0, 1.25 * float(np.nanmax(values)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value) if value > 0 else "0"))

    def _versions(self, axes: Axes) -> None:
        """Numbers of versions where they begin to score, as far apart as can be read."""
        free = -np.inf
        room = (self._at[-1] - self._at[0]) / MOST_VERSIONS
        for it in served(self._replay):
            if (at := self._place(it["row"])) >= free:
                axes.annotate(
                    str(it["version"]), (at, 1.0),
                    (2, -8), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7, color=INK,
                )  # fmt: skip
                free = at + room

    def _common(self, axes: Axes) -> None:
        """Labelled stretches and cycles, in every panel."""
        replay = self._replay
        if replay.labels is not None:
            spans = [(self._at[first], self._at[end - 1] - self._at[first]) for first, end in runs(replay.labels)]
            axes.broken_barh(
                spans, (0, 1), transform=axes.get_xaxis_transform(), facecolor=PURPLE, edgecolor=PURPLE,
                linewidth=0.5, alpha=0.25, zorder=0.5,
            )  # fmt: skip
        for ran in replay.cycles:
            axes.axvline(self._place(ran.row), color=color_of(ran), linewidth=0.9, zorder=1)
        axes.set_xlim(self._at[0], self._at[-1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)

    def _time(self, axes: Axes) -> None:
        if self._dates:
            locator = AutoDateLocator(minticks=4, maxticks=14)  # type: ignore[no-untyped-call]
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.set_xlabel("time, UTC" if self._dates else "row", color=GREY, fontsize=8)

    def _place(self, row: int) -> float:
        """Of a row of the file on the axis."""
        at: NDArray[np.float64] = self._at
        return float(at[min(max(row - self._replay.first_row, 0), len(at) - 1)])

    def _legend(self) -> Sequence[Line2D | Patch]:
        """What is in the picture, and no more."""
        replay = self._replay
        looks: list[tuple[str, dict[str, Any]]] = [
            ("with the loop", {"color": BLUE, "linewidth": 1.2}),
            ("first version, frozen", {"color": GREY, "linewidth": 1.2, "linestyle": (0, (4, 2))}),
        ]
        shown = {color_of(ran): words_of(ran) for ran in replay.cycles}
        looks += [(f"cycle: {words}", {"color": color, "linewidth": 0.9}) for color, words in shown.items()]
        handles: list[Line2D | Patch] = [Line2D([], [], label=label, **look) for label, look in looks]
        if replay.labels is not None and replay.labels.any():
            handles.append(Patch(facecolor=PURPLE, alpha=0.25, label="labelled"))
        return handles


def color_of(ran: Ran) -> str:
    """Of a cycle."""
    return WENT_BACK if ran.went_back else ENDS.get(ran.cycle.outcome, INK)


def words_of(ran: Ran) -> str:
    """How a cycle ended."""
    return "rolled back" if ran.went_back else ran.cycle.outcome
