"""`prunewatch bench` as a user runs it: against a `prunewatch serve` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import bundle_facts
from graphs import ewma_bundle
from serving import serving

from detectors.bundle import write_bundle
from server.bench.histogram import Histogram
from server.bench.load import Load
from server.bench.outcome import Outcome
from server.bench.run import run_precisely
from server.bench.session import connected
from server.cli import main
from server.config import DetectorConfig
from server.publish import publish_fit
from server.store import Store

STALL_SECONDS = 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server with the detector `pump` of two features."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", DetectorConfig().model_dump(mode="json"))
        bundle = ewma_bundle("pump")
        write_bundle(bundle, store.bundle_folder(bundle.hash))
        publish_fit(store, "pump", {"parent": bundle_facts(bundle), "rows": 10})
    with serving(root, tmp_path / "serve.log") as running:
        yield running


@pytest.fixture
def prunewatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs `prunewatch bench` in this process; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.slow
def test_a_stall_is_seen_by_an_open_loop_and_hidden_by_a_closed_one(server) -> None:
    """A server that stops for a second makes what was due meanwhile late; a closed loop calls it one slow message."""
    closed = run_precisely(stalled(*server, Load(concurrency=1, duration=3, warm_up=0)))
    opened = run_precisely(stalled(*server, Load(rate=100, arrivals="constant", concurrency=1, duration=3, warm_up=0)))

    slow = STALL_SECONDS / 2  # half of the messages that were due in the stall waited longer
    assert closed.measured.from_sent.largest > slow
    assert closed.measured.from_sent.quantile(0.5) < slow
    assert _slower(closed.measured.from_due, slow) <= 2
    assert opened.measured.due == 300
    assert opened.measured.from_due.quantile(0.99) > slow
    assert _slower(opened.measured.from_due, slow) >= 0.8 * 100 * (STALL_SECONDS - slow)


@pytest.mark.slow
def test_messages_that_a_full_connection_holds_back_wait_from_when_they_were_due(server) -> None:
    """While a stalled server's connection is full, messages are sent late; only the time since they were due tells."""
    large = Load(rate=100 * 16_000, arrivals="constant", series=16_000, concurrency=1, duration=3, warm_up=0)

    measured = run_precisely(stalled(*server, large)).measured

    assert measured.scored == measured.due == 300
    assert _slower(measured.from_sent, STALL_SECONDS / 2) < _slower(measured.from_due, STALL_SECONDS / 2)


@pytest.mark.slow
def test_calls_are_given_up_after_the_timeout_and_count_as_slow(server) -> None:
    """A call without an answer ends with its deadline, is an error, and its latency is the time it had waited."""
    load = Load(rate=100, arrivals="constant", unary=True, duration=3, warm_up=0, timeout=0.3)

    measured = run_precisely(stalled(*server, load)).measured

    assert set(measured.errors) == {"DEADLINE_EXCEEDED"}
    assert measured.open_ended == measured.failed > 0.5 * 100 * (STALL_SECONDS - 0.3)
    assert measured.scored + measured.failed == measured.from_due.count == 300
    assert measured.from_due.largest >= 0.3


async def stalled(address: str, process: subprocess.Popen[bytes], load: Load) -> Outcome:
    """What comes of a load while which the server stands still for a second."""
    begun = asyncio.Event()
    async with connected(address) as bench:
        running = asyncio.create_task(bench.measure(load, lambda *_: begun.set()))
        await begun.wait()
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(STALL_SECONDS)
        finally:
            process.send_signal(signal.SIGCONT)
        return await running


def _slower(latencies: Histogram, seconds: float) -> int:
    """Messages above a bound."""
    return sum(count for edge, count in latencies.buckets() if edge > seconds)


@pytest.mark.slow
def test_a_run_prints_its_tables_and_writes_json_and_picture(server, prunewatch, tmp_path: Path) -> None:
    """Rates, messages, statuses and percentiles stand in the tables; the file has the same and the histogram."""
    file, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    load = ("--rate", 400, "--series", 2, "--points", 2, "--duration", "500ms", "--warm-up", "100ms")

    code, out, err = prunewatch("pump", "--server", server[0], *load, "--json", file, "--plot", picture)

    found = json.loads(file.read_text())
    run = found["run"]
    assert code == 0, err
    assert (found["detector"], found["version"], found["interrupted"]) == ("pump", 1, False)
    assert found["step_seconds"] == [{"batch": 256, "p50_seconds": 1e-4, "p99_seconds": 2e-4}]
    assert run["messages"]["due"] == run["messages"]["scored"] > 0
    assert run["statuses"]["ok"] <= 4 * run["messages"]["scored"] == sum(run["statuses"].values())
    assert sum(count for _, count in run["latency_from_due"]["buckets"]) == run["messages"]["scored"]
    assert run["latency_from_due"]["p50"] <= run["latency_from_due"]["p99"] <= run["latency_from_due"]["max"]
    for said in (
        "version 1",
        "threshold 3",
        "p50 100us",
        "offered",
        "goodput",
        "since it was due",
        "p99.9",
        "points OK",
    ):
        assert said in out
    text = picture.read_text()
    assert "since it was sent" in text
    assert "points/s answered" in text
    assert "measuring" in err or "warm-up" in err


