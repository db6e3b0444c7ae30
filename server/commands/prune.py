"""`prunewatch prune`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from server.commands.options import (
    BatchOption,
    DeviceClassOption,
    JsonOption,
    NameArgument,
    P50Option,
    P99Option,
    SeedOption,
    ServerOption,
    SizeOption,
    SpeedupOption,
    StoreOption,
    asked_batch,
    asked_budget,
    require_hub,
    store_path,
)
from server.commands.progress import Report, progress
from server.commands.tables import before_and_after, console, duration_text, plan_table, plan_text, units_text
from server.config import HUB, Budget, load_detector_config
from server.csv_input import Table, read_csv
from server.quantities import format_size

REJECTED = 3
"""Exit code when nothing that meets the budget is good enough."""


@dataclass(frozen=True)
class Asked:
    """One cycle as it was asked for; `table` is None where the points that were kept are meant."""

    name: str
    device_class: str
    budget: Budget
    table: Table | None
    dry_run: bool
    seed: int | None
    fresh: bool = False


def prune(
    name: NameArgument,
    p99: P99Option = None,
    p50: P50Option = None,
    speedup: SpeedupOption = None,
    size: SizeOption = None,
    batch: BatchOption = None,
    device_class: DeviceClassOption = HUB,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV of recent normal points, instead of those it has kept.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be cut, and how fast it would be.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do not pick from a frontier (`prunewatch frontier`), run a whole cycle.")
    ] = False,
    seed: SeedOption = None,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a detector smaller until a step meets a budget, and let it serve if it is still good.

    One cycle: measure, choose which hidden units go, cut them out, repair, fine-tune against the parent, calibrate,
    measure the result, and compare error, alarms and injected anomalies with the parent's. The parent is kept. Give at
    least one limit; several are met together.

        prunewatch prune pump --speedup 4
        prunewatch prune pump --p99 2ms --batch 64 --size 64KiB --json

    Exit code: 0 adopted (or planned), 3 rejected; then what serves has not changed.
    """
    root = store_path(store, server)
    points = asked_batch(batch, device_class, server)
    budget = asked_budget(p99, p50, speedup, size, points)
    table = read_csv(data).in_time_order()[0] if data else None
    asked = Asked(name, device_class, budget, table, dry_run, seed, fresh)
    with progress() as report:
        if server is None:
            result = prune_in_store(root, asked, report)
        else:
            from server.commands import remote

            result = remote.ask(server, lambda client: remote.prune(client, asked, batch, report))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(name, result)
    if result["outcome"] == "rejected":
        raise typer.Exit(REJECTED)


def _print(name: str, result: dict[str, Any]) -> None:
    out = console()
    version = f" as version {result['child']['version']}" if result["outcome"] == "adopted" else ""
    out.print(f"{name}: {result['outcome']}{version}. {result['reason']}".rstrip(), markup=False)
    if result["outcome"] == "adopted" and (place := (result.get("plan") or {}).get("frontier")):
        out.print(f"Picked from the frontier: child {place['point']} of {place['points']}.", markup=False)
    out.print(before_and_after(result))
    if result["outcome"] == "planned" and result.get("plan"):
        out.print(plan_table(result["plan"], result["parent"]["units"]))
        out.print(plan_text(result), markup=False)
    if best := result.get("best_reachable"):
        out.print(
            f"Best reachable: p50 {duration_text(best['p50_seconds'])}, p99 {duration_text(best['p99_seconds'])}, "
            f"{format_size(best['bytes'])} with {units_text(best['units'])}. {best['hint']}",
            markup=False,
        )


def prune_in_store(root: Path, asked: Asked, report: Report) -> dict[str, Any]:
    """Runs a cycle in this process, publishes what it adopted, and writes it into the catalog's book."""
    require_hub("torch", "onnx", "safetensors", "sqlalchemy", "pyarrow")
    from server.history import History
    from server.jobs import cycle_job, parent_version
    from server.publish import publish_cycle, require_unpinned
    from server.store import Store

    name, device_class, table = asked.name, asked.device_class, asked.table
    with Store.open(root, create=False) as store:
        catalog = store.catalog
        config = load_detector_config(catalog.get_detector(name).config)
        if not asked.dry_run:
            require_unpinned(catalog, name, device_class)
        parent = store.read_bundle(parent_version(store, name, device_class).parent_hash).manifest
        if table is None:
            history, newer = store.history(name).paths(), False
        else:
            table = table.in_order_of(parent.features)
            history = [History(store.staging / name, parent.features).add_points(table.stamps, table.values)]
            newer = int(table.stamps[-1]) > (parent.lineage.data_last_stamp or 0)
        job = cycle_job(
            store,
            name,
            config,
            device_class,
            budget=asked.budget,
            history=history,
            update_parent=newer,
            dry_run=asked.dry_run,
            fresh=asked.fresh,
            seed=asked.seed,
        )
        from server.trainer import run_job  # torch takes a second: everything above is told without it

        cycle = catalog.begin_cycle(name, device_class, "manual")
        try:
            result: dict[str, Any] = run_job(job, report)
            publish_cycle(store, name, device_class, result, batch=asked.budget.batch, cycle=cycle)
        except BaseException as error:  # Ctrl-C too: nothing else would end it until the store is opened again
            catalog.end_cycle(cycle, "failed", str(error) or "it was interrupted.")
            raise
        catalog.end_cycle(cycle, result["outcome"], result["reason"], result)
    return result
