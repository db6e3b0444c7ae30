"""Memory that was freed goes back: few heaps for threads, and one allocator for everything.

A hub frees a few megabytes in several threads every few seconds. glibc gives each thread a heap of its own and pyarrow
keeps pools of its own, and both keep what is free: resident memory grows.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
ARENAS = 2
KEPT_BYTES = 128 << 10
"""What glibc begins with, set so that it stays: else it keeps up to 64 MiB once something large was freed."""


def settle_allocators(*, frugal: bool = False) -> None:
    """To be called before there are threads.

    Args:
        frugal: For a device: memory counts for more than the microseconds of asking the system for it.
    """
    with suppress(AttributeError, OSError):  # not glibc: it has other ways, or none
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1 if frugal else ARENAS)
        if frugal:
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    if (pyarrow := sys.modules.get("pyarrow")) is not None:  # a device has none
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


def return_memory() -> None:
    """Gives back what is free after something large has ended, such as the imports of a process."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
