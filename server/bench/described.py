"""What `prunewatch bench --json` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from detectors.stamps import Status
from server.bench.histogram import RELATIVE_ERROR, Histogram
from server.bench.outcome import Outcome
from server.bench.sweep import Sweep
from server.bench.tally import Tally
from server.bench.target import Target

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def described(outcome: Outcome) -> dict[str, Any]:
    """A run: what was asked for, what became of it, and how fast; seconds everywhere."""
    measured = outcome.measured
    return {
        "load": asdict(outcome.load),
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
        "offered_points_per_second": outcome.offered_rate,
        "answered_points_per_second": outcome.answered_rate,
        "messages": counted(measured),
        "warm_up_messages": counted(outcome.warming),
        "problems": measured.problems,
        "statuses": {Status(number).name.lower(): count for number, count in sorted(measured.statuses.items())},
        "versions": {str(version): count for version, count in sorted(measured.versions.items())},
        "threshold": measured.threshold,
        "latency_from_due": latencies(measured.from_due),
        "latency_from_sent": latencies(measured.from_sent),
        "latency_relative_error": RELATIVE_ERROR,
        "at_least_messages": measured.open_ended,
        "client": {
            "lag": latencies(measured.lag),
            "cpu_share": outcome.cpu_share,
            "held_back": outcome.held,
            "limit": outcome.client_limit,
        },
    }


def swept(found: Sweep) -> dict[str, Any]:
    """A sweep: its steps by rate, and the knee."""
    knee = found.knee
    return {
        "limit_seconds": found.limit_seconds,
        "knee_points_per_second": None if knee is None else knee.outcome.offered_rate,
        "bracketed": found.is_bracketed,
        "client_limit": found.client_limit,
        "steps": [
            {"rate": it.rate, "kept": not it.reason, "reason": it.reason, **described(it.outcome)}
            for it in sorted(found.steps, key=lambda it: it.rate)
        ],
    }


def target_json(address: str, target: Target) -> dict[str, Any]:
    """Where the load went."""
    return {
        "server": address,
        "detector": target.detector,
        "network": target.network,
        "version": target.version,
        "step_seconds": [{key: it[key] for key in ("batch", "p50_seconds", "p99_seconds")} for it in target.steps],
    }


def counted(tally: Tally) -> dict[str, Any]:
    """Messages by what became of them."""
    return {
        "due": tally.due,
        "sent": tally.sent,
        "scored": tally.scored,
        "errors": dict(sorted(tally.errors.items())),
        "shed": tally.shed,
        "unsent": tally.unsent,
        "unanswered": tally.unanswered,
    }


def latencies(histogram: Histogram) -> Mapping[str, Any]:
    """Quantiles, and the whole histogram as [upper edge, count]; null where there is nothing."""
    return {
        "count": histogram.count,
        **{name: _number(histogram.quantile(q)) for name, q in QUANTILES.items()},
        "max": histogram.largest if histogram.count else None,
        "mean": _number(histogram.mean),
        "buckets": [list(it) for it in histogram.buckets()],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
