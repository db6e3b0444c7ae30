"""What the scoring process itself knows of a detector, on hub and device: gathered on its loop, told in a thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectors.errors import PrunewatchError
from server.anomalies import Anomaly
from server.config import Budget
from server.hosted import HostedDetector
from server.metrics import program_version
from server.recent import TICKS, Tick, rate

FEATURES = 100
"""Names that are told; there may be thousands."""
HIGHEST = 1e6
"""Scores are drawn up to here."""


@dataclass(frozen=True)
class Live:
    """A hosted detector at a moment.

    Attributes:
        name: Its name.
        network: What learns.
        version: That scores; None while it learns.
        problem: Why it can not score; empty otherwise.
        threshold: Scores from here on are anomalies.
        time: `stamp` or `index`: what its stamps are.
        points: Since the process began.
        flagged: The same.
        series: That have a state.
        features: Their names; None until they are known.
        ticks: The newest scores.
    """

    name: str
    network: str
    version: int | None
    problem: str
    threshold: float
    time: str
    points: int
    flagged: int
    series: int
    features: Sequence[str] | None
    ticks: list[Tick]

    @classmethod
    def of(cls, hosted: HostedDetector, ticks: int = TICKS) -> Live:
        """Copies what may change."""
        served = hosted.served
        return cls(
            name=hosted.name,
            network=hosted.config.network,
            version=served.version if served else None,
            problem=hosted.problem,
            threshold=hosted.threshold,
            time=hosted.config.time,
            points=hosted.recent.points,
            flagged=hosted.recent.flagged,
            series=_series(hosted),
            features=hosted.features,
            ticks=hosted.recent.newest(ticks),
        )

    def shown(self, now: float) -> dict[str, Any]:
        """As JSON; `now` in seconds since the epoch."""
        per_second = rate(self.ticks, now)
        first = self.ticks[0].began if self.ticks else 0.0
        return {
            "name": self.name,
            "network": self.network,
            "version": self.version,
            "threshold": round(self.threshold, 6),
            "time": self.time,
            "points": self.points,
            "points_per_second": round(per_second, 1 if per_second >= 1 else 4),
            "anomaly_count": self.flagged,
            "series": self.series,
            "features": len(self.features or ()),
            "live": {
                "first_seconds": round(first, 1),
                "seconds": [round(it.began - first, 1) for it in self.ticks],
                "scores": [_drawn(it.score) for it in self.ticks],
                "points": [it.points for it in self.ticks],
                "anomalies": [it.flagged for it in self.ticks],
            },
        }

    def named_features(self) -> list[str]:
        """The first of them."""
        return list(self.features or ())[:FEATURES]


def _series(hosted: HostedDetector) -> int:
    try:
        return len(hosted.live().series)
    except PrunewatchError:  # it has seen no points yet, or can not score
        return 0


def _drawn(score: float) -> float | None:
    """A score with three digits; None: no point had one."""
    if score == -math.inf:
        return None
    return round(min(score, HIGHEST), 3)


def anomaly_shown(anomaly: Anomaly, time: str) -> dict[str, Any]:
    """An anomaly as JSON; `time` says what its detector's stamps are."""
    return {
        "detector": anomaly.detector,
        "series": anomaly.series,
        "stamp": str(anomaly.stamp),  # nanoseconds are more than JavaScript can count
        "seconds": anomaly.stamp / 1e9 if time == "stamp" else None,
        "found_seconds": round(anomaly.found, 3),
        "score": round(min(anomaly.score, HIGHEST), 3),
        "threshold": round(anomaly.threshold, 6),
        "version": anomaly.version,
        "features": [[name, round(share, 4)] for name, share in anomaly.shares],
    }


def process_shown(role: str, listen: str, started: float, *, ready: bool, insecure: bool) -> dict[str, Any]:
    """The process as JSON."""
    return {
        "role": role,
        "version": program_version(),
        "listen": listen,
        "started_seconds": round(started, 3),
        "ready": ready,
        "insecure": insecure,
    }


def budget_shown(budget: Budget) -> dict[str, Any]:
    """A budget as JSON; None for what is not limited."""
    return dict(budget.for_trainer())
