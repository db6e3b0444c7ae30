"""A search's memory: one Optuna study in one SQLite file, for one process at a time, that can be gone on with.

The file remembers what it is a study of. A search that ended in any way (also `kill -9`) leaves it usable; what was
being tried then is tried again.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import optuna
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from detectors.errors import InvalidInputError, PreconditionError

STUDY = "prunewatch"
"""The one study of a file."""
SUBJECT, SPACE = "subject", "space"
"""User attributes of the study: what is tuned and judged on what; the space as it was at the beginning."""
AGAIN = "again"
"""User attribute of a trial that repeats one that was cut off. It is repeated once: it may be what ends the process."""

RANDOM_TRIALS = 8  # before the sampler begins to learn (Optuna's 10 suit searches of hundreds)
UNSTOPPED_TRIALS = 5  # trials that are fitted to the end before others may be stopped for being worse than their median


@contextmanager
def opened(path: Path, subject: Mapping[str, Any], space: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """The study in a file, a new one where there is none; closed and unlocked in the end.

    Args:
        path: The file.
        subject: What the study is of, as JSON; a study of something else is refused.
        space: Kept in a new study; one that is there keeps its own.

    Raises:
        InvalidInputError: the file is something else, or a study of something else.
        PreconditionError: another process works on it, or it can not be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _locked(path):
        _require_study(path)
        storage = None
        try:
            storage = optuna.storages.RDBStorage(_url(path))
            study = optuna.create_study(
                storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner()
            )
            known = study.user_attrs
            if SUBJECT not in known or not study.get_trials(deepcopy=False):
                study.set_user_attr(SPACE, dict(space))
                study.set_user_attr(SUBJECT, dict(subject))
            else:
                _require_subject(path, known[SUBJECT], subject)
            _give_back_lost(study)
            yield study
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise PreconditionError(
                f"the study can not be read or written: {getattr(error, '__cause__', None) or error}.",
                field=str(path),
                hint="Is the disk full, or the file read-only?",
            ) from error
        finally:
            if storage is not None:
                storage.remove_session()
                storage.engine.dispose()


def pruner() -> optuna.pruners.BasePruner:
    """Stops a trial whose best value so far is below the median of what finished trials had at the same point.

    The median, and not Hyperband: its brackets need dozens of trials to pay, a search here has dozens in all.
    """
    return optuna.pruners.MedianPruner(n_startup_trials=UNSTOPPED_TRIALS)


def ask(study: optuna.Study, seed: int) -> optuna.Trial:
    """The next trial: it depends on the seed and on the trials before it, not on how often a search was begun."""
    number = len(study.get_trials(deepcopy=False))
    drawn_from = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=drawn_from)
    return study.ask()


def give_back(study: optuna.Study, trial: optuna.Trial | optuna.trial.FrozenTrial) -> None:
    """Ends a trial that was cut off, and puts what it tried before all others."""
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    if trial.params and AGAIN not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})


def _url(path: Path) -> str:
    url = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template


def _give_back_lost(study: optuna.Study) -> None:
    """Trials that still run are of a process that is gone: this one has the lock."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        give_back(study, trial)


def _require_subject(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in (*ours, *theirs):
        if theirs.get(key) != ours.get(key):
            raise InvalidInputError(
                f"is the study of another {key}: {theirs.get(key)}, not {ours.get(key)}.",
                field=str(path),
                hint="Name another file with --study, or delete this one to begin anew.",
            )


def _require_study(path: Path) -> None:
    """Refuses a file that is something else before anything is written into it."""
    if not path.stat().st_size:
        return
    uri = f"{path.absolute().as_uri()}?mode=ro"
    cause: sqlite3.Error | None = None
    names: list[str] = []
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT study_name FROM studies")]
    except sqlite3.Error as error:
        cause = error
    if STUDY not in names and (names or cause is not None):
        raise InvalidInputError(
            "is not a study that `prunewatch tune` wrote.", field=str(path), hint="Name another file with --study."
        ) from cause


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file for this process; the kernel lets go of it when the process ends, however it ends.

    Closed last: closing any descriptor of a file ends the locks that SQLite has on it.
    """
    file: BinaryIO = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreconditionError(
                "another process works on this study.", field=str(path), hint="Wait for it, or name another file."
            ) from None
        yield
