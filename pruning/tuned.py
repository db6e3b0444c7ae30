"""What a search has found: its trials, read back from the study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from pruning.limits import said
from pruning.outcome import Budget
from pruning.space import Choice

WORTH = 0.02  # average precision by which a trial must beat the start: less is another draw of events and weights
WEIGHED_TRIALS = 6  # finished trials before it is said which settings mattered
SETTINGS, MEASURED, ERROR, SECONDS, PROBLEM = "settings", "measured", "error", "seconds", "problem"
"""User attributes of a trial."""

State = Literal["done", "stopped", "over_budget", "failed"]


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: In the study, from 0.
        state: `done`; `stopped` while it was fitted, because trials before it were better by then; `over_budget`, and
            so never fitted; `failed`, see `problem`.
        settings: What was tried.
        average_precision: On the injected anomalies; None unless it is done.
        stopped_at: The same when it was stopped, on some of the anomalies.
        error: Trimmed mean squared residual on held-out points, in scaled units. Comparable between networks that
            predict, not between those that rebuild windows.
        p50_seconds: Median of a step, measured before it was fitted.
        p99_seconds: Its 99th percentile.
        bytes: Of the step graph.
        parameters: Trainable numbers.
        within_budget: Whether it keeps every limit; None where there is none.
        seconds: Of fitting and judging.
        problem: Why it failed.
    """

    number: int
    state: State
    settings: Choice
    average_precision: float | None = None
    stopped_at: float | None = None
    error: float | None = None
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    bytes: int | None = None
    parameters: int | None = None
    within_budget: bool | None = None
    seconds: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a study knows so far.

    Attributes:
        network: Kind.
        batch: Points of a step that was measured.
        budget: Its limits.
        points: Points that detectors were fitted to and judged on.
        events: Injected anomalies each was asked about.
        trials: All that ended, those of earlier runs too.
        best: The best that is done and within the budget; None: there is none yet.
        start: What the detector had before the search; None: its trial has not ended.
        importance: What part of the differences each setting explains; empty while there are too few trials.
        interrupted: Whether somebody pressed Ctrl-C.
    """

    network: str
    batch: int
    budget: Budget | None
    points: int
    events: int
    trials: tuple[Tried, ...]
    best: Tried | None
    start: Tried | None
    importance: dict[str, float]
    interrupted: bool = False

    @property
    def proposed(self) -> Tried | None:
        """The best, unless what the detector has now is as good, within `WORTH`: then that."""
        start, best = self.start, self.best
        if start is None or best is None or start.average_precision is None or best.average_precision is None:
            return best
        return best if best.average_precision >= start.average_precision + WORTH else start

    @property
    def limits(self) -> str:
        """The budget, for people."""
        return limits_text(self.budget)

    def to_dict(self) -> dict[str, Any]:
        """As `tune --json` prints it."""
        return {**asdict(self), "proposed": asdict(self.proposed) if self.proposed else None}


def is_told(trial: FrozenTrial) -> bool:
    """Whether a trial has come to an end of its own."""
    return trial.state in {TrialState.COMPLETE, TrialState.PRUNED} and SETTINGS in trial.user_attrs


def tried(trial: FrozenTrial) -> Tried:
    """A finished trial out of the study."""
    told: Mapping[str, Any] = trial.user_attrs
    measured = told.get(MEASURED, {})
    over = any(value > 0 for value in trial.constraints.values())
    state: State = "done"
    if trial.state == TrialState.PRUNED:
        state = "failed" if PROBLEM in told else "over_budget" if over else "stopped"
    return Tried(
        number=trial.number,
        state=state,
        settings=Choice(**told[SETTINGS]),
        average_precision=trial.value if state == "done" else None,
        stopped_at=trial.value if state == "stopped" else None,  # Optuna's value of a pruned trial is its last one
        error=told.get(ERROR),
        p50_seconds=measured.get("p50_seconds"),
        p99_seconds=measured.get("p99_seconds"),
        bytes=measured.get("bytes"),
        parameters=measured.get("parameters"),
        within_budget=not over if trial.constraints else None,
        seconds=told.get(SECONDS),
        problem=told.get(PROBLEM, ""),
    )


def importance(study: optuna.Study) -> dict[str, float]:
    """By fANOVA (Hutter et al. 2014) over finished trials."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < WEIGHED_TRIALS:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values are alike: nothing matters
        return {}


def limits_text(budget: Budget | None) -> str:
    """What a budget sets, on one line.

    >>> limits_text(Budget(p50_seconds=2e-4, size_bytes=4096)), limits_text(None)
    ('p50 200 us, size 4096 bytes', 'none')
    """
    if budget is None:
        return "none"
    return ", ".join(f"{key.split('_')[0]} {said(value, key != 'size_bytes')}" for key, value in _set(budget))


def _set(budget: Budget) -> Iterator[tuple[str, float]]:
    for key in ("p50_seconds", "p99_seconds", "size_bytes"):
        if (value := getattr(budget, key)) is not None:
            yield key, value
