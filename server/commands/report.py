"""`prunewatch report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import CorruptBundleError, NotFoundError, PreconditionError
from server.commands.options import (
    DeviceClassOption,
    JsonOption,
    NameArgument,
    ServerOption,
    StoreOption,
    require_hub,
    store_path,
)
from server.commands.tables import (
    before_and_after,
    console,
    costs_table,
    duration_text,
    gate_table,
    in_order,
    levers_text,
    plan_table,
    plan_text,
    printable,
    removed_table,
    sensors_table,
    stamp_text,
)
from server.config import HUB

if TYPE_CHECKING:
    from server.store import Store

CYCLES = 1000  # the newest, that are looked through
DATA = ("data_rows", "data_first_stamp", "data_last_stamp")
STAGES = ("update", "frontier", "search", "prune", "fine-tune", "calibrate", "measure", "gate", "report")
PROVED = {"probation": "It is on probation", "kept": "It was kept", "rolled_back": "It was rolled back"}
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


def report(
    name: NameArgument,
    device_class: DeviceClassOption = HUB,
    cycle: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="ID",
            help="This cycle, of any device class, whatever became of it (default: the newest that built a child).",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report what a cycle did: what it planned and removed, what that responded to and cost, and what the gate said.

    Units are numbered as in the parent. The table of sensors says what the child would find without each of them: a
    suggestion, never automatic.

        prunewatch report pump
        prunewatch report pump --cycle 12 --json | jq .removed
    """
    root = store_path(store, server)
    if server is None:
        described = report_in_store(root, name, device_class, cycle)
    else:
        from server.commands import remote

        described = remote.ask(server, lambda client: remote.report(client, name, device_class, cycle))
    if as_json:
        typer.echo(json.dumps(described))
    else:
        _print(described)


def report_in_store(root: Path, name: str, device_class: str, cycle: int | None) -> dict[str, Any]:
    """The report of a cycle from a store that nobody else uses.

    Args:
        root: The store.
        name: The detector.
        device_class: Whose newest child is reported.
        cycle: Instead: this cycle.

    Raises:
        NotFoundError: no such detector or cycle.
        PreconditionError: no cycle has built a child for the class.
    """
    require_hub("sqlalchemy")
    from server.cycle_watch import cycle_states
    from server.store import Store

    with Store.open(root, create=False) as store:
        detector = store.catalog.get_detector(name)
        cycles = [
            {
                **asdict(it.row),
                "started_seconds": it.row.started,
                "ended_seconds": it.row.ended,
                "result": it.row.result or None,
                "adoption": it.adoption.state if it.adoption else "",
                "adoption_reason": it.adoption.reason if it.adoption else "",
            }
            for it in cycle_states(store.catalog, name, CYCLES)
        ]
        chosen = choose(name, cycles, device_class, cycle)
        child = (chosen["result"] or {}).get("child") or {}
        return reported(name, detector.config.get("time", "stamp"), chosen, _lineage(store, child.get("hash")))


def _lineage(store: Store, child: str | None) -> dict[str, Any]:
    """What the manifest of a child says of where it came from; nothing where there is no bundle."""
    try:
        return store.read_bundle(child).manifest.lineage.model_dump() if child else {}
    except CorruptBundleError:
        return {}


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


def _print(described: Mapping[str, Any]) -> None:
    out = console()
    for line in (_headline(described), _lineage_text(described)):
        out.print(line, markup=False)
    if described["parent"]:
        out.print(before_and_after(described))
    if described["plan"]:
        untrained = [it["group"] for it in described["removed"] or () if not it.get("trained", True)]
        out.print(plan_table(described["plan"], described["parent"]["units"], untrained))
        out.print(plan_text(described, untrained), markup=False)
    if described["removed"] is None and described["gate"]:
        out.print("What was removed is not known: an older version ran this cycle.", markup=False)
    if described["removed"] is not None:
        out.print(removed_table(described["removed"]))
        if described["levers"]:
            out.print(f"Pulled: {levers_text(described['levers'])}.", markup=False)
        out.print(costs_table(described))
    if described["gate"]:
        out.print(gate_table(described["gate"]))
    if sensors := described["sensors"]:
        if sensors["skipped"]:
            out.print(f"Sensors were not tried: {sensors['skipped']}.", markup=False)
        else:
            out.print(
                f"What sensors are worth: the change of average precision ({sensors['average_precision']:.3f}) on "
                f"{sensors['events']} injected anomalies without each. This is {sensors['note']}.",
                markup=False,
            )
            out.print(sensors_table(sensors))
    if described["stages"]:
        seconds = in_order(described["stages"], STAGES)
        took = ", ".join(f"{stage} {duration_text(it)}" for stage, it in seconds.items())
        out.print(f"Time by stage: {took}.", markup=False)


def _headline(described: Mapping[str, Any]) -> str:
    version = f" as version {described['child']['version']}" if described["outcome"] == "adopted" else ""
    begun = datetime.fromtimestamp(described["started_seconds"], UTC)
    reason = f": {described['reason']}" if described["reason"] else ""
    cause = f": {described['cause']}" if described["cause"] else ""
    proved, why = PROVED.get(described["adoption"], ""), described["adoption_reason"]
    return printable(
        f"{described['detector']}, {described['device_class']}: cycle {described['cycle']} of {begun:%Y-%m-%d %H:%M} "
        f"({described['trigger']}{cause}): {described['outcome']}{version}{reason or '.'}"
        + (f" {proved}{f': {why}' if why else '.'}" if proved else "")
    )


def _lineage_text(described: Mapping[str, Any]) -> str:
    lineage = described["lineage"]
    if not lineage["parent_hash"]:
        return "  nothing else is known"
    made = [f"from {_bundle(lineage['parent_hash'])} of version {lineage['parent_version']}"]
    if lineage["child_hash"]:
        made.append(f"made {_bundle(lineage['child_hash'])}")
    if criteria := _criteria(described):
        made.append(f"units chosen by {criteria}")
    if lineage["seed"] is not None:
        made.append(f"seed {lineage['seed']}")
    if lineage["data_rows"]:
        stamps = [lineage["data_first_stamp"], lineage["data_last_stamp"]]
        known = [str(it) if described["time"] == "index" else stamp_text(it) for it in stamps if it is not None]
        span = f" from {known[0]} to {known[1]}" if len(known) == len(stamps) else ""
        made.append(f"{lineage['data_rows']:,} points{span}")
    return f"  {', '.join(made)}"


def _criteria(described: Mapping[str, Any]) -> str:
    """By what units were chosen: some groups have a criterion of their own."""
    used = dict.fromkeys(it["criterion"] for it in described["removed"] or () if it["criterion"])
    return " and ".join(used) or described["lineage"]["criterion"] or ""


def _bundle(bundle_hash: str) -> str:
    return bundle_hash[:12]
