"""Threads for work that may wait: writing what was seen. On a busy core scoring comes first."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

NICENESS = 10  # as the trainer, a process of its own
SWITCH_SECONDS = 1e-3
"""After so long a thread lets another one have the interpreter (`sys.setswitchinterval`); else it would be 5 ms."""
P = ParamSpec("P")
T = TypeVar("T")


def _step_back() -> None:
    """Linux gives each thread a priority of its own; elsewhere it stays as it is."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)


_THREADS = ThreadPoolExecutor(2, thread_name_prefix="background", initializer=_step_back)


async def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` at a lower priority."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, lambda: work(*args, **kwargs))
