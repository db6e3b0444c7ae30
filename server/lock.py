"""One process holds a folder at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from detectors.errors import StoreInUseError


def acquire(path: Path) -> BinaryIO:
    """Takes the lock of a store until it is closed; the kernel lets go of it when the process ends, however it ends.

    Raises:
        StoreInUseError: another process holds it.
    """
    lock = path.open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read(32).decode(errors="replace").strip()
        lock.close()
        raise StoreInUseError(
            f"another process{f' ({holder})' if holder else ''} uses this store.",
            field=str(path.parent),
            hint="Talk to it with --server HOST:PORT, or stop it.",
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}\n".encode())
    lock.flush()
    return lock
