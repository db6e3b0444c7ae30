"""`prunewatch simulate`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table as Printed
from rich.text import Text

from detectors.errors import InvalidInputError
from server.commands.fit import NetworkOption, configured
from server.commands.options import (
    ConfigOption,
    JsonOption,
    P50Option,
    P99Option,
    SeedOption,
    SizeOption,
    SpeedupOption,
    quantity,
    require_hub,
)
from server.commands.plot import picture_format
from server.commands.progress import progress
from server.commands.tables import console, duration_text
from server.complaints import as_input_error
from server.config import (
    DEFAULT_BATCH,
    HUB,
    Budget,
    DetectorConfig,
    Settings,
    check_detector_name,
    load_detector_config,
    load_settings,
)
from server.csv_input import Table, is_integer, read_csv
from server.quantities import format_size, parse_duration

USUAL_NAME = "simulated"
TRAIN_SHARE = 0.3
"""Of the rows that are learned from where nothing else is said."""
CYCLES = 10
"""In all, where nothing else is said."""
USUAL_SPEEDUP = 4.0


def simulate(
    data: Annotated[Path, typer.Option(metavar="FILE", help="CSV of a series, oldest row first.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The detector; its settings come from --config, where that is given.")
    ] = USUAL_NAME,
    train_rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Fit to the first N rows (default: 30 % of them).", show_default=False),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="PERIOD",
            help='A cycle every so many rows or so much time of the series, e.g. "500 points" or 7d (default: ten '
            "cycles in all, unless the settings say when).",
            show_default=False,
        ),
    ] = None,
    drift: Annotated[bool, typer.Option("--drift", help="Begin a cycle on drift too.")] = False,
    shift: Annotated[
        int | None,
        typer.Option("--shift", metavar="ROWS", min=100, help="Learn what is flagged for most of so many rows."),
    ] = None,
    feedback: Annotated[
        bool,
        typer.Option("--feedback", help="Say of every alarm what the column `label` says, as `prunewatch feedback`."),
    ] = False,
    network: NetworkOption = None,
    p99: P99Option = None,
    p50: P50Option = None,
    speedup: SpeedupOption = None,
    size: SizeOption = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=65536, metavar="B", help="Points in a step (default: 256).", show_default=False),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration),
            metavar="TIME",
            help="Time between two rows where the file has integers instead of times (default: 1s).",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a series in minutes through the real loop: would pruning and fine-tuning have served you well?

    A detector is fitted to the first rows; the others are streamed to it through a service of its own in a temporary
    store, with the stamps of the file as its clock. Cycles begin by themselves, update, prune, pass the gate or do not,
    are adopted and watched, as they would be in production; the replay waits for each, as if it took no time. Beside it
    the first version scores the same rows, unchanged. Without a budget a step may take a quarter of the parent's time.
    A column `label` judges both; nothing is learned from it but with --feedback.

        prunewatch simulate --data series.csv --plot replay.svg
        prunewatch simulate --data series.csv --train-rows 2000 --every "1000 points" --speedup 4 --batch 64
        prunewatch simulate pump --data pump.csv --config prunewatch.yaml --json
    """
    check_detector_name(name)
    kind = picture_format(plot) if plot else None
    require_hub("torch", "onnx", "safetensors", "sqlalchemy", "pyarrow", *(["matplotlib"] if plot else []))
    table, left_out = read_csv(data).in_time_order()
    rows = _train_rows(train_rows, table)
    index = is_integer(table.stamp_text[0])
    if feedback and table.labels is None:
        raise InvalidInputError("has no column `label` to answer from.", field=str(data), hint="Leave --feedback out.")
    if step is not None and not index:
        raise InvalidInputError("the file has times of its own.", field="--step", hint="Leave it out.")
    settings = load_settings(config) if config else None
    wanted = configured(name, settings, network, seed) | {"features": table.features}
    wanted |= {"time": "index"} if index else {}
    detector = _looping(load_detector_config(wanted), every, drift=drift, shift=shift, rows=len(table) - rows)
    budget = _budget(settings, p99, p50, speedup, size, batch)
    from server.simulate import replay
    from server.simulate_quality import described

    with tempfile.TemporaryDirectory(prefix="prunewatch-simulate-") as folder, progress() as report:
        hub = _hub(settings, name, detector, budget, Path(folder) / "store")
        seconds = (1.0 if step is None else step) if index else None
        done = asyncio.run(
            replay(table, hub, name, train_rows=rows, step_seconds=seconds, answered=feedback, report=report)
        )
    if plot and kind:
        from server.simulate_plot import draw

        draw(done, plot, kind, dates=not index)
    found = described(done)
    if as_json:
        typer.echo(json.dumps({**found, "left_out": left_out}))
    else:
        _print(found)


