"""Work that may wait is done at a lower priority than scoring, in threads of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from server.background import NICENESS, in_background


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
async def test_background_threads_step_back() -> None:
    """They are nicer than the thread that scores, which stays as it was."""
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def look() -> tuple[int, int]:
        thread = threading.get_native_id()
        return thread, os.getpriority(os.PRIO_PROCESS, thread)

    found = await asyncio.gather(*(in_background(look) for _ in range(8)))
    assert threading.get_native_id() not in {thread for thread, _ in found}
    assert {nice for _, nice in found} == {min(before + NICENESS, 19)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_what_goes_wrong_there_is_told_here() -> None:
    """Arguments go there, results and errors come back."""

    def divide(a: int, *, by: int) -> float:
        return a / by

    assert await in_background(divide, 6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        await in_background(divide, 6, by=0)
