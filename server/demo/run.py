"""The demo from start to report."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from detectors.errors import PreconditionError
from prunewatch.client import Client
from server.commands.progress import progress
from server.demo.report import print_report
from server.demo.sources import Source, Telemetry, WaterFlow
from server.demo.stream import Watched, stream

USUAL_PORTS = (8001, 8002)
START_SECONDS = 30.0


def run(*, once: bool, live: bool) -> None:
    """Runs the demo; exits 1 when a point was lost.

    Args:
        once: Stop the service after the report.
        live: This machine's telemetry instead of the recorded water flow.
    """
    source: Source = Telemetry() if live else WaterFlow()
    watched = [
        Watched(f"{source.prefix}-lstm", "lstm", {}, speedup=3.0),
        Watched(f"{source.prefix}-autoencoder", "autoencoder", {"window": source.window}, speedup=1.5),
    ]
    with service() as (listen, admin, process):
        seconds = asyncio.run(_main_job(listen, source, watched))
        print_report(source, watched, seconds, admin)
        errors = sum(it.errors for it in watched)
        if not once:
            typer.echo(f"The service stays up on {listen}; try `prunewatch show {watched[0].name} --server {listen}`.")
            typer.echo("Ctrl-C stops it.")
            process.wait()
    if errors:
        raise typer.Exit(1)


async def _main_job(listen: str, source: Source, watched: list[Watched]) -> float:
    """Fit, stream, prune under the stream."""
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - began:5.1f} s] {text}", markup=False, soft_wrap=True)

    async with Client(listen) as client:
        stamps, values = await source.history(say)
        for it in watched:
            say(f"{it.name}: fitting a {it.network}")
            with progress(console) as report:
                operation = await client.fit_upload(
                    it.name,
                    features=source.features,
                    stamps=stamps,
                    values=values,
                    config={"network": it.network, "options": it.options},
                )
                await client.wait_operation(operation, report)
        say("streaming")
        return await stream(client, source, watched, say)


@contextmanager
def service() -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """`prunewatch serve` in a process of its own, on a store that goes with it: (listen, admin, process)."""
    folder = Path(tempfile.mkdtemp(prefix="prunewatch-demo-"))
    listen, admin = (f"127.0.0.1:{port}" for port in free_ports())
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", "--store", str(folder / "store")]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen([*command, "--listen", listen, "--admin", admin], stdout=log, stderr=log)
        try:
            _wait_until_ready(admin, process, folder / "serve.log")
            yield listen, admin, process
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def free_ports() -> tuple[int, int]:
    """The usual ports where both are free, else two that are."""
    try:
        return _bind(*USUAL_PORTS)
    except OSError:
        return _bind(0, 0)


def _bind(first: int, second: int) -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", first))
        other.bind(("127.0.0.1", second))
        return one.getsockname()[1], other.getsockname()[1]


def _wait_until_ready(admin: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{admin}/readyz", timeout=1):  # our own child  # nosec B310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise PreconditionError("the service did not start.", field="serve", hint=log.read_text()[-400:])
