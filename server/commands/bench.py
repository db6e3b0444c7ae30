"""`prunewatch bench`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from detectors.errors import InvalidInputError, PrunewatchError
from server.commands.credentials import credentials
from server.commands.options import quantity, require_hub
from server.commands.plot import picture_format
from server.commands.progress import progress
from server.config import split_address
from server.csv_input import read_csv
from server.quantities import parse_duration

if TYPE_CHECKING:
    from server.bench.load import Load
    from server.bench.session import Bench
    from server.csv_input import Table

INTERRUPTED = 130
USUAL_LIMIT = 0.1
SWEEP_DURATION, SWEEP_WARM_UP = 5.0, 1.0
DURATION, WARM_UP = 10.0, 2.0


def span(text: str) -> float:
    """Seconds of a duration that may be none.

    >>> span("0"), span("2s")
    (0.0, 2.0)
    """
    return 0.0 if text.strip() == "0" else parse_duration(text)


def bench(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The prunewatch to send points to.")],
    detector: Annotated[
        str | None,
        typer.Argument(metavar="DETECTOR", help="Which detector (default: the only one).", show_default=False),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            metavar="R",
            help="Open loop: so many points a second, whatever comes back (default: a closed loop). "
            "With --sweep: the first rate.",
            show_default=False,
        ),
    ] = None,
    arrivals: Annotated[
        Literal["poisson", "constant"],
        typer.Option(metavar="KIND", help="When messages of an open loop are due: `poisson` or `constant`."),
    ] = "poisson",
    concurrency: Annotated[
        int,
        typer.Option(min=1, max=10_000, metavar="N", help="Streams; in a closed loop with --unary, callers."),
    ] = 8,
    unary: Annotated[bool, typer.Option("--unary", help="A call for each message, instead of streams.")] = False,
    series: Annotated[int, typer.Option(min=1, max=65_536, metavar="N", help="Series in each message.")] = 1,
    points: Annotated[
        int, typer.Option(min=1, max=65_536, metavar="N", help="Points of each of them in each message.")
    ] = 1,
    duration: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration),
            metavar="TIME",
            help="How long to measure (default: 10s).",
            show_default=False,
        ),
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(
            parser=quantity(span),
            metavar="TIME",
            help="The same load before, not measured; 0: none (default: 2s).",
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Raise the rate until it is too much; steps of 5s unless said.")
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            parser=quantity(parse_duration),
            metavar="TIME",
            help="Of a sweep: the 99th percentile of latency that is too much (default: 100ms).",
            show_default=False,
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Go through all that real points do, under new series: they are kept and learned from!"
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of points to send (default: random walks).", show_default=False),
    ] = None,
    features: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, metavar="F", help="Numbers of a point, for a device: it does not tell.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=quantity(parse_duration), metavar="TIME", help="When a message without an answer is given up."
        ),
    ] = "10s",  # type: ignore[assignment]  # parsed like what the user writes
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, metavar="N", help="Of arrivals and random walks.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write everything into this file.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.", show_default=False)
    ] = None,
) -> None:
    """Measure how many points a running service scores, and how soon, with load that you choose.

    A closed loop sends each message when the one before is answered: as fast as it goes, with --concurrency at once.
    An open loop (--rate) sends when it is time to, as real sources do, and counts the time from then on: when the
    service stalls, messages that were due meanwhile count as late. --sweep raises the rate until the 99th percentile
    exceeds --limit or less than 95 % is answered, and names the highest rate that was kept.

    Points are scored EPHEMERAL: from a fresh state that lives as long as a stream (with --unary: as a call), and
    nothing of the detector changes. Run it on another machine than the service, or both compete for the same cores.

        prunewatch bench --server 127.0.0.1:8001
        prunewatch bench pump --server 127.0.0.1:8001 --rate 5000 --series 10 --duration 30s --plot latency.png
        prunewatch bench pump --server 127.0.0.1:8001 --sweep --limit 20ms --series 64 --json sweep.json
        prunewatch bench pump --server 127.0.0.1:8001 --unary --concurrency 1 --data test.csv
    """
    _check_server(server)
    kind = picture_format(plot) if plot else None
    if plot:
        require_hub("matplotlib")
    if json_file:
        _check_file(json_file)
    if limit is not None and not sweep:
        raise InvalidInputError("only a sweep has a limit.", field="--limit", hint="Add --sweep, or leave it out.")
    from server.bench.load import Load

    usual_duration, usual_warm_up = (SWEEP_DURATION, SWEEP_WARM_UP) if sweep else (DURATION, WARM_UP)
    load = Load(
        rate=rate,
        arrivals=arrivals,
        concurrency=concurrency,
        unary=unary,
        series=series,
        points=points,
        duration=duration or usual_duration,
        warm_up=usual_warm_up if warm_up is None else warm_up,
        live=live,
        timeout=timeout,
        seed=seed,
    )
    _check_points(load)
    table = read_csv(data) if data else None
    found = _measured(server, detector, load, (limit or USUAL_LIMIT) if sweep else None, table, features)
    if json_file:
        json_file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if plot and kind:
        from server.bench.plot import draw

        draw(found, plot, kind)
    from server.commands.bench_tables import shown

    shown(found)
    if found["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _measured(
    server: str, detector: str | None, load: Load, limit: float | None, table: Table | None, features: int | None
) -> dict[str, Any]:
    """Runs the load, or the sweep where there is a limit; what --json writes."""
    from prunewatch.client import ServiceError
    from server.bench.described import described, swept, target_json
    from server.bench.run import run_precisely
    from server.bench.session import connected

    async def work() -> dict[str, Any]:
        async with connected(server, detector, table=table, n_features=features, credentials=credentials()) as bench:
            if load.live:
                _say_live(bench, load)
            with progress() as report, _interruptible(bench):
                if limit is None:
                    outcome = await bench.measure(load, report)
                    told = {"run": described(outcome), "interrupted": outcome.interrupted}
                else:
                    found = await bench.sweep(load, limit, report)
                    told = {"sweep": swept(found), "interrupted": bench.stopped}
                return {**target_json(server, bench.target), **told}

    try:
        return run_precisely(work())
    except ServiceError as error:
        raise PrunewatchError(error.problem, field=error.field, hint=error.hint) from error


def _say_live(bench: Bench, load: Load) -> None:
    typer.echo(
        f"LIVE: {bench.target.detector} gets new series {bench.prefix}*, {load.series} for each stream or caller, and "
        "they stay. Their points go into its history and are learned from, and what is flagged is announced.",
        err=True,
    )


@contextmanager
def _interruptible(bench: Bench) -> Iterator[None]:
    """Inside the block, Ctrl-C ends the load instead of the program."""
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread: nobody can press it
        loop.add_signal_handler(signal.SIGINT, bench.stop)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)


def _check_server(server: str) -> None:
    try:
        split_address(server)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", field="--server") from error


def _check_points(load: Load) -> None:
    from server.scoring import MAX_POINTS

    if load.message_points > MAX_POINTS:
        raise InvalidInputError(
            f"{load.series} series of {load.points} points are {load.message_points:,} points in a message.",
            field="--series, --points",
            hint=f"A message has {MAX_POINTS:,} at most.",
        )


def _check_file(file: Path) -> None:
    if file.is_dir():
        raise InvalidInputError("is a folder.", field=str(file), hint="Name a file.")
    if not file.parent.is_dir():
        raise InvalidInputError("there is no such folder.", field=str(file.parent), hint="Make it first.")
