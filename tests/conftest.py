"""Real parts for service tests: a hub on free ports with a store of its own, and a client."""

from __future__ import annotations

import asyncio
import runpy
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from detectors import timing
from detectors.bundle import Bundle, write_bundle
from prunewatch.client import Client
from server.app import Hub
from server.config import Settings
from server.publish import publish_fit

QUICK_TRAINER = (sys.executable, str(Path(__file__).with_name("quick_trainer.py")))
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NOW = 1_700_000_000_000_000_000


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--promise R1`: only the tests that prove that row of docs/robustness.md."""
    parser.addoption("--promise", metavar="ID", default="", help="run the tests that prove this promise, and no others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of one promise; none is an error of the run (exit code 5)."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        items[:] = slowest_first(items)
    if not (asked := config.getoption("--promise")):
        return
    proving = [it for it in items if any(mark.args == (asked,) for mark in it.iter_markers("promise"))]
    config.hook.pytest_deselected(items=[it for it in items if it not in proving])
    items[:] = proving


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, a file stays in one process, since its tests share what was costly to make; in the order below."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def slowest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files that take longest first, so that no process has one left when the others are done.

    Those are the files with a test that has a longer timeout than all others, then those with the most slow tests.
    """
    slow = Counter(it.path for it in items if it.get_closest_marker("slow"))
    longest: Counter[Path] = Counter()
    for it in items:
        if mark := it.get_closest_marker("timeout"):
            longest[it.path] = max(longest[it.path], mark.args[0])
    return sorted(items, key=lambda it: (-longest[it.path], -slow[it.path], it.path))


@pytest.fixture
def unused_tcp_port() -> int:
    """In the place of pytest-asyncio's, which gives one that the system may give to somebody else."""
    return free_port()


@pytest.fixture(scope="session")
def unused_tcp_port_factory() -> Callable[[], int]:
    """The same, for several."""
    return free_port


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are timed a tenth as long: enough where bytes decide, and where no time would be short enough."""
    monkeypatch.setitem(timing.interleaved.__kwdefaults__, "seconds", timing.ROUND_SECONDS / 10)


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What a benchmark script prints for `--help`; in this process, since most would import torch for it once more."""

    def printed(script: str) -> str:
        monkeypatch.syspath_prepend(str(BENCHMARKS))  # scripts find each other in their own folder
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{script}.py"), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert not ended.value.code
        return capsys.readouterr().out

    return printed


def hub_settings(folder: Path, **fields: Any) -> Settings:
    """Settings of a hub on free ports; `fields` win."""
    given: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "store": folder / "store",
        "drain_seconds": 0.5,
        **fields,
    }
    return Settings(**given)


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What the trainer says of a bundle it made."""
    network = bundle.manifest.network
    return {
        "hash": bundle.hash,
        "version": bundle.manifest.version,
        "units": dict(network.units),
        "parameters": network.parameters,
        "bytes": bundle.size,
        "p50_seconds": 1e-4,
        "p99_seconds": 2e-4,
        "error": 0.5,
    }


async def publish(hub: Hub, bundle: Bundle, **config: Any) -> None:
    """Publishes and serves a bundle through the real store, catalog and host; `config` is for a new detector."""
    name = bundle.manifest.detector
    if name not in hub.host:
        await hub.roster.create(name, {"features": bundle.manifest.features, **config})
    write_bundle(bundle, hub.store.bundle_folder(bundle.hash))
    publish_fit(hub.store, name, {"parent": bundle_facts(bundle)})
    await hub.roster.follow(name)


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """The first true value of `condition`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := await condition():
            return value
        await asyncio.sleep(0.02)
    pytest.fail("it did not happen in time")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with an empty store and the quick trainer."""
    running = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[Client]:
    """A client of `hub`."""
    async with Client(f"127.0.0.1:{hub.listener.port}") as connected:
        yield connected
