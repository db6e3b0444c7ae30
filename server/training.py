"""The trainer process as the service sees it: one JSON job in, JSON lines out, never in the way of scoring."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from detectors.errors import ExhaustedError, PrunewatchError
from server.statuses import recorded_error

COMMAND = (sys.executable, "-m", "server.trainer")
LINE_BYTES = 16 << 20  # a result names every kept unit
TERMINATE_SECONDS = 5.0
LOW_PRIORITY = 10
"""How much nicer than the service, from the first moment on: importing torch keeps a core busy, and scoring on the same
cores comes first."""
KILLED = -9
"""Exit code of what was killed: by the system, for want of memory, or by a person."""
logger = logging.getLogger("prunewatch.training")
Report = Callable[[str, float, str], Awaitable[None]]


async def train(
    job: Mapping[str, Any], report: Report, command: Sequence[str] = COMMAND, *, memory: int | None = None
) -> dict[str, Any]:
    """Runs one job in a process of its own; a cancelled caller ends the process.

    Args:
        job: What to do (`server.jobs`).
        report: Told of progress: stage, share done, words.
        command: Starts the trainer.
        memory: Bytes of data that it may hold; None: no limit.

    Returns:
        Its result.

    Raises:
        ExhaustedError: it ran out of its memory.
        PrunewatchError: the one that the trainer reported, or that it ended without a result.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES
    )
    try:
        put_behind(process.pid, memory)
        result = await _talk(process, json.dumps(job).encode() + b"\n", report)
        code = await process.wait()
    finally:
        await _end(process)
    if result is None and memory is not None and code not in {0, KILLED}:
        raise out_of_memory(f"it may hold {memory / (1 << 20):.0f} MiB and ended with exit code {code}")
    if result is None:
        raise PrunewatchError(
            f"the trainer ended without a result (exit code {code}).",
            hint="The server's log says more; a negative code is the signal that ended it (-9: out of memory).",
        )
    return result


def put_behind(pid: int, memory: int | None) -> None:
    """Puts a process behind this one: less priority, and no more than so many bytes of data; None: no limit.

    What it asks for beyond them it does not get. To be called before it has threads.
    """
    with contextlib.suppress(ProcessLookupError):  # it has ended; whoever reads from it will see
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + LOW_PRIORITY)
        if memory is None:
            return
        if hasattr(resource, "prlimit"):
            resource.prlimit(pid, resource.RLIMIT_DATA, (memory, memory))
        else:
            logger.warning("this system can not limit the memory of a trainer")


def out_of_memory(how: str) -> ExhaustedError:
    """The trainer needed more than it may have; `how` shows it."""
    return ExhaustedError(
        f"the trainer ran out of its memory ({how}).",
        field="trainer_memory",
        hint="Allow it more, keep less history, or choose a smaller network. The server's log says more.",
    )


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
