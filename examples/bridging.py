"""What the bridges of this folder have in common.

What became of a reading (see readings.py) is JSON again; `score` is null where there is none: while warming up, or
because it was scored before a crash (LATE, DUPLICATE) and was no anomaly.

    {"series": "north", "time": 1714730400000000000, "score": 3.4, "status": "OK", "anomaly": true,
     "threshold": 3.0, "version": 1}
"""

import argparse
import asyncio
import contextlib
import logging
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from readings import reading

from prunewatch.client import Client, Retry, Stream

FIELDS = ("series", "time", "score", "status", "anomaly", "threshold", "version")
logger = logging.getLogger("bridge")
Messages = Sequence[tuple[str, bytes | None]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all bridges have; `--help` shows the description as it is written."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("detector", help="its name")
    add("--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="gRPC (default: %(default)s)")
    add("--batch", type=int, default=1000, metavar="N", help="readings of a message, at most (default: %(default)s)")
    add("--out", default="scores", metavar="TOPIC", help="for outcomes (default: %(default)s)")
    add("--dead", default="dead-letters", metavar="TOPIC", help="for what is no reading (default: %(default)s)")
    return parser


@contextlib.asynccontextmanager
async def scoring(options: argparse.Namespace) -> AsyncIterator[tuple[list[str], Stream]]:
    """The features of the detector, and a stream to it; waits for a server that is not there yet."""
    async with Client(options.server, retry=Retry(attempts=None)) as client:
        if not (features := (await client.get(options.detector))["features"]):
            raise SystemExit(f"{options.detector} does not know its features yet: name them when it is created")
        async with client.stream(options.detector, unanswered=1, recall_all=True) as stream:
            yield features, stream


async def scored(stream: Stream, features: Sequence[str], messages: Messages) -> list[dict[str, Any] | None]:
    """What became of each (series, payload), all scored as one message; None: the payload can not be read."""
    good, outcomes = {}, {}
    for i, (name, payload) in enumerate(messages):
        try:
            good[i] = reading(name, payload, features)
        except ValueError as error:
            logger.warning("%s: skipped: %s", name, error)
    if good:
        series, stamps, values = zip(*good.values(), strict=True)
        reply = await stream.score(values, stamps, series)
        scores = [None if math.isnan(it) else it for it in reply.scores.tolist()]
        last = ([reply.threshold] * len(good), reply.point_versions.tolist())
        rows = zip(series, stamps, scores, reply.status_names, reply.anomalies.tolist(), *last, strict=True)
        outcomes |= {i: dict(zip(FIELDS, row, strict=True)) for i, row in zip(good, rows, strict=True)}
    return [outcomes.get(i) for i in range(len(messages))]


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Runs until SIGTERM or Ctrl-C: what is in hand then is not acknowledged, so it will be delivered again."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    async def main() -> None:
        task = asyncio.ensure_future(work())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