@pytest.mark.slow
def test_a_sweep_prints_its_steps_and_the_knee(server, prunewatch, tmp_path: Path) -> None:
    """Rates go up until one is too much; table, file and picture say which was the last that was kept."""
    file, picture = tmp_path / "sweep.json", tmp_path / "sweep.png"
    steps = ("--duration", "200ms", "--warm-up", 0, "--limit", "1us", "--rate", 400, "--sweep")

    code, out, err = prunewatch("--server", server[0], *steps, "--json", file, "--plot", picture)

    sweep = json.loads(file.read_text())["sweep"]
    assert code == 0, err
    assert sweep["knee_points_per_second"] is None  # nothing keeps a microsecond
    assert sweep["steps"]
    assert all((not it["kept"] and "p99" in it["reason"]) or it["messages"]["due"] == 0 for it in sweep["steps"])
    assert "No rate kept a p99 of 1us" in out
    assert picture.read_bytes().startswith(b"\x89PNG")

    generous = ("--duration", "200ms", "--warm-up", 0, "--limit", "1h", "--sweep", "--series", 8)
    code, out, err = prunewatch("--server", server[0], *generous)

    assert code == 0, err
    assert "closed loop" in err
    assert "Kept:" in out


@pytest.mark.slow
def test_live_is_said_out_loud(server, prunewatch) -> None:
    """Whoever asks for LIVE is told what becomes of the points, and where."""
    code, out, err = prunewatch("--server", server[0], "--live", "--duration", "200ms", "--warm-up", 0)

    assert code == 0
    assert "LIVE: pump gets new series bench-" in err
    assert "history" in err
    assert "LIVE" in out


@pytest.mark.slow
def test_interrupted_it_prints_what_there_is(server, tmp_path: Path) -> None:
    """Ctrl-C ends the load, not the program: tables, file and exit code 130."""
    file = tmp_path / "bench.json"
    command = [sys.executable, "-c", "from server.cli import main; main()", "bench", "--server", server[0]]
    asked = ("--rate", "200", "--duration", "60s", "--warm-up", "0", "--json", str(file))
    bench = subprocess.Popen(
        [*command, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "200"}
    )
    assert bench.stderr is not None
    assert b"measuring" in bench.stderr.readline()  # it runs
    time.sleep(0.3)

    bench.send_signal(signal.SIGINT)
    out, err = bench.communicate(timeout=20)

    assert bench.returncode == 130, err
    assert b"since it was due" in out
    assert b"it was interrupted" in out
    assert b"Traceback" not in err
    found = json.loads(file.read_text())
    assert found["interrupted"]
    assert 0 < found["run"]["messages"]["scored"] < 12_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--server", "nowhere"), "--server"),
        (("--server", "127.0.0.1:1", "--rate", "0"), "--rate"),
        (("--server", "127.0.0.1:1", "--duration", "fast"), "duration"),
        (("--server", "127.0.0.1:1", "--warm-up", "-1s"), "--warm-up"),
        (("--server", "127.0.0.1:1", "--arrivals", "uniform"), "uniform"),
        (("--server", "127.0.0.1:1", "--limit", "10ms"), "Add --sweep"),
        (("--server", "127.0.0.1:1", "--series", "1000", "--points", "1000"), "65,536 at most"),
        (("--server", "127.0.0.1:1", "--plot", "latency.txt"), ".png"),
        (("--server", "127.0.0.1:1", "--json", "no/such/folder/x.json"), "no such folder"),
        (("--server", "127.0.0.1:1", "--data", "missing.csv"), "no such file"),
        (("--server", "127.0.0.1:1"), "prunewatch serve"),
        ((), "--server"),
    ],
)
def test_what_can_not_be_is_refused_with_what_to_do(prunewatch, arguments, said: str) -> None:
    """Exit code 2 and one sentence that names the option or what is missing; no traceback."""
    code, out, err = prunewatch(*arguments)

    assert code == 2
    assert said in err
    assert "Traceback" not in out + err


def test_without_matplotlib_only_the_picture_is_refused(tmp_path: Path) -> None:
    """On the base install --plot says what to install, before any load is sent; nothing else needs the extra."""
    hidden = (
        "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'torch', 'pandas', 'pyarrow', 'sqlalchemy')))\n"
    )
    program = hidden + "from server.cli import main\nmain(['bench', '--server', '127.0.0.1:1', *sys.argv[1:]])"

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 2
        return done.stderr

    assert "pip install 'prunewatch[hub]'" in said("--plot", "latency.png")
    assert "prunewatch serve" in said()
