"""A connection over which one load after another is measured: what the command and the benchmarks use."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from detectors.errors import InvalidInputError
from prunewatch.client import Client
from prunewatch.credentials import Credentials
from prunewatch.prepared import PreparedScoring
from server.bench.load import Load
from server.bench.messages import Messages, Values, random_walk, rows_wanted, spread
from server.bench.outcome import Outcome
from server.bench.run import Progress, Run
from server.bench.sweep import Sweep, sweep
from server.bench.target import Target, find, require_answer
from server.csv_input import Table

CALIBRATION_SECONDS = 2.0
FIRST_SHARE = 0.25  # of what a closed loop gets, to begin a sweep with
PATIENCE = 4.0  # limits of latency that a step of a sweep waits for its last answers


class Bench:
    """Measures loads against one detector of one service; `connected` makes it.

    Args:
        scoring: The connection.
        target: The detector.
        n_features: Numbers of each point.
        rows: [N, F] of points to send; None: random walks.
    """

    def __init__(self, scoring: PreparedScoring, target: Target, n_features: int, rows: Values | None) -> None:
        self.target = target
        self.prefix = f"bench-{secrets.token_hex(3)}-"
        """Of the names of series, the LIVE ones too."""
        self._scoring = scoring
        self._n_features = n_features
        self._rows = rows
        self._run: Run | None = None
        self.stopped = False
        """`stop` was called."""

    async def measure(self, load: Load, report: Progress | None = None) -> Outcome:
        """Sends a load, and waits for the last answers.

        Raises:
            PrunewatchError: the service does not take such messages.
        """
        messages = self._messages(load)
        await require_answer(self._scoring, messages, load.timeout)
        self._run = Run(self._scoring, load, messages, report)
        if self.stopped:
            self._run.stop()
        return await self._run.run()

    async def sweep(self, load: Load, limit_seconds: float, report: Progress | None = None) -> Sweep:
        """Looks for the highest rate whose 99th percentile of latency keeps a limit.

        Args:
            load: `rate` is the first; None: a quarter of what a closed loop gets.
            limit_seconds: Of latency since a message was due.
            report: Told of progress; each rate is a stage.
        """
        load = replace(load, timeout=min(load.timeout, max(1.0, PATIENCE * limit_seconds)))

        async def at(rate: float) -> Outcome:
            return await self.measure(replace(load, rate=rate), _named(f"{rate:,.0f}/s", report))

        first = load.rate
        if first is None:
            closed = await self.measure(replace(load, duration=CALIBRATION_SECONDS), _named("closed loop", report))
            first = max(FIRST_SHARE * closed.answered_rate, float(load.message_points))
        return await sweep(at, first, limit_seconds)

    def stop(self) -> None:
        """Ends what runs, and whatever would follow; what is there is given."""
        self.stopped = True
        if self._run is not None:
            self._run.stop()

    def _messages(self, load: Load) -> Messages:
        if self._rows is None:
            values = random_walk(rows_wanted(load, self._n_features), load.series, self._n_features, load.seed)
        else:
            values = spread(self._rows, load)
        return Messages(load, self.target.detector, values, stamped=self.target.stamped, prefix=self.prefix)


def _named(stage: str, report: Progress | None) -> Progress | None:
    """Reports everything as one stage."""
    return report and (lambda _, done, message: report(stage, done, message))


@asynccontextmanager
async def connected(
    address: str,
    detector: str | None = None,
    *,
    table: Table | None = None,
    n_features: int | None = None,
    credentials: Credentials | None = None,
) -> AsyncIterator[Bench]:
    """Asks a service for a detector, and connects to it.

    Args:
        address: `HOST:PORT`.
        detector: Its name; None: the only one.
        table: Points to send; None: random walks.
        n_features: Numbers of each point, where neither the service nor `table` says it.
        credentials: A token, TLS, a certificate; None: plain text.

    Raises:
        PrunewatchError: there is no such detector, it can not score, or takes other features than `table` has.
        ServiceError: what the service answered, or that it can not be reached.
    """
    async with Client(address, credentials=credentials) as client:
        target = await find(client, detector)
    if target.features is not None and table is not None:
        table = table.in_order_of(target.features)
    known = target.features if table is None else table.features
    if known is None and n_features is None:
        raise InvalidInputError(
            "this is a device, which does not tell how many features a point has.",
            field="--features",
            hint="Give it, or --data.",
        )
    async with PreparedScoring(address, credentials) as scoring:
        width = len(known) if known is not None else n_features or 0
        yield Bench(scoring, target, width, None if table is None else table.values)