def _train_rows(asked: int | None, table: Table) -> int:
    rows = round(TRAIN_SHARE * len(table)) if asked is None else asked
    if rows >= len(table):
        raise InvalidInputError(
            f"no rows are left to stream: the file has {len(table)}.", field="--train-rows", hint="Give less."
        )
    return rows


def _looping(
    detector: DetectorConfig, every: str | None, *, drift: bool, shift: int | None, rows: int
) -> DetectorConfig:
    """The detector with what is to begin its cycles; it is fitted to rows, not by itself."""
    schedule, triggers = detector.schedule, detector.triggers
    asked = every is not None or drift or schedule.prune_every or schedule.refit_every or triggers.drift
    if every is None and not asked:
        every = f"{max(1, rows // CYCLES)} points"
    fields = detector.model_dump()
    if every is not None:
        fields["schedule"]["prune_every"] = every
    if drift:
        fields["triggers"]["drift"] = True
    if shift is not None:
        fields["triggers"]["shift"] = shift
    try:
        return DetectorConfig.model_validate({**fields, "fit_after": None, "device_classes": [HUB]})
    except ValidationError as error:
        raise InvalidInputError(
            f"{every!r} is no period.", field="--every", hint='Write a duration like 7d, or "500 points".'
        ) from error


def _budget(
    settings: Settings | None,
    p99: float | None,
    p50: float | None,
    speedup: float | None,
    size: int | None,
    batch: int | None,
) -> Budget:
    """What a step may cost: as the command line says, else the settings, else a quarter of the parent's time."""
    known = settings.device_classes[HUB] if settings else Budget()
    limits: Mapping[str, float | None] = {"p99": p99, "p50": p50, "speedup": speedup, "size": size}
    points = batch or (known.batch if settings else DEFAULT_BATCH)
    if all(limit is None for limit in limits.values()):
        limits = known.model_dump(include=set(limits)) if known.is_set else {"speedup": USUAL_SPEEDUP}
    try:
        return Budget.model_validate({**limits, "batch": points})
    except ValidationError as error:
        raise as_input_error(error, Budget) from error


def _hub(settings: Settings | None, name: str, detector: DetectorConfig, budget: Budget, store: Path) -> Settings:
    """Settings of a hub with this detector alone, in a store of its own; it listens nowhere."""
    return (settings or load_settings()).model_copy(
        update={"store": store, "detectors": {name: detector}, "device_classes": {HUB: budget}}
    )


def _print(found: Mapping[str, Any]) -> None:
    out = console()
    loop, frozen = found["loop"], found["frozen"]
    out.print(f"{found['name']}: {loop['rows']:,} rows replayed in {found['seconds']:.0f} s", markup=False)
    out.print(_compared(loop, frozen))
    if found["cycles"]:
        out.print(_cycles(found))
    else:
        out.print("No cycle began.")
    out.print(_versions(found))


def _compared(loop: Mapping[str, Any], frozen: Mapping[str, Any]) -> Printed:
    table = Printed("", "with the loop", "first version, frozen")
    labelled = loop["events"] is not None

    def row(what: str, text: Any) -> None:
        table.add_row(what, text(loop), text(frozen))

    row(
        f"{'normal ' if labelled else ''}rows flagged, of 1,000",
        lambda it: f"{1000 * it['normal_flagged'] / max(it['normal_rows'], 1):.1f}",
    )
    if labelled:
        row("false alarms", lambda it: f"{it['false_alarms']:,}")
        row("labelled stretches found", lambda it: f"{it['events_found']} of {it['events']}")
    if loop["average_precision"] is not None:
        row("average precision", lambda it: f"{it['average_precision']:.3f}")
    row("mean score", lambda it: "-" if it["mean_score"] is None else f"{it['mean_score']:.2f}")
    return table


def _cycles(found: Mapping[str, Any]) -> Printed:
    table = Printed("at row", "trigger", "outcome", "version", "then", "why")
    for it in found["cycles"]:
        why = it["adoption_reason"] or it["reason"] or it["cause"]
        version = "" if it["version"] is None else str(it["version"])
        words = [(it[key] or "").replace("_", " ") for key in ("trigger", "outcome", "adoption")]
        table.add_row(f"{it['row']:,}", *words[:2], version, words[2], Text(why))
    return table


def _versions(found: Mapping[str, Any]) -> Printed:
    table = Printed("version", "scored from row", "bytes", "parameters", "p50", "p99")
    rows = {it["version"]: it["row"] for it in reversed(found["served"])}
    for it in found["versions"]:
        table.add_row(
            str(it["version"]),
            f"{rows[it['version']]:,}" if it["version"] in rows else "never",
            format_size(it["bytes"]),
            f"{it['parameters']:,}",
            duration_text(it["p50_seconds"]),
            duration_text(it["p99_seconds"]),
        )
    return table
