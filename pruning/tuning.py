"""Looking for the settings of a detector without labels: what is tried, measured, fitted and judged, trial by trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import optuna
from optuna.trial import TrialState

from detectors.errors import InvalidInputError, PreconditionError
from detectors.training.fit import MINIMUM_ROWS, FitOptions, Progress, silent
from detectors.training.fitted import ErrorOptions, warm_up
from detectors.training.networks import network_class
from detectors.training.networks.base import Options
from detectors.training.stretches import Stretches
from pruning.attempt import Attempts, TuneOptions
from pruning.exam import Exam
from pruning.limits import said
from pruning.space import Space
from pruning.study import SPACE, ask, give_back, opened
from pruning.tuned import Tuned, importance, is_told, limits_text, tried

OBJECTIVE = 1  # to be raised whenever the same detector would be given another value


def tune(
    kind: str,
    data: Stretches,
    features: Sequence[str],
    file: Path,
    *,
    options: Options | None = None,
    learn: FitOptions | None = None,
    error: ErrorOptions | None = None,
    how: TuneOptions | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = perf_counter,
) -> Tuned:
    """Searches for better settings of a detector, or goes on with it.

    The first trial is what the detector has now; with a budget, the second is the smallest network there is.

    Args:
        kind: The network.
        data: Normal points, as a fit would get them.
        features: Names of the F columns.
        file: The study, an SQLite file; made where there is none.
        options: What the network has now, as far as it is set.
        learn: How a fit learns; its learning rate is searched too.
        error: How residuals become one error; its half-life is searched too.
        how: How long, and within which budget.
        progress: Told the share of the trials that is done, and the best so far.
        clock: Seconds.

    Raises:
        InvalidInputError: too few rows, a network or option that does not exist, a budget that even the smallest
            network misses, or a file that is the study of something else.
        PreconditionError: no trial could be finished within the budget.
    """
    how, learn, error = how or TuneOptions(), learn or FitOptions(), error or ErrorOptions()
    if how.budget is not None and how.budget.speedup is not None:
        raise InvalidInputError(
            "there is no parent to be quicker than.", field="budget.speedup", hint="Give p50 or p99."
        )
    space = Space.of(kind, len(features), data, options or {}, error, learn.learning_rate)
    _require_rows(data, space, error)
    subject = {
        "network": kind,
        "set of points": _fingerprint(data, features),
        "budget": limits_text(how.budget),
        "batch": how.points_a_step,
        "seed": how.seed,
        "set of options": space.fixed,
        "error": {"aggregate": error.aggregate, "missing": error.missing},
        "length of training": learn.updates,
        "contamination": learn.contamination,
        "objective": OBJECTIVE,
    }
    with opened(file, subject, space.to_dict()) as study:
        space = Space.of_dict(study.user_attrs[SPACE])
        exam = Exam.of(data, space.longest_warm_up(error), how.seed)
        attempts = Attempts(space, exam, data, tuple(features), learn, error, how, clock)
        if not study.get_trials(deepcopy=False):
            attempts.require_feasible()
            study.enqueue_trial(space.start)
            if how.budget:
                study.enqueue_trial(space.smallest)
        interrupted = not _search(study, attempts, progress)
        trials = tuple(tried(trial) for trial in study.get_trials() if is_told(trial))
        done = [trial for trial in trials if trial.state == "done"]
        tuned = Tuned(
            network=kind,
            batch=how.points_a_step,
            budget=how.budget,
            points=len(data),
            events=len(exam.events.kinds),
            trials=trials,
            best=max(done, key=lambda trial: trial.average_precision or 0.0, default=None),
            start=next((trial for trial in trials if trial.settings == space.choice(space.start)), None),
            importance=importance(study),
            interrupted=interrupted,
        )
    if tuned.best is None and not interrupted:
        raise _nothing_found(tuned)
    return tuned


def _search(study: optuna.Study, attempts: Attempts, progress: Progress) -> bool:
    """Runs the trials; False if it was interrupted. The one that ran then is tried again next time."""
    how, began = attempts.how, attempts.clock()
    for turn in range(how.trials):
        if turn and how.timeout_seconds is not None and attempts.clock() - began >= how.timeout_seconds:
            break
        told = _retold(progress, turn, how.trials, _best_text(study))
        told("tune", 0.0, "")
        try:
            trial = ask(study, how.seed)
            try:
                attempts.run(study, trial, told)
            except KeyboardInterrupt:
                give_back(study, trial)
                raise
        except KeyboardInterrupt:
            return False
    progress("tune", 1.0, _best_text(study))
    return True


def _require_rows(data: Stretches, space: Space, error: ErrorOptions) -> None:
    """Refuses what no fit could be made with."""
    network = network_class(space.kind).dense(space.n_features, space.choice(space.start).options)
    longest = Stretches(tuple(sorted(data.parts, key=len)[-1:]))
    longest.require(warm_up(network, error) + MINIMUM_ROWS * network.stride, f"a {space.kind} detector")


def _fingerprint(data: Stretches, features: Sequence[str]) -> str:
    """Names the points: the same columns and values, the same text."""
    digest = hashlib.sha256("\0".join(features).encode())
    for part in data.parts:
        digest.update(f"\0{len(part)}\0".encode() + part.tobytes())
    return f"{len(data)} rows {digest.hexdigest()[:12]}"


def _nothing_found(tuned: Tuned) -> PreconditionError:
    """Why there is nothing to propose."""
    failed = next((it.problem for it in tuned.trials if it.state == "failed"), "")
    if any(it.state == "over_budget" for it in tuned.trials):
        quickest = min(it.p50_seconds for it in tuned.trials if it.p50_seconds is not None)
        problem = (
            f"none of {len(tuned.trials)} trials meets the budget ({tuned.limits}): the smallest p50 seen "
            f"is {said(quickest, True)} at batch {tuned.batch}."
        )
        return PreconditionError(problem, field="budget", hint="Raise the budget, or run it again for more trials.")
    return PreconditionError(
        f"none of {len(tuned.trials)} trials could be finished: {failed}", field="data", hint="Give more rows."
    )


def _best_text(study: optuna.Study) -> str:
    """The best so far, in a few words."""
    done = [it for it in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if it.value is not None]
    if not done:
        return ""
    best = max(done, key=lambda trial: trial.value or 0.0)
    return f"best {best.value:.3f} (trial {best.number})"


def _retold(progress: Progress, turn: int, turns: int, best: str) -> Progress:
    """Tells of one trial as a part of the whole search."""

    def told(_stage: str, done: float, message: str) -> None:
        words = [f"trial {turn + 1} of {turns}", best, message]
        progress("tune", (turn + done) / turns, ", ".join(word for word in words if word))

    return told
