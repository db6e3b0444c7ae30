"""`prunewatch report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import CorruptBundleError
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
from server.reports import choose, reported

if TYPE_CHECKING:
    from server.store import Store

CYCLES = 1000  # the newest, that are looked through
STAGES = ("update", "frontier", "search", "prune", "fine-tune", "calibrate", "measure", "gate", "report")
PROVED = {"probation": "It is on probation", "kept": "It was kept", "rolled_back": "It was rolled back"}


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
