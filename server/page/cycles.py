"""Cycles, operations and what people said of points, as the page's JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectors.errors import PreconditionError, PrunewatchError
from server.catalog import Catalog
from server.cycle_watch import CycleState, cycle_states
from server.overview_rows import CycleGlance
from server.records import AdoptionRow, CycleRow, FeedbackRow, OperationRow, WindowRow
from server.reports import choose, reported

REACHED = ("p50_seconds", "p99_seconds", "bytes", "hint")
REPORTED = 100
"""Cycles whose reports can be seen, the newest."""
SIZES = ("version", "hash", "units", "parameters", "bytes", "p50_seconds", "p99_seconds", "error")


def glance_shown(cycle: CycleGlance) -> dict[str, Any]:
    """A cycle without its result."""
    return {
        "id": cycle.id,
        "detector": cycle.detector,
        "device_class": cycle.device_class,
        "trigger": cycle.trigger,
        "cause": cycle.cause,
        "started_seconds": cycle.started,
        "ended_seconds": cycle.ended,
        "outcome": cycle.outcome,
        "reason": cycle.reason,
    }


def cycle_shown(state: CycleState) -> dict[str, Any]:
    """A cycle with what it made of what, the gate's checks, and whether its version was kept; not its whole report."""
    result = state.row.result
    best = result.get("best_reachable") or {}
    return {
        **cycle_facts(state),
        "parent": _sized(result.get("parent")),
        "child": _sized(result.get("child")),
        "best_reachable": {key: best.get(key) for key in REACHED} if best else None,
        "checks": checks_of(result.get("gate")),
    }


def _sized(made: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not made:
        return None
    return {**{key: made.get(key) for key in SIZES}, "hash": (made.get("hash") or "")[:12]}


def checks_of(gate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a gate asked, with the figures; empty where none was reached."""
    checks = (gate or {}).get("checks") or {}
    return [{"name": name, **{key: it.get(key) for key in ("value", "limit", "passed", "detail")}}
            for name, it in checks.items()]  # fmt: skip


def adoption_shown(row: AdoptionRow) -> dict[str, Any]:
    """What became of a version that a cycle made serve."""
    return {
        "device_class": row.device_class,
        "version": row.version,
        "previous_version": row.previous_version,
        "cycle": row.cycle,
        "began_seconds": row.began,
        "ended_seconds": row.ended,
        "state": row.state,
        "reason": row.reason,
    }


def operation_shown(row: OperationRow, cycle: CycleGlance | CycleRow | None = None) -> dict[str, Any]:
    """A fit, a cycle or a frontier as it stands; `cycle` says what began it."""
    error = row.error or {}
    return {
        "name": row.name,
        "kind": row.kind,
        "detector": row.detector,
        "state": row.state,
        "stage": row.stage,
        "done": round(row.done, 3),
        "message": row.message,
        "error": " ".join(it for it in (error.get("problem"), error.get("hint")) if it),
        "created_seconds": row.created,
        "ended_seconds": row.ended,
        "device_class": cycle.device_class if cycle else "",
        "trigger": cycle.trigger if cycle else "",
    }


def said_shown(row: FeedbackRow | WindowRow, time: str) -> dict[str, Any]:
    """A label or a maintenance window; `time` says what stamps are."""
    stamps = row.first_stamp, row.last_stamp
    return {
        "label": row.label if isinstance(row, FeedbackRow) else "",
        "series": row.series,
        "note": row.note,
        "stamps": [str(it) for it in stamps],
        "seconds": [it / 1e9 for it in stamps] if time == "stamp" else None,
        "created_seconds": row.created,
    }


def report_of(catalog: Catalog, name: str, time: str, device_class: str, cycle: int | None) -> dict[str, Any]:
    """What `prunewatch report --json` says of a cycle, but for the lineage that its child's manifest has.

    `absent` where no cycle has built a child for the class: that is no error.

    Raises:
        NotFoundError: there is no such cycle.
    """
    found = [{**cycle_facts(it), "result": it.row.result or None} for it in cycle_states(catalog, name, REPORTED)]
    try:
        chosen = choose(name, found, device_class, cycle)
    except PreconditionError as error:
        return absent(error)
    return reported(name, time, chosen, {})


def absent(error: PrunewatchError, command: str = "") -> dict[str, Any]:
    """Something that is not there yet, and what makes it."""
    return {"absent": {"problem": error.problem, "hint": error.hint, "command": command}}


def cycle_facts(state: CycleState) -> dict[str, Any]:
    """A cycle with what became of its version, without its result."""
    row, adoption = state.row, state.adoption
    return {
        "id": row.id,
        "device_class": row.device_class,
        "trigger": row.trigger,
        "cause": row.cause,
        "started_seconds": row.started,
        "ended_seconds": row.ended,
        "outcome": row.outcome,
        "reason": row.reason,
        "adoption": adoption.state if adoption else "",
        "adoption_reason": adoption.reason if adoption else "",
    }
