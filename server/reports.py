"""What is known of a cycle, for the command line and the page: which one is meant, and all that it left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectors.errors import NotFoundError, PreconditionError

DATA = ("data_rows", "data_first_stamp", "data_last_stamp")
TOLD = (
    *("device_class", "trigger", "cause", "started_seconds", "ended_seconds"),
    *("outcome", "reason", "adoption", "adoption_reason"),
)
"""Of a cycle, as the book has it."""
ENDED = {
    "adopted": "was adopted",
    "rejected": "was rejected",
    "planned": "only planned",
    "failed": "failed",
    "running": "is still running",
    "awaiting_device": "waits for devices to measure its child",
    "corrected": "missed the budget on devices, and a narrower child was made",
}


def choose(name: str, cycles: Sequence[Mapping[str, Any]], device_class: str, wanted: int | None) -> Mapping[str, Any]:
    """The cycle to report on.

    Args:
        name: The detector.
        cycles: Newest first, with `id`, `device_class`, `outcome`, `reason`, `result`.
        device_class: Whose newest child is meant.
        wanted: Instead: this cycle.

    Raises:
        NotFoundError: it is not there.
        PreconditionError: no cycle has built a child for the class.
    """
    if wanted is not None:
        for it in cycles:
            if it["id"] == wanted:
                return it
        known = ", ".join(str(it["id"]) for it in cycles[:10])
        raise NotFoundError(
            f"{name!r} has no cycle {wanted}.",
            field="--cycle",
            hint=f"The newest are: {known}." if known else f"Run one: prunewatch prune {name} --speedup 4.",
        )
    ours = [it for it in cycles if it["device_class"] == device_class]
    for it in ours:
        if it["result"] and it["result"].get("gate"):
            return it
    if not ours:
        raise PreconditionError(
            f"{name!r} has not been pruned for {device_class!r} by a cycle yet.",
            field="name",
            hint=f"Run a cycle: prunewatch prune {name} --speedup 4. What a fit has pruned is in no cycle: see "
            f"prunewatch show {name}.",
        )
    raise PreconditionError(
        f"no cycle has built a child of {name!r} for {device_class!r} yet; the newest, {ours[0]['id']}, "
        f"{ENDED[ours[0]['outcome']]}.",
        field="name",
        hint=f"See what is known of it with --cycle {ours[0]['id']}, or prune to another budget.",
    )


def reported(name: str, time: str, cycle: Mapping[str, Any], lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is known of a cycle, as `prunewatch report --json` prints it; None for what is not known.

    Args:
        name: The detector.
        time: `stamp` or `index`: what its stamps are.
        cycle: As `choose` takes them.
        lineage: Of the child, as its manifest has it; may be empty.
    """
    result = cycle["result"] or {}
    parent, child, found = (result.get(key) or {} for key in ("parent", "child", "report"))
    data, seeded = found.get("data") or lineage, (result.get("plan") or {}).get("frontier") or found
    return {
        "detector": name,
        "time": time,
        "cycle": cycle["id"],
        **{key: cycle[key] for key in TOLD},
        "lineage": {
            "parent_hash": parent.get("hash"),
            "parent_version": parent.get("version"),
            "child_hash": child.get("hash"),
            "child_version": child.get("version"),
            "criterion": found.get("criterion", lineage.get("criterion")),
            "seed": seeded.get("seed", lineage.get("seed")),
            **{key: data.get(key) for key in DATA},
        },
        **{key: result.get(key) for key in ("parent", "child", "best_reachable", "plan", "gate")},
        **{key: found.get(key) for key in ("removed", "levers", "cost", "sensors")},
        "stages": result.get("stages") or {},
    }
