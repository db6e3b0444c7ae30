"""How good the scores of a replay are, with the loop and without, in all and stretch by stretch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.runtime import FloatArray
from server.quantities import format_duration, format_size
from server.simulate_outcome import Ran, Replay, runs

SEGMENTS = 40
"""Stretches that a replay is cut into."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Quality:
    """Of some scores.

    Attributes:
        rows: That were scored.
        flagged: Of them.
        mean_score: Of those that have a score; None where none has.
        normal_rows: Not labelled as anomalous; all of them where there are no labels.
        normal_flagged: Of them.
        false_alarms: Runs of flagged rows that begin at a normal row; None without labels.
        events: Runs of labelled rows; None without labels.
        events_found: Of them, with a flagged row; None without labels.
        average_precision: Of the scores against the labels; None where no row is labelled.
    """

    rows: int
    flagged: int
    mean_score: float | None
    normal_rows: int
    normal_flagged: int
    false_alarms: int | None
    events: int | None
    events_found: int | None
    average_precision: float | None

    @property
    def flagged_per_thousand(self) -> float:
        """Normal rows that were flagged, of a thousand."""
        return 1000 * self.normal_flagged / max(self.normal_rows, 1)


@dataclass(frozen=True)
class Segment:
    """A stretch of a replay.

    Attributes:
        first_row: In the file.
        rows: So many.
        loop: With the loop, in this stretch alone.
        frozen: The first version, in this stretch alone.
        loop_so_far: With the loop, from the beginning to the end of this stretch.
        frozen_so_far: The first version, the same.
    """

    first_row: int
    rows: int
    loop: Quality
    frozen: Quality
    loop_so_far: Quality
    frozen_so_far: Quality


def quality(scores: FloatArray, threshold: float, labels: Flags | None) -> Quality:
    """Measures scores.

    Args:
        scores: [N]; NaN where there is none.
        threshold: From which one counts as flagged.
        labels: [N]; None where there are none.
    """
    flagged, scored = scores >= threshold, np.isfinite(scores)
    normal = np.ones(len(scores), np.bool_) if labels is None else ~labels
    events = None if labels is None else runs(labels)
    return Quality(
        rows=len(scores),
        flagged=int(flagged.sum()),
        mean_score=float(scores[scored].mean()) if scored.any() else None,
        normal_rows=int(normal.sum()),
        normal_flagged=int((flagged & normal).sum()),
        false_alarms=None if labels is None else sum(bool(normal[first]) for first, _ in runs(flagged)),
        events=None if events is None else len(events),
        events_found=None if events is None else sum(bool(flagged[first:end].any()) for first, end in events),
        average_precision=None if labels is None or not labels.any() else average_precision(scores, labels),
    )


def average_precision(scores: FloatArray, labels: Flags) -> float:
    """Area under precision and recall, in steps; rows without a score rank last.

    >>> average_precision(np.array([3.0, 2.0, 1.0], np.float32), np.array([True, False, True]))
    0.8333333333333333
    """
    ranked = np.where(np.isfinite(scores), scores, -1.0)
    order = np.argsort(-ranked, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.r_[np.flatnonzero(np.diff(ranked[order])), len(scores) - 1]  # equal scores are told apart by nothing
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.diff(np.r_[0.0, recall]) @ precision)


def segments(replay: Replay, count: int = SEGMENTS) -> list[Segment]:
    """Cuts a replay into stretches of about equal length."""
    edges = np.unique(np.linspace(0, len(replay.scores), count + 1).astype(int))
    found = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        here, so_far = slice(first, end), slice(0, end)
        found.append(
            Segment(
                replay.first_row + first,
                end - first,
                _of(replay, replay.scores, here),
                _of(replay, replay.frozen, here),
                _of(replay, replay.scores, so_far),
                _of(replay, replay.frozen, so_far),
            )
        )
    return found


def _of(replay: Replay, scores: FloatArray, rows: slice) -> Quality:
    labels = None if replay.labels is None else replay.labels[rows]
    return quality(scores[rows], replay.threshold, labels)


def described(replay: Replay) -> dict[str, Any]:
    """A replay as `prunewatch simulate --json` prints it."""
    everything = slice(0, len(replay.scores))
    return {
        "name": replay.name,
        "first_row": replay.first_row,
        "threshold": replay.threshold,
        "seconds": replay.seconds,
        "loop": asdict(_of(replay, replay.scores, everything)),
        "frozen": asdict(_of(replay, replay.frozen, everything)),
        "cycles": [_cycle(it) for it in replay.cycles],
        "versions": [asdict(it) for it in replay.sizes],
        "served": served(replay),
        "segments": [asdict(it) for it in segments(replay)],
    }


def served(replay: Replay) -> list[dict[str, int]]:
    """From which row on which version scored."""
    changes = np.flatnonzero(np.diff(replay.versions)) + 1
    rows = [0, *changes.tolist()] if len(replay.versions) else []
    return [{"row": replay.first_row + row, "version": int(replay.versions[row])} for row in rows]


def _cycle(ran: Ran) -> dict[str, Any]:
    cycle, adoption = ran.cycle, ran.adoption
    return {
        "row": ran.row,
        "trigger": cycle.trigger,
        "cause": cycle.cause,
        "outcome": cycle.outcome,
        "reason": cycle.reason,
        "version": adoption.version if adoption else None,
        "adoption": adoption.state if adoption else None,
        "adoption_reason": adoption.reason if adoption else "",
    }


def cost_text(bytes_: int, p50_seconds: float | None) -> str:
    """Size and time of a step on one line.

    >>> cost_text(8192, 0.0001)
    '8KiB, 100us'
    """
    return format_size(bytes_) + ("" if p50_seconds is None else f", {format_duration(p50_seconds)}")
