"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys

PR_SET_PDEATHSIG = 1
logger = logging.getLogger("prunewatch.lifeline")


def end_with_parent() -> None:
    """Has the kernel kill this process as soon as the thread that started it is gone, however that ended.

    A trainer whose server was killed would go on for minutes beside the trainer of the next one. If the server is gone
    before this is called, the trainer ends when it writes its next line.
    """
    if not sys.platform.startswith("linux"):
        logger.warning("this system can not end a process with the one that started it")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        logger.warning("prctl failed (errno %d): this process may outlive the one that started it", ctypes.get_errno())
