"""`prunewatch tune`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from detectors.errors import NotFoundError, StoreInUseError
from server.commands.fit import NetworkOption, configured, fit_in_store
from server.commands.options import (
    ConfigOption,
    JsonOption,
    NameArgument,
    P50Option,
    P99Option,
    SeedOption,
    SizeOption,
    StoreOption,
    quantity,
    require_hub,
    store_path,
)
from server.commands.plot import picture_format
from server.commands.progress import Report, progress
from server.commands.tables import console
from server.commands.tuned import print_fitted, print_tuned, suggested
from server.complaints import as_input_error
from server.config import (
    DEFAULT_BATCH,
    HUB,
    Budget,
    DetectorConfig,
    check_detector_name,
    load_detector_config,
    load_settings,
)
from server.csv_input import Table, read_csv
from server.quantities import parse_duration

if TYPE_CHECKING:
    from pruning.tuned import Tuned


@dataclass(frozen=True)
class Search:
    """One search as it was asked for.

    Attributes:
        table: Points in the order of time, columns as the detector takes them.
        config: The detector as it is now.
        budget: What a step may cost, and the batch that is measured.
        study: The file that remembers it.
        trials: How many more.
        timeout: Seconds after which no trial begins.
    """

    table: Table
    config: DetectorConfig
    budget: Budget
    study: Path
    trials: int
    timeout: float | None


def tune(
    name: NameArgument,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="CSV of normal points, as for `prunewatch fit`.", show_default=False)
    ],
    network: NetworkOption = None,
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="How many more settings to try.")] = 30,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration),
            metavar="TIME",
            help="Begin no trial after so long, e.g. 30m.",
            show_default=False,
        ),
    ] = None,
    p99: P99Option = None,
    p50: P50Option = None,
    size: SizeOption = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="B", help="Points in a step that is measured (default: 256).", show_default=False),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Remember the search in this SQLite file (default: DIR-studies/NAME-KIND.db beside the store DIR).",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the search into this picture (.png, .svg, .pdf).", show_default=False),
    ] = None,
    fit_best: Annotated[
        bool, typer.Option("--fit", help="Fit the detector with the best settings right away.")
    ] = False,
    config: ConfigOption = None,
    store: StoreOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for a detector's best settings, without labels and within a budget.

    A trial is the fit that `prunewatch fit` would make with other settings: window, widths, depth, bottleneck, learning
    rate, half-life of the smoothed error. It is judged by how well it finds anomalies that are injected into points it
    has not been trained on: average precision, the same anomalies for every trial. The first trial is what the detector
    has now (or the defaults). What misses the budget is measured, but not trained; what is worse than most trials
    before it is stopped half-way.

        prunewatch tune pump --data train.csv
        prunewatch tune pump --data train.csv --network autoencoder --p50 200us --batch 64 --timeout 30m --fit

    Run it again and it goes on where it was; Ctrl-C loses nothing but the trial that runs, and prints the best so far.
    """
    check_detector_name(name)
    root, settings = store_path(store), load_settings(config) if config else None
    try:
        default = settings.device_classes[HUB].batch if settings else DEFAULT_BATCH
        budget = Budget(p99=p99, p50=p50, size=size, batch=batch or default)
    except ValidationError as error:
        raise as_input_error(error, Budget) from error
    extra = ["matplotlib"] if plot else []
    require_hub("torch", "onnx", "safetensors", "sqlalchemy", "pyarrow", "optuna", *extra)
    picture = picture_format(plot) if plot else ""  # told now, not in half an hour
    wanted = configured(name, settings, network, seed)
    now, features = _known(root, name, create=fit_best)
    if wanted.get("network", now.get("network")) != now.get("network"):
        now = {**now, "options": {}}  # those are of another network
    detector = load_detector_config({**now, **wanted})
    table, _ = read_csv(data).in_time_order(keep_repeated=detector.duplicate == "score")
    table = table.in_order_of(features or detector.features or table.features)
    if study is None:
        study = root.with_name(f"{root.absolute().name}-studies") / f"{name}-{detector.network}.db"
        study.parent.mkdir(parents=True, exist_ok=True)
    search = Search(table, detector, budget, study, trials, timeout)
    with progress() as report:
        tuned = run_search(search, report)
    best = suggested(tuned.proposed.settings, detector) if tuned.proposed else None
    fitted = None
    if fit_best and best and not tuned.interrupted:
        with progress() as report:
            fitted = fit_in_store(root, name, table, {**wanted, **best}, batch=budget.batch, report=report)
    if as_json:
        found = {"detector": name, "study": str(study), **tuned.to_dict(), "config": best, "fitted": fitted}
        typer.echo(json.dumps(found))
    else:
        print_tuned(name, tuned, best, study)
        if fitted:
            print_fitted(name, fitted)
    if plot is not None and tuned.trials:
        from server.commands.tuned_plot import draw

        draw(tuned, plot, picture)
        if not as_json:
            console().print(f"Drawn into {plot}", markup=False)
    if tuned.interrupted:
        raise KeyboardInterrupt


def run_search(search: Search, report: Report) -> Tuned:
    """Tunes in this process, on the very points that a fit of the table would be made with."""
    import torch

    from detectors.training.fit import FitOptions
    from detectors.training.fitted import ErrorOptions
    from detectors.training.stretches import Stretches
    from pruning import outcome
    from pruning.attempt import TuneOptions
    from pruning.tuning import tune as tune_network
    from server.history import History
    from server.jobs import TRAINING_THREADS
    from server.stretches import read_stretches
    from server.trainer import MAXIMUM_ROWS

    torch.set_num_threads(TRAINING_THREADS)
    torch.set_flush_denormal(True)
    config, table, budget = search.config, search.table, search.budget
    with tempfile.TemporaryDirectory(prefix="prunewatch-") as folder:
        segment = History(Path(folder) / "points", table.features).add_points(table.stamps, table.values)
        stretches = read_stretches(
            [segment],
            table.features,
            imported=True,
            max_rows=MAXIMUM_ROWS,
            max_gap=config.gap_nanoseconds,
            keep_missing=config.missing == "carry",
            seed=config.seed,
        )
    return tune_network(
        config.network,
        Stretches.of([stretch.values for stretch in stretches], missing=config.missing),
        table.features,
        search.study,
        options=config.options,
        error=ErrorOptions(**config.error.model_dump(), missing=config.missing),
        learn=FitOptions(learning_rate=config.learning_rate, contamination=config.contamination),
        how=TuneOptions(
            trials=search.trials,
            timeout_seconds=search.timeout,
            seed=config.seed,
            budget=outcome.Budget(**budget.for_trainer()) if budget.is_set else None,  # type: ignore[arg-type]
            batch=budget.batch,
        ),
        progress=report,
    )


def _known(root: Path, name: str, *, create: bool) -> tuple[Mapping[str, Any], list[str] | None]:
    """Configuration and features of a detector in the store; nothing where there is none, or no store."""
    from server.store import Store

    try:
        with Store.open(root, create=create) as store:
            row = store.catalog.get_detector(name)
    except NotFoundError:
        return {}, None
    except StoreInUseError as error:
        raise StoreInUseError(
            error.problem,
            field=error.field,
            hint="Stop it, or name a folder that is empty with --store: without --fit nothing is written there.",
        ) from error
    return row.config, row.features
