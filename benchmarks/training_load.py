"""What scoring costs while a cycle trains on the same cores.

A `prunewatch serve` with an LSTM of two layers of 64 scores messages of 256 points of 256 series, 50 a second, on all
cores of this machine, which the client uses too. In each round that happens twice: while nothing else runs (the
control), and while the trainer works on a cycle that prunes the detector to a quarter of its time. A message counts
from when it was due, so that waiting for the one before it counts too. The order changes from round to round.

Example:
  python benchmarks/training_load.py --quick --json training_load.json

Target: p99 while it trains <= 1.5 times that of the control, as the median over the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import harness
import numpy as np
import scoring

from prunewatch.client import Client

PERIOD_SECONDS = 0.02
SECONDS = 8.0
ROUNDS, QUICK_ROUNDS = 7, 2
SPEEDUP = 4.0
TARGET = 1.5
WARM_MESSAGES = 40


async def times(call: Any, messages: scoring.Messages, seconds: float, ended: asyncio.Event) -> np.ndarray:
    """Seconds from when each message was due to its answer, until `ended` or so many seconds have passed."""
    found, began = [], time.perf_counter()
    for turn, message in enumerate(messages.stream(int(seconds / PERIOD_SECONDS))):
        due = began + turn * PERIOD_SECONDS
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if ended.is_set():
            break
        await call.write(message)
        await call.read()
        found.append(time.perf_counter() - due)
    return np.array(found)


@contextlib.asynccontextmanager
async def training(client: Client) -> AsyncIterator[asyncio.Event]:
    """A cycle that runs inside the block, where it is cancelled at the end; the event is set when it has ended."""
    working, ended = asyncio.Event(), asyncio.Event()
    operation = await client.prune("machine", speedup=SPEEDUP, fresh=True)

    def progressed(stage: str, _done: float, _message: str) -> None:
        if stage != "queued":
            working.set()

    async def follow() -> None:
        with contextlib.suppress(Exception):  # it is cancelled below
            await client.wait_operation(operation, progressed)
        working.set()
        ended.set()

    following = asyncio.create_task(follow())
    await working.wait()
    try:
        yield ended
    finally:
        await client.cancel_operation(operation)
        await following


async def compare(address: str, rounds: int) -> dict[str, list[np.ndarray]]:
    """Times of messages, by side, one array a round."""
    found: dict[str, list[np.ndarray]] = {"control": [], "training": []}
    async with grpc.aio.insecure_channel(address) as channel, Client(address) as client:
        await asyncio.wait_for(channel.channel_ready(), 60)
        call = channel.stream_stream("/prunewatch.v1.ScoringService/ScoreStream")()
        messages = scoring.Messages()
        await scoring.one_by_one(call, [messages.opening(), *messages.stream(WARM_MESSAGES)])
        for turn in range(rounds):
            harness.say(f"round {turn + 1} of {rounds}")
            for side in sorted(found, reverse=turn % 2 == 1):
                if side == "control":
                    found[side].append(await times(call, messages, SECONDS, asyncio.Event()))
                    continue
                async with training(client) as ended:
                    found[side].append(await times(call, messages, SECONDS, ended))
        await call.done_writing()
    return found


def run(*, quick: bool) -> harness.Result:
    """Fits, serves and compares."""
    with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as name:
        folder = Path(name)
        config = scoring.fitted_store(folder, width=64)
        port, admin = scoring.free_ports(2)
        serve = [*harness.CLI, "serve", "--config", str(config), "--listen", f"127.0.0.1:{port}"]
        with harness.running([*serve, "--admin", f"127.0.0.1:{admin}"], folder / "hub.log"):
            found = asyncio.run(compare(f"127.0.0.1:{port}", QUICK_ROUNDS if quick else ROUNDS))
    return _result(found)


def _result(found: dict[str, list[np.ndarray]]) -> harness.Result:
    figures: dict[str, Any] = {"messages": {side: int(sum(map(len, rounds))) for side, rounds in found.items()}}
    ratios, rows = {}, []
    for name, share in (("p50", 50), ("p99", 99)):
        sides = {side: [float(np.percentile(it, share)) for it in rounds] for side, rounds in found.items()}
        pairs = zip(sides["training"], sides["control"], strict=True)
        ratios[name] = float(np.median([one / other for one, other in pairs]))
        figures |= {f"{side}_{name}_seconds": float(np.median(values)) for side, values in sides.items()}
        shown = [f"{1e3 * figures[f'{side}_{name}_seconds']:.2f} ms" for side in ("control", "training")]
        met = f"<= {TARGET}: {harness.verdict(ratios[name] <= TARGET)}" if name == "p99" else ""
        rows.append(f"| {name} of a message | {' | '.join(shown)} | {ratios[name]:.2f} | {met} |")
    rounds = len(found["control"])
    lines = [
        "| | control | while a cycle trains | ratio | target |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Medians over {rounds} rounds; {figures['messages']['training']:,} messages while it trained.",
    ]
    return harness.Result(figures, ratios, "\n".join(lines))


def main() -> None:
    """Runs as a script."""
    args = harness.parser(__doc__ or "").parse_args()
    harness.publish("training_load", run(quick=args.quick), args)


if __name__ == "__main__":
    main()
