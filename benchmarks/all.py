"""Every benchmark, one after the other: `make bench`.

Flags are passed on. With --json DIR each benchmark writes DIR/<benchmark>.json. What can not run here (no labelled
data, one core only) says so and is left out; the others run. Filling the cells of detection, explain, pruning and
lifecycle takes hours: here their tables are written from the cells there are; their own scripts fill them.

Examples:
  python benchmarks/all.py
  python benchmarks/all.py --quick --json results
  python benchmarks/all.py --only scoring carried_state
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import harness

BENCHMARKS = (
    "carried_state",
    "lstm_cell",
    "scoring",
    "main_job",
    "warm_start",
    "detection",
    "explain",
    "while_fitting",
    "pruning_grid",
    "importance",
    "gate",
    "drift",
    "poisoning",
    "budgets",
    "lifecycle",
    "training_load",
    "edge",
)
FROM_CELLS = ("detection", "explain", "pruning_grid", "importance", "budgets", "lifecycle", "poisoning")
"""Of these only the tables are made here, unless --quick is given."""


def main() -> int:
    """0 when every benchmark ran or was skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds or seeds; under two minutes each")
    parser.add_argument("--json", type=Path, metavar="DIR", help="folder for one JSON file a benchmark")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="where the tables go (default: docs/benchmarks.md)")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="run these alone")
    args = parser.parse_args()
    failed = []
    for name in args.only:
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        command += ["--quick"] if args.quick else []
        command += ["--report"] if name in FROM_CELLS and not args.quick else []
        command += ["--docs", str(args.docs)] if args.docs else []
        if args.json:
            args.json.mkdir(parents=True, exist_ok=True)
            command += ["--json", str(args.json / f"{name}.json")]
        harness.say(f"== {name}")
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        harness.say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
