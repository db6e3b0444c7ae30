"""`prunewatch serve` on a store, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_address


@contextmanager
def served(root: Path, log: Path) -> Iterator[str]:
    """The address of a server on the store `root`; it ends well, or the test fails with what it logged."""
    with serving(root, log) as (address, _):
        yield address


@contextmanager
def serving(root: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same, with the process."""
    listen, admin = free_address(), free_address()
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--store", str(root)]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--listen", listen, "--admin", admin], stderr=file)
    deadline = time.monotonic() + 30
    while not _answers(listen):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield listen, process
    process.terminate()
    assert process.wait(30) == 0, log.read_text()


def _answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
