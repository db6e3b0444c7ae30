"""Memory that was freed goes back: few heaps for threads, and one allocator for everything.

A hub frees a few megabytes in several threads every few seconds. glibc gives each thread a heap of its own and pyarrow
keeps pools of its own, and both keep what is free: resident memory grows.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

M_ARENA_MAX = -8
ARENAS = 2


def settle_allocators() -> None:
    """To be called before there are threads."""
    with suppress(AttributeError, OSError):  # not glibc: it has other ways, or none
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    if (pyarrow := sys.modules.get("pyarrow")) is not None:  # a device has none
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
