"""What `prunewatch tune` proposes and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from server.commands.tables import console, duration_text, error_text, units_text
from server.config import DetectorConfig
from server.quantities import format_size

if TYPE_CHECKING:
    from pruning.space import Choice
    from pruning.tuned import Tried, Tuned

SHOWN = 10  # trials in the table
STATES: Mapping[str, str] = {
    "done": "",
    "stopped": "stopped half-way",
    "over_budget": "over budget, not trained",
    "failed": "failed",
}
WITHIN: Mapping[bool | None, str] = {True: "yes", False: "no", None: "-"}


def suggested(choice: Choice, config: DetectorConfig) -> dict[str, Any]:
    """Fields of `DetectorConfig` that make a fit use the settings.

    >>> from pruning.space import Choice
    >>> suggested(Choice({"width": 16}, 2.5), DetectorConfig())
    {'network': 'lstm', 'options': {'width': 16}, 'error': {'half_life': 2.5}}
    """
    error = {**config.error.model_dump(exclude_defaults=True), "half_life": choice.half_life}
    fields: dict[str, Any] = {"network": config.network, "options": dict(choice.options), "error": error}
    if choice.learning_rate is not None:
        fields["learning_rate"] = choice.learning_rate
    return fields


def as_yaml(name: str, config: Mapping[str, Any]) -> str:
    """Settings to paste into a file for `--config` or `prunewatch serve`.

    >>> print(as_yaml("pump", {"network": "lstm", "options": {"width": 16, "layers": 1}}), end="")
    detectors:
      pump:
        network: lstm
        options: {width: 16, layers: 1}
    """
    return yaml.safe_dump({"detectors": {name: dict(config)}}, sort_keys=False, default_flow_style=None, width=120)


def print_tuned(name: str, tuned: Tuned, config: Mapping[str, Any] | None, study: Path) -> None:
    """The best trials, what they mean, and what to paste."""
    out = console()
    out.print(
        f"{name}: {tuned.network} on {tuned.points:,} points, judged by {tuned.events} injected anomalies; "
        f"{len(tuned.trials)} trials in {study}",
        markup=False,
        soft_wrap=True,
    )
    if tuned.trials:
        out.print(trials_table(tuned))
    if tuned.importance:
        shares = ", ".join(f"{setting} {share:.0%}" for setting, share in tuned.importance.items())
        out.print(f"What made the difference: {shares}", markup=False, soft_wrap=True)
    out.print(verdict(tuned), markup=False, soft_wrap=True)
    if config is not None:
        out.print(as_yaml(name, config), markup=False, end="", soft_wrap=True)


def trials_table(tuned: Tuned) -> Table:
    """The best trials first, then those that were not finished; what the search began with is always there."""
    table = Table("trial", "found", "error", "p50", "p99", "bytes", "in budget", "settings", caption=_left_out(tuned))
    for trial in ranked(tuned)[:SHOWN]:
        table.add_row(*_cells(trial, tuned))
    if tuned.start is not None and tuned.start not in ranked(tuned)[:SHOWN]:
        table.add_row(*_cells(tuned.start, tuned))
    return table


def ranked(tuned: Tuned) -> list[Tried]:
    """Finished trials by average precision, then the others in their order."""
    done = [trial for trial in tuned.trials if trial.average_precision is not None]
    others = [trial for trial in tuned.trials if trial.average_precision is None]
    return [*sorted(done, key=lambda trial: -(trial.average_precision or 0.0)), *others]


def verdict(tuned: Tuned) -> str:
    """What to make of it, in one sentence."""
    if tuned.best is None:
        return "No trial was finished; run it again and it goes on."
    best = f"Best: trial {tuned.best.number}, average precision {tuned.best.average_precision:.3f}"
    if tuned.start is not None and tuned.start.state == "over_budget":
        return f"{best}; what it began with is over the budget."
    if tuned.start is None or tuned.start.average_precision is None or tuned.best.average_precision is None:
        return f"{best}."
    if tuned.best.number == tuned.start.number:
        return (
            f"Nothing better was found than what it began with: average precision {tuned.start.average_precision:.3f}."
        )
    if tuned.proposed == tuned.start:
        return f"{best}; what it began with is about as good ({tuned.start.average_precision:.3f}): keep it."
    return f"{best}; what it began with has {tuned.start.average_precision:.3f}."


def print_fitted(name: str, result: Mapping[str, Any]) -> None:
    """What `--fit` made."""
    parent = result["parent"]
    console().print(
        f"{name} version {parent['version']} fitted on {result['rows']:,} points: {units_text(parent['units'])}, "
        f"{parent['parameters']:,} parameters, {format_size(parent['bytes'])}"
    )


def _cells(trial: Tried, tuned: Tuned) -> tuple[str, ...]:
    found = STATES[trial.state] if trial.average_precision is None else f"{trial.average_precision:.3f}"
    if trial.stopped_at is not None:
        found = f"{found} at {trial.stopped_at:.3f}"
    start = "  (start)" if tuned.start is not None and trial.number == tuned.start.number else ""
    return (
        f"{trial.number}{start}",
        found,
        error_text(trial.error),
        duration_text(trial.p50_seconds),
        duration_text(trial.p99_seconds),
        "-" if trial.bytes is None else format_size(trial.bytes),
        WITHIN[trial.within_budget],
        trial.settings.text,
    )


def _left_out(tuned: Tuned) -> str:
    """What the table's rows do not say."""
    words = [f"found: average precision; steps of {tuned.batch} points; budget: {tuned.limits}"]
    if (more := len(tuned.trials) - SHOWN) > 0:
        words.append(f"{more} more trials in the study")
    return "; ".join(words)
