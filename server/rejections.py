"""Why candidates were rejected, in words that can be labels: a fixed list, whatever a sentence says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_PARENTS = ("golden_quality", "golden_recall", "movement")
"""Checks of a parent that was trained on, `pruning.parent_gate`."""
CHECKS = ("p50", "p99", "speedup", "size", "error", "alarms", "alarm_rate", "tail", "injected", "labelled", *OF_PARENTS)
"""Checks of the gate, as labels."""
REASONS = (*CHECKS, "floor", "live_points", "taken_back", "other")
"""Of rejections: a check, a budget below the floor of the network, conduct beside what serves, or a version that was
rolled back before."""
REJECTED_BY = "rejected_by"
"""Key of a result that the hub has rejected, not the trainer."""


def check_name(name: str) -> str:
    """The label of a check.

    >>> check_name("alarm rate"), check_name("latency p99"), check_name("latency p50 (asked: 2 times as fast ...)")
    ('alarm_rate', 'p99', 'speedup')
    >>> check_name("a check of a newer version")
    'other'
    """
    said = name.removeprefix("latency ").replace(" ", "_")
    if said.startswith("p50_("):
        return "speedup"
    return said if said in CHECKS else "other"


def rejected_for(result: Mapping[str, Any]) -> list[str]:
    """Why a result was rejected, each reason once; empty where it was not.

    >>> checks = {"tail": {"passed": False}, "error": {"passed": True}}
    >>> rejected_for({"outcome": "rejected", "gate": {"checks": checks}})
    ['tail']
    >>> rejected_for({"outcome": "rejected", "gate": None, "best_reachable": {"hint": ""}})
    ['floor']
    """
    if result.get("outcome") != "rejected":
        return []
    if REJECTED_BY in result:
        return [result[REJECTED_BY]]
    found = []
    for gate in (result.get("gate"), result.get("parent_gate")):
        checks = (gate or {}).get("checks", {})
        found += [check_name(name) for name, check in checks.items() if not check["passed"]]
    if not found:
        found = ["floor"] if result.get("best_reachable") else ["other"]
    return list(dict.fromkeys(found))
