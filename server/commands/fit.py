"""`prunewatch fit`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from detectors.errors import InvalidInputError, NotFoundError
from server.commands.options import (
    ConfigOption,
    NameArgument,
    P50Option,
    P99Option,
    SeedOption,
    ServerOption,
    SizeOption,
    SpeedupOption,
    StoreOption,
    asked_budget,
    require_hub,
    store_path,
)
from server.commands.progress import Report, progress
from server.commands.tables import console, units_text
from server.config import (
    DEFAULT_BATCH,
    HUB,
    Budget,
    NetworkKind,
    Settings,
    check_detector_name,
    load_detector_config,
    load_settings,
)
from server.csv_input import Table, read_csv
from server.quantities import format_size

NetworkOption = Annotated[
    NetworkKind | None,
    typer.Option(help="What learns; docs/networks.md says which to choose (default: lstm).", show_default=False),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="NAME",
        help="Begin with the weights of this detector, fitted to a machine of the same kind: a fraction of the time.",
        show_default=False,
    ),
]
PruneOption = Annotated[
    bool,
    typer.Option(
        "--prune-while-fitting",
        help="Take units out while it learns, until a step meets the budget given with it; no dense parent is kept.",
    ),
]


def fit(
    name: NameArgument,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of normal points to learn from, oldest first.", show_default=False),
    ] = None,
    from_stream: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Learn from the first N points streamed to the server.", show_default=False
        ),
    ] = None,
    network: NetworkOption = None,
    start: FromOption = None,
    prune_while_fitting: PruneOption = False,
    p99: P99Option = None,
    p50: P50Option = None,
    speedup: SpeedupOption = None,
    size: SizeOption = None,
    store: StoreOption = None,
    server: ServerOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> None:
    """Learn what is normal from points that are (mostly) normal.

    The CSV has a header; its first column is the time (ISO-8601 or an integer), every other column is a feature, and a
    column called `label` is ignored. A name that exists already gets a new version. The points are kept, so that
    `prunewatch prune` can fine-tune on them. Rows whose stamp repeats or goes back are left out, as a stream would.

        prunewatch fit pump --data train.csv
        prunewatch fit pump --data train.csv --network autoencoder --server 127.0.0.1:8001
        prunewatch fit pump2 --data pump2.csv --from pump
        prunewatch fit pump --data train.csv --prune-while-fitting --speedup 4
        prunewatch fit pump --from-stream 5000 --server 127.0.0.1:8001
    """
    check_detector_name(name)
    root, settings = store_path(store, server), load_settings(config) if config else None
    wanted = configured(name, settings, network, seed)
    batch = settings.device_classes[HUB].batch if settings else DEFAULT_BATCH
    limits = (p99, p50, speedup, size)
    budget = asked_budget(*limits, batch) if prune_while_fitting else None
    _check_together(limits, budget, data=data, start=start, server=server)
    if data is not None and from_stream is None:
        _fit(root, server, name, read_csv(data), wanted, batch=batch, start=start, budget=budget)
    elif from_stream is not None and data is None:
        if start is not None:
            raise InvalidInputError("is for fits on a file.", field="--from", hint="Give --data.")
        _learn_from_stream(server, name, from_stream, wanted)
    else:
        raise InvalidInputError("give one of the two.", field="--data, --from-stream")


def _check_together(
    limits: tuple[float | None, ...],
    budget: Budget | None,
    *,
    data: Path | None,
    start: str | None,
    server: str | None,
) -> None:
    """Options that only go with others."""
    if budget is None:
        if any(limit is not None for limit in limits):
            raise InvalidInputError(
                "a fit has no budget.",
                field="--p99, --p50, --speedup, --size",
                hint="Add --prune-while-fitting, or fit first and prune then.",
            )
        return
    if data is None or start is not None or server is not None:
        raise InvalidInputError(
            "works on a file and a store: it does not go with --from-stream, --from or --server.",
            field="--prune-while-fitting",
            hint="Give --data alone; on a server, fit first and prune then.",
        )


def _fit(
    root: Path,
    server: str | None,
    name: str,
    table: Table,
    wanted: Mapping[str, Any],
    *,
    batch: int,
    start: str | None,
    budget: Budget | None,
) -> None:
    table, left_out = table.in_time_order(keep_repeated=wanted.get("duplicate") == "score" and server is None)
    if left_out:
        console().print(
            f"{table.path}: {left_out} of {left_out + len(table)} rows left out: their stamps are not later"
        )
    with progress() as report:
        if server is None:
            result = fit_in_store(root, name, table, wanted, batch=batch, report=report, start=start, budget=budget)
        else:
            from server.commands import remote

            result = remote.ask(server, lambda client: remote.fit(client, name, table, wanted, report, start))
    parent = result["parent"]
    if dense := result.get("dense"):
        console().print(
            f"pruned while fitting: {units_text(dense['units'])} -> {units_text(parent['units'])}, "
            f"{dense['p50_seconds'] / parent['p50_seconds']:.1f} times as fast at {batch} points a step"
        )
    console().print(
        f"{name} version {parent['version']} fitted on {result['rows']:,} points: {units_text(parent['units'])}, "
        f"{parent['parameters']:,} parameters, {format_size(parent['bytes'])}"
    )


def _learn_from_stream(server: str | None, name: str, points: int, wanted: Mapping[str, Any]) -> None:
    if server is None:
        raise InvalidInputError("points are streamed to a server.", field="--from-stream", hint="Add --server.")
    from server.commands import remote

    remote.ask(server, lambda client: remote.learn_from_stream(client, name, points, wanted))
    console().print(f"{name} learns: it fits itself when {points:,} points have been streamed to it at {server}")


def configured(name: str, settings: Settings | None, network: str | None, seed: int | None) -> dict[str, Any]:
    """What the settings and the command line say about a detector, as fields of `DetectorConfig`."""
    fields: dict[str, Any] = {}
    if settings is not None:
        if name not in settings.detectors:
            known = ", ".join(settings.detectors) or "none"
            raise NotFoundError(f"there is no detector {name!r}.", field="--config", hint=f"The file has: {known}.")
        fields = settings.detectors[name].model_dump(mode="json", exclude_unset=True)
    given = {"network": network, "seed": seed}
    return {**fields, **{key: value for key, value in given.items() if value is not None}}


def fit_in_store(
    root: Path,
    name: str,
    table: Table,
    wanted: Mapping[str, Any],
    *,
    batch: int,
    report: Report,
    start: str | None = None,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Fits in this process and publishes; a fit that fails leaves no trace."""
    require_hub("torch", "onnx", "safetensors", "sqlalchemy", "pyarrow")
    from server.history import History
    from server.jobs import configured_like, fit_job, start_hash
    from server.publish import publish_fit
    from server.store import Store

    with Store.open(root) as store:
        catalog = store.catalog
        known = {row.name: row for row in catalog.list_detectors()}.get(name)
        base = known.config if known else configured_like(catalog.get_detector(start).config) if start else {}
        config = load_detector_config({**base, **wanted})
        features = (known.features if known else None) or config.features or table.features
        table = table.in_order_of(features)
        segment = History(store.staging / name, features).add_points(table.stamps, table.values)
        version = catalog.next_version(name) if known else 1
        begin = start_hash(store, start) if start else None
        job = fit_job(store, name, config, features, [segment], version=version, batch=batch, start=begin)
        if budget is not None:
            job["budget"] = budget.for_trainer()
        from server.trainer import run_job  # torch takes a second: everything above is told without it

        result: dict[str, Any] = run_job(job, report)
        publish_fit(store, name, result, batch=batch, config=config)
        store.history(name).add_points(table.stamps, table.values)
    return result
