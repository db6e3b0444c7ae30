"""Settings of the loop: when fits and cycles begin by themselves, what a candidate must prove, what is kept."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.quantities import Seconds, parse_duration


class Section(BaseModel):
    """A part of the settings: unknown keys are errors, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Every(Section):
    """How often: by the clock (`7d`) or by points seen (`50000 points`); exactly one is set."""

    seconds: float | None = None
    points: int | None = None

    @model_validator(mode="after")
    def _one_is_set(self) -> Self:
        if (self.seconds is None) == (self.points is None):
            raise ValueError("write a duration like 7d or a number of points like `50000 points`")
        return self

    def __str__(self) -> str:
        return f"{self.points} points" if self.points else f"{self.seconds}s"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str) and (match := re.fullmatch(r"\s*([1-9][\d_]*)\s*points?\s*", value)):
            return {"points": int(match[1])}
        if isinstance(value, str | int | float):
            try:
                return {"seconds": parse_duration(value)}
            except ValueError as error:
                raise ValueError(f"{error}, or a number of points like `50000 points`") from None
        return value


class Schedule(Section):
    """When cycles become due by themselves; None: only when somebody asks."""

    refit_every: Every | None = None
    """Fit a new parent on the recent points of the history."""
    prune_every: Every | None = None
    """Update, prune and fine-tune the served detector."""
    jitter: float = Field(default=0.1, ge=0, le=0.25)
    """Each begins earlier by a share of its period, drawn up to this: detectors alike do not all begin at once."""


class Triggers(Section):
    """What begins a cycle, or a fit, beside the schedule."""

    drift: bool = False
    """Errors or inputs of the live points are no longer those that the detector was calibrated on."""
    missed_budget: bool = False
    """What serves is measured above the budget of its device class."""
    config_change: bool = False
    """The budget or the device classes of the detector were changed."""
    shift: int | None = Field(default=None, ge=100)
    """After so many points of each series of which at least half were flagged, they count as normal, and a new parent
    is fitted; None: what is flagged stays out."""
    drift_window: int = Field(default=1000, ge=40)
    """Points that are compared with what was, when drift is looked for."""
    cool_down: Seconds = 3600.0
    """At least so long between two cycles or fits that any of these begin; doubled by each further cycle in a row that
    came to nothing, at most a week."""


class ParentGate(Section):
    """What a parent that was trained on must keep of what the first one could, or the cycle is rejected."""

    golden_quality: float = Field(default=0.95, ge=0, le=1)
    """Of the first parent's average precision on the golden set: a part of its first fit with injected anomalies."""
    golden_recall: float = Field(default=0.8, ge=0, le=1)
    """Of the injected anomalies that the first parent flags, so many must still be flagged."""
    movement: float = Field(default=1.0, gt=0)
    """How far outputs on the golden set may be from the first parent's, in units of its own error there."""


class Probation(Section):
    """What a candidate proves on live points, before and after it serves."""

    shadow_points: int = Field(default=200, ge=0)
    """Live points that it scores beside what serves before it may; 0: none."""
    shadow_seconds: Seconds = 30.0
    """Where live points come slower than that, it is judged on those there were."""
    points: int = Field(default=2000, ge=0)
    """Live points after its adoption during which it goes back by itself; 0: no probation."""
    seconds: Seconds = 86400.0
    """The probation ends after so long all the same."""
    alarm_flood: float = Field(default=5.0, gt=1)
    """It goes back where it flags more than so many times the share that was flagged before (or may be)."""
    slower: float = Field(default=2.0, gt=1)
    """It goes back where its steps take more than so many times those of the version before."""
    back_off: Seconds = 3600.0
    """After it went back no cycle begins by itself for so long; doubled each time in a row, at most a week."""


class VersionRetention(Section):
    """Which versions are kept; one that is served, pinned, a parent in use, or to go back to always is."""

    keep: int = Field(default=10, ge=1)
    """The newest so many of the others."""
