"""Message brokers and the bridges of examples/, each in a process of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="there is no mosquitto (Debian package `mosquitto`)")


class Process:
    """A process that is started, killed and started again, and logs into one file.

    Args:
        command: What to run.
        log: Its stderr.
        ready: Whether it works, once started.
    """

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool] = lambda: True) -> None:
        self._command = command
        self._ready = ready
        self.log = log
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it works."""
        with self.log.open("ab") as file:
            self.running = subprocess.Popen(self._command, stderr=file, stdout=file)
        end = time.monotonic() + 30
        while not self._ready():
            assert self.running.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; returns the exit code."""
        assert self.running is not None
        self.running.send_signal(number)
        code = self.running.wait(30)
        self.running = None
        return code


@contextmanager
def process(command: list[str], log: Path, ready: Callable[[], bool] = lambda: True) -> Iterator[Process]:
    """A process that runs, and is gone afterwards whatever happens."""
    it = Process(command, log, ready)
    try:
        it.start()
        yield it
    finally:
        if it.running is not None:
            it.running.kill()
            it.running.wait()


def bridge(name: str, *arguments: str) -> list[str]:
    """The command that runs an example."""
    return [sys.executable, str(ROOT / "examples" / f"{name}.py"), "pump", *arguments]


@contextmanager
def kafka_cluster() -> Iterator[str]:
    """The address of a mock cluster of librdkafka."""
    command = [sys.executable, str(Path(__file__).with_name("kafka_cluster.py"))]
    cluster = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        yield cluster.stdout.readline().decode().strip()
    finally:
        cluster.stdin.close()
        cluster.wait(30)
        cluster.stdout.close()
