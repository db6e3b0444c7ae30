"""Whether a device does well with a new bundle: pure functions of what devices say, for `server.fleet.rollouts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from server.config import Budget
from server.fleet.in_use import Steps
from server.fleet.records import FAILED_STATES, Member, RolloutRow, Served, Standing
from server.fleet_settings import Rollout

FEWEST_POINTS = 200
"""Of fewer points nobody says which share was flagged."""
HANDFUL = 10
"""So many flagged points are no flood."""


@dataclass(frozen=True)
class Count:
    """Points that a device has scored and flagged since it started."""

    points: int
    flagged: int

    def since(self, before: Count) -> Count:
        """What came between; a device that has started anew meanwhile begins at nothing."""
        if self.points < before.points:
            return self
        return Count(self.points - before.points, max(self.flagged - before.flagged, 0))

    @property
    def share(self) -> float | None:
        """The share that was flagged; None of too few."""
        return self.flagged / self.points if self.points >= FEWEST_POINTS else None


@dataclass(frozen=True)
class Verdict:
    """Where a device stands, and why it failed."""

    state: Standing
    reason: str = ""


def judge(
    rollout: RolloutRow,
    served: Served | None,
    budget: Budget,
    settings: Rollout,
    *,
    count: Count,
    usual_share: float,
    steps: Steps | None = None,
    steps_before: Steps | None = None,
) -> Verdict:
    """Judges what a device says of a detector.

    Args:
        rollout: What it was asked to take.
        served: What it says; None: nothing.
        budget: Of its class.
        settings: What misbehaving is.
        count: What it has scored with the bundle.
        usual_share: The share of points that is usually flagged.
        steps: What it needs in use for a step with the bundle; None: too little was heard.
        steps_before: With what it ran before; None: that is not known.
    """
    if served is None:
        return Verdict("asked")
    if served.bundle != rollout.bundle_hash:
        gave_up = served.state in FAILED_STATES and served.asked_counter >= rollout.first_counter
        did = f"{'fell back' if served.state == 'fell_back' else 'refused it'}{': ' * bool(served.reason)}"
        return Verdict("failed", did + served.reason) if gave_up else Verdict("asked")
    if served.state != "serving":
        return Verdict("asked")
    slow = _too_slow(steps, steps_before, budget, settings.slower)
    if reason := slow or _flood(count, usual_share, settings.alarm_flood):
        return Verdict("failed", reason)
    return Verdict("serving")


def _too_slow(steps: Steps | None, before: Steps | None, budget: Budget, slower: float) -> str:
    """Why its steps take too long in use, in words; empty: they do not.

    In use a step takes longer than measured: caches are cold, and others want the processor. So nobody goes back from
    what is above the budget to what was above it as far.
    """
    if steps is None:
        return ""
    p50_before, p99_before = before or (0.0, 0.0)
    for name, seconds, limit, was in (
        ("p99", steps[1], budget.p99, p99_before),
        ("p50", steps[0], budget.p50, p50_before),
    ):
        if limit is not None and seconds > slower * max(limit, was):
            told = f"{name} of a step is {1e3 * seconds:.3g} ms, the budget {1e3 * limit:.3g} ms"
            return f"{told}, before {1e3 * was:.3g} ms" if was else told
    return ""


def _flood(count: Count, usual_share: float, factor: float) -> str:
    share = count.share
    if share is not None and count.flagged > HANDFUL and share > factor * usual_share:
        return f"it flags {share:.1%} of its points, where {usual_share:.2%} are usual"
    return ""


def usual(shares: Sequence[float], false_alarm_rate: float) -> float:
    """The share that is usually flagged: the median of class mates, or what the detector may flag if that is more.

    >>> usual([0.01, 0.02, 0.9], 0.001)
    0.02
    """
    return max(false_alarm_rate, median(shares) if shares else 0.0)


def wanted_devices(canaries: float, total: int) -> int:
    """How many of a class take a bundle first: `canaries`, or that share of them.

    >>> wanted_devices(1, 50), wanted_devices(0.05, 50), wanted_devices(3, 2)
    (1, 3, 2)
    """
    return min(total, max(1, math.ceil(canaries * total if canaries < 1 else canaries)))


@dataclass(frozen=True)
class Tally:
    """A stage.

    Attributes:
        failed: Devices that failed, with why.
        waits_for: Devices that have still to prove themselves.
        away: Devices that were not heard of for too long.
        proven: Devices that have served well for long enough.
    """

    failed: list[Member]
    waits_for: list[str]
    away: list[str]
    proven: list[str]


def tally(members: Sequence[Member], heard: dict[str, float], settings: Rollout, now: float) -> Tally:
    """Sums a stage up.

    Args:
        members: Devices that were asked.
        heard: When each was heard of last, in seconds since the epoch.
        settings: How long to wait.
        now: Seconds since the epoch.
    """
    failed = [it for it in members if it.state == "failed"]
    proven = [it.device for it in members if it.proven is not None and now - it.proven >= settings.window]
    left = [it for it in members if it.state != "failed" and it.device not in proven]
    away = [it.device for it in left if now - max(it.asked, heard.get(it.device, 0.0)) > settings.patience]
    return Tally(failed, [it.device for it in left if it.device not in away], away, proven)
