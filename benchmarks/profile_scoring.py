"""Where the hub's processor time goes while it scores: a profile by py-spy under pipelined load.

The hub of `scoring.py` (LSTM 2x32, messages of 256 points of 256 series) runs on one core and is kept busy from
another, with up to 8 messages on their way. py-spy looks at all of its threads many times a second, and each sample
counts where its innermost known function is: the step, gRPC, a module of this repository. Compiled code without a frame
of its own counts for the function that called it. Threads that only wait do not count. What the main thread and the
others take together is not left to samples: the kernel says it, while nobody looks. So microseconds are samples of a
thread as shares of the processor time that it takes for a message without the profiler.

The table goes into docs/performance.md. py-spy is installed once into an environment of its own under
benchmarks/cache/. It needs the right to trace other processes: root, or kernel.yama.ptrace_scope = 0.

Examples:
  python benchmarks/profile_scoring.py
  python benchmarks/profile_scoring.py --quick --raw stacks.txt     # one stack a line, as flamegraph.pl wants them
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import harness
import numpy as np
import scoring_client as client
import scoring_environments as environments
from scoring_models import CACHE, SMALL, fitted_store, served_graph
from scoring_report import table

DOCUMENT = harness.ROOT / "docs" / "performance.md"
SAMPLES_PER_SECOND = 200
SECONDS, QUICK_SECONDS = 60, 10
MESSAGES = 500  # sent at a time
SHOWN = 12  # functions of this repository, by time in them and in what they call

GRPC = "gRPC: its compiled part, the event loop, serialising the answer"
POLLER = "gRPC's own thread, which takes events from the kernel"
WRITER = "writing history and anomalies, in a thread of its own"
PLACES = {
    "the step in ONNX Runtime": r"onnxruntime/",
    "metrics": r"prometheus_client/|server/(metrics|tallies)\.py",
    "reading the request (protobuf)": r"^parse \(server/interceptors\.py",
    POLLER: r"^run \(threading\.py",
    GRPC: r"^(ScoreStream|_answer) \(server/scoring\.py|server/streams\.py|grpc/|asyncio/|server/interceptors\.py",
    "the servicer: checks, arrays, the answer": r"server/(scoring|tracks)\.py",
    "stamps, state and rings of the series": r"detectors/",
    "after the step: flags, drift, what is kept": r"server/",
}
"""By the first that a frame matches, from the innermost frame outwards; frames read `function (file:line)`."""
WAITING = re.compile(r"^(_worker \(concurrent/futures/thread\.py|wait \(threading\.py|select \(selectors\.py)")
BACKGROUND = re.compile(r"_worker \(concurrent/futures/thread\.py")
OURS = re.compile(r"^(?P<function>\S+) \((?P<file>(?:server(?!/(?:app|cli)\.)|detectors)/\w+\.py)")
"""Functions that are shown; `main` and `run` are on every stack of the main thread."""
_COMPILED = {place: re.compile(pattern) for place, pattern in PLACES.items()}


def place_of(stack: list[str]) -> str | None:
    """Where a sample belongs; None: its thread waits.

    Args:
        stack: Frames, outermost first.

    >>> place_of(["_run (asyncio/events.py:80)", "answer (server/scoring.py:120)", "fromiter (numpy/core.py:1)"])
    'the servicer: checks, arrays, the answer'
    >>> place_of(["run (threading.py:982)", "_worker (concurrent/futures/thread.py:81)"])
    """
    if WAITING.match(stack[-1]):
        return None
    if any(BACKGROUND.match(frame) for frame in stack):
        return WRITER
    for frame in reversed(stack):
        for place, pattern in _COMPILED.items():
            if pattern.search(frame):
                return place
    return "elsewhere"


def counted(raw: str) -> tuple[Counter[str], Counter[str]]:
    """Samples by place, and those of the main thread by function of this repository that was on the stack.

    Args:
        raw: Of py-spy: a line for each stack, frames joined by semicolons, then how many samples.
    """
    places: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in raw.splitlines():
        joined, _, count = line.rpartition(" ")
        stack = joined.split(";")
        place = place_of(stack)
        if place is None:
            continue
        places[place] += int(count)
        if place in {POLLER, WRITER}:
            continue
        ours = {f"{found['function']} ({found['file']})" for frame in stack if (found := OURS.match(frame))}
        functions.update(dict.fromkeys(ours, int(count)))
    return places, functions


def thread_seconds(pid: int) -> np.ndarray:
    """Processor time of the main thread so far, and of all others together."""
    times = {path.name: ticks(path / "stat") for path in Path(f"/proc/{pid}/task").iterdir()}
    main = times.pop(str(pid))
    return np.array([main, sum(times.values())]) / client.TICK


def ticks(stat: Path) -> int:
    """User and system time of a thread; 0 where it has just ended."""
    try:
        fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


async def profiled(
    config: Path, graph: bytes, folder: Path, core: int, seconds: int, spy: Path
) -> tuple[str, np.ndarray]:
    """Stacks as py-spy writes them, and processor time a message of main and other threads while nobody looks."""
    (port,) = client.free_ports(1)
    async with client.hub(client.serve_command(config, port), port, folder, core) as hub:
        messages = client.Messages()
        await client.require_scores(hub, messages, graph)

        async def load() -> np.ndarray:
            opening, sent = messages.opening(), messages.stream(MESSAGES)
            before = thread_seconds(hub.pid)
            await client.measured(client.pipelined, hub, opening, sent)
            return (thread_seconds(hub.pid) - before) / (1 + len(sent))

        harness.say("without the profiler")
        alone = [await load() for _ in range(21)]
        harness.say(f"with it, {seconds} s")
        options = ["--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds), "--format", "raw"]
        out, log = folder / "stacks.txt", folder / "py-spy.log"
        process = await asyncio.create_subprocess_exec(
            *(str(spy), "record", "--pid", str(hub.pid), *options, "--output", str(out)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        while process.returncode is None:
            await load()
        told = await process.stderr.read() if process.stderr else b""
        if process.returncode:
            log.write_bytes(told)
            raise harness.Skip(f"py-spy can not look at the hub: {told.decode(errors='replace').strip()}")
    return out.read_text(encoding="utf-8"), np.mean(alone, axis=0)  # the history is written now and then


def run(args: argparse.Namespace) -> harness.Result:
    """Profiles a hub.

    Raises:
        harness.Skip: there are no two cores, or there is no py-spy that may trace.
    """
    client_core, core = client.two_cores()[:2]
    spy = environments.PY_SPY.folder(args.cache, install=True) / "bin" / "py-spy"
    with TemporaryDirectory(prefix="prunewatch-bench-") as name, client.on_core(client_core):
        folder = Path(name)
        config = fitted_store(folder)
        graph = served_graph(folder / "store", SMALL)
        seconds = QUICK_SECONDS if args.quick else SECONDS
        raw, message = asyncio.run(profiled(config, graph, folder, core, seconds, spy))
        if args.raw:
            shutil.copy(folder / "stacks.txt", args.raw)
    return _result(*counted(raw), message, seconds)


def _result(places: Counter[str], functions: Counter[str], message: np.ndarray, seconds: int) -> harness.Result:
    others = {place for place in places if place in {POLLER, WRITER}}
    samples = np.array([sum(n for place, n in places.items() if (place in others) == other) for other in (False, True)])
    each = message / np.maximum(samples, 1)  # what a sample stands for
    spent = {place: n * float(each[int(place in others)]) for place, n in places.items()}
    total, looked = float(message.sum()), places.total()
    ordered = sorted(spent.items(), key=lambda it: -it[1])
    rows = [[place, f"{1e6 * took:,.0f}", f"{took / total:.0%}"] for place, took in ordered]
    main = {it: n * float(each[0]) for it, n in functions.most_common(SHOWN)}
    inner = [[f"`{it}`", f"{1e6 * took:,.0f}", f"{took / total:.0%}"] for it, took in main.items()]
    shown = [
        table(["where", "us a message", "share"], [*rows, ["**all**", f"{1e6 * total:,.0f}", "100%"]]),
        "Functions of this repository, with all that they call:",
        table(["function", "us a message", "share"], inner),
        f"{looked:,} samples in {seconds} s.",
    ]
    figures = {
        "message_cpu_seconds": total,
        "main_thread_cpu_seconds": float(message[0]),
        "samples": looked,
        "places": spent,
        "functions": main,
    }
    return harness.Result(figures, {}, "\n\n".join(shown))


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.set_defaults(docs=DOCUMENT)
    parser.add_argument("--raw", type=Path, metavar="FILE", help="also keep the stacks")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=CACHE, help="of the environment with py-spy")
    args = parser.parse_args()
    try:
        harness.publish("profile_scoring", run(args), args)
    except harness.Skip as reason:
        harness.skip("profile_scoring", reason, args)


if __name__ == "__main__":
    main()
