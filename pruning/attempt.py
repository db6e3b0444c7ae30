"""One trial of a search: settings are measured, fitted and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import optuna
from optuna.trial import TrialState

from detectors.errors import InvalidInputError
from detectors.training.calibrate import Scaler
from detectors.training.export import step_graph
from detectors.training.fit import HELD_OUT, MINIMUM_ROWS, FitOptions, Progress, fit, seeded
from detectors.training.fitted import ErrorOptions, Fitted, calibrated, warm_up
from detectors.training.networks import network_class
from detectors.training.stretches import Stretches
from pruning.exam import Exam
from pruning.gate import trimmed_error
from pruning.latency import measure
from pruning.limits import limits, said
from pruning.outcome import Budget, Latency
from pruning.space import Choice, Space
from pruning.tuned import ERROR, MEASURED, PROBLEM, SECONDS, SETTINGS, limits_text

LOOKS = (0.25, 0.5)  # shares of the longest possible training at which a trial is compared with those before it ...
LOOK_EVERY = 3  # ... on each third event: a look costs a tenth of a trial


@dataclass(frozen=True)
class TuneOptions:
    """How a search works.

    Attributes:
        trials: How many more.
        timeout_seconds: No trial begins after so long; None: all do.
        seed: Of events, of what is tried, and of every fit.
        budget: What a step may cost; None: anything.
        batch: Points of a step that is measured, where there is no budget.
    """

    trials: int = 30
    timeout_seconds: float | None = None
    seed: int = 0
    budget: Budget | None = None
    batch: int = 256

    @property
    def points_a_step(self) -> int:
        """Of a step that is measured."""
        return self.budget.batch if self.budget else self.batch


@dataclass(frozen=True)
class Attempts:
    """All that a trial needs beside its settings."""

    space: Space
    exam: Exam
    data: Stretches
    features: tuple[str, ...]
    learn: FitOptions
    error: ErrorOptions
    how: TuneOptions
    clock: Callable[[], float]

    def run(self, study: optuna.Study, trial: optuna.Trial, progress: Progress) -> None:
        """One trial from its settings to its end in the study."""
        try:
            study.tell(trial, self._value(trial, progress))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except InvalidInputError as error:  # training diverged: the sampler is to keep away from there
            trial.set_user_attr(PROBLEM, error.problem)
            study.tell(trial, state=TrialState.PRUNED)

    def require_feasible(self) -> None:
        """Refuses a budget that nothing in the space can meet, before anything is fitted.

        Raises:
            InvalidInputError: even the smallest network misses it.
        """
        if self.how.budget is None:
            return
        choice = self.space.choice(self.space.smallest)
        latency, size, _ = self._measured(choice)
        if any(excess > 0 for excess in self._excess(latency, size).values()):
            raise InvalidInputError(
                f"even the smallest {self.space.kind} of this search misses it ({limits_text(self.how.budget)}): p50 "
                f"is {said(latency.p50_seconds, True)} and p99 {said(latency.p99_seconds, True)} at batch "
                f"{latency.batch}, size {size} bytes, with {choice.text}.",
                field="budget",
                hint="Raise the budget, measure at another --batch, or take another --network.",
            )

    def _value(self, trial: optuna.Trial, progress: Progress) -> float:
        choice = self.space.drawn(trial)
        trial.set_user_attr(SETTINGS, asdict(choice))
        latency, size, parameters = self._measured(choice)
        trial.set_user_attr(MEASURED, {**asdict(latency), "bytes": size, "parameters": parameters})
        excess = self._excess(latency, size)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        if any(value > 0 for value in excess.values()):
            raise optuna.TrialPruned  # the time of a step does not depend on weights: there is no use in training them
        began = self.clock()
        error = self._error(choice)
        looks = iter(enumerate(LOOKS))
        due = next(looks, None)

        def look(done: float, detector: Callable[[], Fitted]) -> None:
            nonlocal due
            if due is not None and due[1] <= done < 1:
                trial.report(self._so_far(detector), due[0])
                due = next(looks, None)
                if trial.should_prune():
                    raise optuna.TrialPruned

        learn = self.learn if choice.learning_rate is None else replace(self.learn, learning_rate=choice.learning_rate)
        fitted = fit(
            self.space.kind,
            self.data,
            self.features,
            seed=self.how.seed,
            options=choice.options,
            how=learn,
            error=error,
            progress=progress,
            look=look,
        )
        value = self.exam.average_precision(fitted)
        _, held_out = self.data.split(HELD_OUT, context=fitted.network.warm_up_points)
        trial.set_user_attr(ERROR, trimmed_error(fitted, held_out.longer_than(fitted.network.warm_up_points)))
        trial.set_user_attr(SECONDS, self.clock() - began)
        return value

    def _so_far(self, detector: Callable[[], Fitted]) -> float:
        """What the network would be worth as it now is; one that has diverged finds nothing."""
        try:
            return self.exam.average_precision(detector(), LOOK_EVERY)
        except InvalidInputError:
            return 0.0

    def _measured(self, choice: Choice) -> tuple[Latency, int, int]:
        """Time of a step, bytes and parameters of a network that has not been trained."""
        error = self._error(choice)
        with seeded(self.how.seed):
            network = network_class(self.space.kind).dense(len(self.features), choice.options)
        longest = max(self.data.parts, key=len)
        rows = Stretches((longest[: warm_up(network, error) + MINIMUM_ROWS * network.stride],))
        graph = step_graph(calibrated(network, self.features, Scaler.fit(rows.rows), rows, error))
        (latency,) = measure([graph], self.how.points_a_step)
        return latency, len(graph), network.parameters_count

    def _excess(self, latency: Latency, size: int) -> dict[str, float]:
        """For each limit by which part of it a step is over; what is at most 0 is within."""
        if self.how.budget is None:
            return {}
        return {name: value / limit - 1 for name, value, limit, _ in limits(latency, size, latency, self.how.budget)}

    def _error(self, choice: Choice) -> ErrorOptions:
        return replace(self.error, half_life=choice.half_life)
