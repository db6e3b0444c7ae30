"""The trainer process as the service sees it: one JSON job in, JSON lines out, never in the way of scoring."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from detectors.errors import PrunewatchError
from server.statuses import recorded_error

COMMAND = (sys.executable, "-m", "server.trainer")
LINE_BYTES = 16 << 20  # a result names every kept unit
TERMINATE_SECONDS = 5.0
logger = logging.getLogger(__name__)
Report = Callable[[str, float, str], Awaitable[None]]


async def train(job: Mapping[str, Any], report: Report, command: Sequence[str] = COMMAND) -> dict[str, Any]:
    """Runs one job in a process of its own; a cancelled caller ends the process.

    Args:
        job: What to do (`server.jobs`).
        report: Told of progress: stage, share done, words.
        command: Starts the trainer.

    Returns:
        Its result.

    Raises:
        PrunewatchError: the one that the trainer reported, or that it ended without a result.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES
    )
    try:
        result = await _talk(process, json.dumps(job).encode() + b"\n", report)
        code = await process.wait()
    finally:
        await _end(process)
    if result is None:
        raise PrunewatchError(
            f"the trainer ended without a result (exit code {code}).",
            hint="The server's log says more; a negative code is the signal that ended it (-9: out of memory).",
        )
    return result


async def _talk(process: asyncio.subprocess.Process, job: bytes, report: Report) -> dict[str, Any] | None:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the trainer has no pipes")
    try:
        process.stdin.write(job)
        await process.stdin.drain()
        process.stdin.close()
    except ConnectionError:
        logger.warning("the trainer closed its input before it had read its job")
    result: dict[str, Any] | None = None
    async for line in process.stdout:
        try:
            event = json.loads(line)
            kind = event.pop("event")
        except (ValueError, AttributeError, KeyError):
            logger.warning("the trainer wrote a line that is no event: %.200r", line)
            continue
        if kind == "progress":
            await report(str(event["stage"]), float(event["done"]), str(event.get("message", "")))
        elif kind == "result":
            result = event
        elif kind == "error":
            raise recorded_error(event)
    return result


async def _end(process: asyncio.subprocess.Process) -> None:
    """Makes sure that the process is gone."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), TERMINATE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
