"""`prunewatch frontier`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from detectors.errors import InvalidInputError
from pruning.frontier_facts import MOST_POINTS, POINTS
from server.commands.options import (
    BatchOption,
    DeviceClassOption,
    JsonOption,
    NameArgument,
    SeedOption,
    ServerOption,
    StoreOption,
    asked_batch,
    require_hub,
    store_path,
)
from server.commands.plot import picture_format
from server.commands.progress import Report, progress
from server.commands.tables import console, duration_text, units_text
from server.config import DEFAULT_BATCH, HUB, load_detector_config
from server.csv_input import read_csv
from server.quantities import format_size


@dataclass(frozen=True)
class Sought:
    """A frontier as it was asked for; `batch`, `points` and `seed` are None where nothing is said of them."""

    name: str
    device_class: str
    batch: int | None
    points: int | None
    seed: int | None
    rebuild: bool

    def require_shown(self, data: Path | None = None) -> None:
        """Refuses options that say how a frontier is built, where one is kept and would be shown instead.

        Raises:
            InvalidInputError: names them.
        """
        given = {"--data": data, "--points": self.points, "--seed": self.seed}
        if fields := [name for name, value in given.items() if value is not None]:
            raise InvalidInputError(
                "a frontier is kept already, and may have been built otherwise.",
                field=", ".join(fields),
                hint="Leave it out to see that one, or add --rebuild.",
            )


def frontier(
    name: NameArgument,
    device_class: DeviceClassOption = HUB,
    batch: BatchOption = None,
    points: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_POINTS,
            metavar="N",
            help=f"Children to build at most (default: {POINTS}).",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV of recent normal points, instead of those it has kept.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw it: .png, .svg or .pdf.", show_default=False),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it anew, even where there is one.")] = False,
    seed: SeedOption = None,
    store: StoreOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a detector can be pruned to: time, bytes, error and agreement with its parent, from wide to narrow.

    The first time it is built: children from the dense parent down to the floor, each fine-tuned, measured and compared
    with the parent. That takes a few minutes, then it is kept, and `prunewatch prune` picks from it in seconds.

        prunewatch frontier pump
        prunewatch frontier pump --plot pump.svg --batch 64

    What serves does not change. How one is built that is kept already (--data, --points, --seed) is only said with
    --rebuild.
    """
    root = store_path(store, server)
    kind = picture_format(plot) if plot else None
    if kind:
        require_hub("matplotlib")
    if data is not None and server is not None:
        raise InvalidInputError(
            "a server builds it from the points that it has kept.", field="--data", hint="Leave it out."
        )
    asked_batch(batch, device_class, server)
    sought = Sought(name, device_class, batch, points, seed, rebuild)
    with progress() as report:
        if server is None:
            shown = frontier_in_store(root, sought, data, report)
        else:
            from server.commands import remote

            shown = remote.ask(server, lambda client: remote.frontier(client, sought, report))
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        _print(shown)
    if plot and kind:
        from server.commands.frontier_plot import draw

        draw(shown, plot, kind)
        typer.echo(f"{plot}: {len(shown['points'])} children drawn", err=True)


def frontier_in_store(root: Path, sought: Sought, data: Path | None, report: Report) -> dict[str, Any]:
    """The frontier that the store has, or the one that is built in this process."""
    require_hub("sqlalchemy", "pyarrow")
    from server.frontiers import read_frontier
    from server.history import History
    from server.jobs import frontier_job, parent_version
    from server.store import Store

    name, device_class, batch = sought.name, sought.device_class, sought.batch or DEFAULT_BATCH
    with Store.open(root, create=False) as store:
        config = load_detector_config(store.catalog.get_detector(name).config)
        parent = parent_version(store, name, device_class).parent_hash
        stored = None if sought.rebuild else read_frontier(store.root, parent, batch)
        if stored is not None:
            sought.require_shown(data)
            return stored.shown(name, device_class)
        require_hub("torch", "onnx", "safetensors")
        if data is None:
            history = store.history(name).paths()
        else:
            features = store.read_bundle(parent).manifest.features
            table = read_csv(data).in_time_order()[0].in_order_of(features)
            history = [History(store.staging / name, features).add_points(table.stamps, table.values)]
        job = frontier_job(
            store,
            name,
            config,
            device_class,
            batch=batch,
            history=history,
            points=sought.points or POINTS,
            seed=sought.seed,
        )
        from server.trainer import run_job  # torch takes a second: everything above is told without it

        return run_job(job, report)


def _print(shown: Mapping[str, Any]) -> None:
    built = datetime.fromtimestamp(shown["created_seconds"], UTC)
    out = console()
    out.print(
        f"{shown['name']} on {shown['device_class']}: children of version {shown['parent']['version']}, "
        f"{shown['batch']} points a step, built {built:%Y-%m-%d %H:%M} UTC",
        markup=False,
    )
    out.print(frontier_table(shown))


def frontier_table(shown: Mapping[str, Any]) -> Table:
    """The parent and its children, widest first."""
    table = Table(
        "child", "units", "speed-up", "p50", "p99", "bytes", "error", "agreement", "injected", "front",
        caption="error: times the parent's; agreement: alarms shared; injected: change of average precision",
        caption_justify="left",
    )  # fmt: skip
    parent = shown["parent"]
    table.add_row("parent", units_text(parent["units"]), "1.0 x", *_sizes(parent), "1.00", "1.00", "", "")
    for place, point in enumerate(shown["points"], start=1):
        structure = f"{point['structure']}; " if point["structure"] else ""
        table.add_row(
            str(place),
            f"{structure}{units_text(point['units'])}",
            f"{point['speedup']:.1f} x",
            *_sizes(point),
            f"{point['error_ratio']:.2f}",
            f"{point['agreement']:.2f}",
            f"{point['injected_change']:+.3f}",
            "yes" if point["on_front"] else "",
        )
    return table


def _sizes(made: Mapping[str, Any]) -> tuple[str, str, str]:
    return duration_text(made["p50_seconds"]), duration_text(made["p99_seconds"]), format_size(made["bytes"])
