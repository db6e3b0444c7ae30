"""What the benchmarks share: arguments, where results go, and a few measured things to work on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
DATA_VARIABLE = "PRUNEWATCH_DATA"
CLI = (sys.executable, "-c", "from server.cli import main; main()")
PACKAGES = ("numpy", "onnxruntime", "torch", "grpcio")


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes:
        figures: Times, rates and sizes of this run on this machine; units stand in the names.
        ratios: Comparisons within the run, which mean the same on another machine.
        table: Both as Markdown.
    """

    figures: dict[str, Any]
    ratios: dict[str, Any]
    table: str


class Skip(Exception):  # noqa: N818  (it is no error: something this machine does not have)
    """A benchmark can not run here; says why."""


def parser(module_doc: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; the module's docstring becomes its help."""
    made = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer rounds or seeds; under two minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write figures, ratios, machine, versions, commit")
    made.add_argument(
        "--docs", type=Path, metavar="FILE", default=DOCUMENT, help="where the table goes (default: docs/benchmarks.md)"
    )
    return made


def publish(name: str, result: Result, args: argparse.Namespace, *, signed: bool = True) -> None:
    """Writes the table between the markers of `name`, the JSON file, and the table to standard output.

    Args:
        name: Of the benchmark.
        result: What it found.
        args: Of `parser`.
        signed: Add a line that says where the table comes from; else it has such lines itself.
    """
    facts = {"machine": machine(), "versions": versions(), "commit": commit()}
    lines = [result.table.strip(), *(["", _origin(facts, quick=args.quick)] if signed else [])]
    document = args.docs.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(document):
        sys.exit(f"{args.docs} has no place for this table: add the lines {begin} and {end}")
    section = "\n".join([begin, *lines, end])
    args.docs.write_text(pattern.sub(lambda _: section, document), encoding="utf-8")
    if args.json:
        record = {"benchmark": name, "quick": args.quick, "figures": result.figures, "ratios": result.ratios, **facts}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


def skip(name: str, reason: Skip, args: argparse.Namespace) -> None:
    """Says that a benchmark did not run; the document keeps what it had."""
    say(f"SKIPPED {name}: {reason}")
    if args.json:
        facts = {"machine": machine(), "versions": versions(), "commit": commit()}
        record = {"benchmark": name, "skipped": str(reason), "figures": {}, "ratios": {}, **facts}
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Processor model and cores; nothing that names the machine."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        model = found[1].strip() if found else model
    return {"cpu": model, "architecture": platform.machine(), "cores": len(cores())}


def versions() -> dict[str, str | None]:
    """Python and the packages that decide how fast it is."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str:
    """The commit that ran, `-dirty` when files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` on one core only."""
    script = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"
    return [sys.executable, "-c", script, str(core), *command]


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background, ended afterwards; what it says goes to `log`; `env`: not this process's."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def labelled_series(name: str) -> tuple[Path, int]:
    """The file of a labelled series and the number of its training rows.

    Raises:
        Skip: the data are not here.
    """
    import pandas as pd

    folder = os.environ.get(DATA_VARIABLE)
    if not folder or not (Path(folder) / "index.csv").is_file():
        raise Skip(f"{DATA_VARIABLE} names no folder of labelled series with an index.csv")
    index = pd.read_csv(Path(folder) / "index.csv")
    rows = index[(index.dataset + "/" + index.name) == name]
    if rows.empty:
        raise Skip(f"{DATA_VARIABLE} has no series {name}")
    return Path(folder) / rows.iloc[0].path, int(rows.iloc[0].train_rows)


def drawn(points: int, series: int, features: int, seed: int) -> NDArray[np.float32]:
    """Points of machines that are alike, [points, series, features]: mixtures of three cycles with a little noise."""
    mixing = np.random.default_rng(0).normal(size=(3, features))  # the same for every seed: one kind of machine
    rng = np.random.default_rng(seed)
    t = np.arange(points)[:, None] + rng.uniform(0, 1000, series)
    cycles = np.stack([np.sin(t / 5), np.sin(t / 13), np.sin(t / 5) * np.sin(t / 41)], axis=-1)
    return (10 + cycles @ mixing + 0.1 * rng.standard_normal((points, series, features))).astype(np.float32)


def verdict(met: bool) -> str:
    """Of a target."""
    return "met" if met else "**missed**"


def origin(*, quick: bool) -> str:
    """Where a table of this run comes from, in one line."""
    return _origin({"machine": machine(), "versions": versions(), "commit": commit()}, quick=quick)


def _origin(facts: dict[str, Any], *, quick: bool) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    kind = "quick run" if quick else "full run"
    return (
        f"*{kind}, {facts['machine']['cpu']}, {facts['machine']['cores']} cores; {packages}; commit {facts['commit']}*"
    )
