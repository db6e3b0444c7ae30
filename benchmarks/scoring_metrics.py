"""What counting and timing costs of scoring a message.

One hub runs as it is and says what a message costs; another runs with a stopwatch around every call of its metrics
(peers/metered_hub.py) and says how long those take. A comparison of hubs with and without metrics could not see two
percent on a machine like this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import scoring_client as client
from scoring_client import Messages
from scoring_report import Part, at_most, table, us

TARGET = 0.02
MESSAGES = 1500  # a round


async def run(config: Path, metered_config: Path, folder: Path, core: int, *, quick: bool) -> Part:
    """Both hubs on one core, turn by turn.

    Args:
        config: Of the hub as it is.
        metered_config: Of the hub whose metrics are timed; a store has one process.
        folder: For logs.
        core: Of both.
        quick: Fewer rounds.
    """
    port, metered_port = client.free_ports(2)
    told = folder / "metered.json"
    serve = client.serve_command(metered_config, metered_port)[len(client.harness.CLI) :]
    metered_command = (sys.executable, str(client.HERE / "peers" / "metered_hub.py"), str(told), *serve)
    whole, messages_sent = [], 0
    async with (
        client.hub(client.serve_command(config, port), port, folder, core) as hub,
        client.hub(metered_command, metered_port, folder, core) as metered,
    ):
        messages = Messages()
        for side in (hub, metered):
            await client.require_scores(side, messages)
        messages_sent += client.WARM_MESSAGES + 1
        for _ in range(3 if quick else 9):
            _, cpu = await client.measured(client.pipelined, hub, messages.opening(), messages.stream(MESSAGES))
            whole.append(cpu)
            await client.measured(client.pipelined, metered, messages.opening(), messages.stream(MESSAGES))
            messages_sent += MESSAGES + 1
    counted = json.loads(told.read_text(encoding="utf-8"))
    message, metrics = float(np.median(whole)), counted["seconds"] / messages_sent
    share = metrics / message
    figures = {
        "message_cpu_seconds": message,
        "metrics_seconds": metrics,
        "metrics_calls": counted["calls"] / messages_sent,
        "messages": messages_sent,
    }
    heads = ["processor time a message", "of it metrics", "calls", "share", "target"]
    row = [
        us(message),
        us(metrics),
        f"{figures['metrics_calls']:.1f}",
        f"{share:.1%}",
        at_most(100 * round(share, 4), 100 * TARGET, " %"),
    ]
    return Part("Metrics", figures, {"metrics_overhead": share}, table(heads, [row]))
