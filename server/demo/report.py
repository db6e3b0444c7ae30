"""What the demo prints in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from server.commands.tables import console, duration_text, error_text, units_text
from server.demo.sources import Event, Source
from server.demo.stream import COPIES, Watched
from server.quantities import format_size

JOIN_ROWS = 6  # alarms closer than this are one
SLACK_ROWS = 3  # an alarm so close to a known anomaly found it


def print_report(source: Source, watched: Sequence[Watched], seconds: float, admin: str) -> None:
    """Anomalies found, sizes and times before and after, errors, and where the metrics are."""
    out = console()
    points = sum(it.points for it in watched)
    out.rule("what was found")
    out.print(
        f"{source.title}: {len(watched[0].scores):,} rows x {COPIES} series x {len(watched)} detectors = "
        f"{points:,} points in {seconds:.0f} s"
    )
    out.print(_events(source, watched))
    for it in watched:
        others = [alarm for alarm in alarms(it) if not any(_meets(alarm, event) for event in source.events)]
        listed = ", ".join(f"{source.when(first)} ({first}-{last})" for first, last in others[:8])
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        out.print(f"{it.name}: {len(others)} other alarms{f': {listed}{more}' if others else ''}", soft_wrap=True)
    out.rule("what pruning changed")
    out.print(_changes(watched))
    for it in watched:
        reason = f": {it.result['reason']}" if it.result.get("reason") else ""
        out.print(f"{it.name}: cycle {it.result['outcome']}{reason}", soft_wrap=True)
    out.rule()
    swaps, errors = sum(it.swaps for it in watched), sum(it.errors for it in watched)
    out.print(f"swaps under the running stream: {swaps}    errors: {errors}    metrics: http://{admin}/metrics")


def alarms(it: Watched) -> list[tuple[int, int]]:
    """Runs of rows at or above the threshold, first and last row of each."""
    found: list[tuple[int, int]] = []
    for row in np.flatnonzero(np.array(it.scores, np.float32) >= np.float32(it.threshold)).tolist():
        if found and row - found[-1][1] < JOIN_ROWS:
            found[-1] = (found[-1][0], row)
        else:
            found.append((row, row))
    return found


def _meets(alarm: tuple[int, int], event: Event) -> bool:
    return alarm[0] <= event.last + SLACK_ROWS and alarm[1] >= event.first - SLACK_ROWS


def _events(source: Source, watched: Sequence[Watched]) -> Table:
    table = Table("known anomaly", "rows", "from", *(it.name for it in watched))
    for event in source.events:
        cells = []
        for it in watched:
            rows = slice(max(event.first - SLACK_ROWS, 0), event.last + SLACK_ROWS + 1)
            scores = np.array(it.scores[rows], np.float32)
            flagged = scores >= np.float32(it.threshold)
            if not flagged.any():
                cells.append("missed")
                continue
            first = int(np.argmax(flagged))
            row = rows.start + first
            cells.append(f"found at row {row}, score {np.nanmax(scores):.1f} (version {it.versions[row]})")
        table.add_row(event.what, f"{event.first}-{event.last}", source.when(event.first), *cells)
    return table


def _changes(watched: Sequence[Watched]) -> Table:
    table = Table(
        "detector", "", "units", "parameters", "bytes", "p50 step", "p99 step", "error", "alarms per 1,000 rows"
    )
    for it in watched:
        after = "after" if it.result["outcome"] == "adopted" else "rejected"
        sides = [("before", it.result.get("parent")), (after, it.result.get("child"))]
        for label, made in sides:
            if made is None:
                continue
            served = {"before": it.versions[0], "after": it.versions[-1]}.get(label)
            scores = np.array([s for s, v in zip(it.scores, it.versions, strict=True) if v == served], np.float32)
            scored = scores[np.isfinite(scores)]
            rate = 1000 * float((scored >= np.float32(it.threshold)).mean()) if len(scored) else float("nan")
            table.add_row(
                it.name if label == "before" else "",
                label,
                units_text(made["units"]),
                f"{made['parameters']:,}",
                format_size(made["bytes"]),
                duration_text(made["p50_seconds"]),
                duration_text(made["p99_seconds"]),
                error_text(made["error"]),
                f"{rate:.0f}" if len(scored) else "-",
            )
        if all(made for _, made in sides):
            parent, child = it.result["parent"], it.result["child"]
            table.add_row(
                "",
                "ratio",
                "",
                f"{parent['parameters'] / child['parameters']:.1f}x fewer",
                f"{parent['bytes'] / child['bytes']:.1f}x smaller",
                f"{parent['p50_seconds'] / child['p50_seconds']:.1f}x faster (asked: {it.speedup:g}x)",
                f"{parent['p99_seconds'] / child['p99_seconds']:.1f}x faster",
                f"{child['error'] / parent['error']:.2f}x",
                "",
                end_section=True,
            )
    return table
