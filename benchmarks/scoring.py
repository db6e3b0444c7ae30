"""What scoring costs over gRPC: a `prunewatch serve` on one core, asked by this process on another.

Parts, each a table; medians over rounds that take turns:

  echo       an LSTM 2x32 against a bare echo (benchmarks/echo_service.py) that takes and returns messages of the same
             sizes: 256 points of 256 series, 8 float32 each, 8 KiB. One by one: the next message is sent when the
             answer is there; pipelined: up to 8 are on their way; unary: one point in a Score call of its own, against
             the echo and one step; half load: an open loop at half the rate the hub takes pipelined
  step       one step of such a batch against its bare matrix products in numpy
  peers      an LSTM 2x128 is fitted and pruned; its child with carried state against services that run parent and
             child over the last 50 points again: PyOD's LSTMAD, torch and ONNX Runtime behind plain gRPC, MLServer and
             Triton. Each must give the right scores before it is timed. All in one run (see scoring_peers.py)
  streams    1,000 open streams with a point a second each: errors, memory, time
  metrics    the share of a message's processor time that counting and timing take
  precision  what pruning cost on labelled data: average precision of a 2x128 and its child (see main_job.py)
  memory     growth in N minutes of right, wrong and cancelled messages; only with --memory-minutes N

MLServer and Triton live in environments of their own, which are made once under benchmarks/cache/ (pip, a minute or
two each); the pruned store is kept there too. A peer that can not be installed or started is skipped, and its row says
why. With both there, all parts take a quarter of an hour, or three minutes with --quick.

Parts that are not run keep their tables in the document.

Examples:
  python benchmarks/scoring.py --quick --json scoring.json
  python benchmarks/scoring.py --only peers echo
  python benchmarks/scoring.py --only memory --memory-minutes 60

Needs two cores and Linux. Targets: points_vs_echo >= 0.4, step_vs_matmul >= 0.35, points_vs_windowed_parent >= 100 and
points_vs_windowed_child >= 16 (the fastest peer counts), unary_p50_vs_echo <= 1.5, metrics_overhead <= 0.02.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import harness
import main_job
import scoring_echo
import scoring_metrics
import scoring_peers
import scoring_step
import scoring_streams
from parts import kept_parts, sections
from scoring_client import Messages, free_ports, on_core, one_by_one, pipelined, two_cores
from scoring_models import CACHE, SMALL, copied_store, fitted_store, served_graph
from scoring_report import Part, table

__all__ = ["Messages", "fitted_store", "free_ports", "one_by_one", "pipelined"]  # other benchmarks send messages too

USUAL = ("echo", "step", "peers", "streams", "metrics", "precision")
PARTS = (*USUAL, "memory")
SHOWN = ("peers", "echo", "step", "streams", "memory", "metrics", "precision")
"""Their order in the document."""


def run(args: argparse.Namespace) -> harness.Result:
    """The parts that were asked for, one after the other.

    Raises:
        harness.Skip: there are no two cores, or processes can not be pinned here.
    """
    client_core, service_core = two_cores()[:2]
    parts = dict(_parts(args, client_core, service_core))
    figures = {name: part.figures for name, part in parts.items()}
    ratios = {key: value for part in parts.values() for key, value in part.ratios.items()}
    return harness.Result(figures, ratios, sections(kept(args.docs), parts, SHOWN, quick=args.quick))


def kept(document: Path) -> dict[str, str]:
    """Parts that stand in the document: those that do not run stay as they are."""
    return kept_parts(document, "scoring")


def _parts(args: argparse.Namespace, client_core: int, core: int) -> Iterator[tuple[str, Part]]:
    wanted = [name for name in PARTS if name in args.only]
    with TemporaryDirectory(prefix="prunewatch-bench-") as temporary, on_core(client_core):
        folder = Path(temporary)
        if "peers" in wanted:
            harness.say("== peers")
            place = _folder(folder, "peers")
            with copied_store(args.cache) as store:
                served = scoring_peers.run(
                    store, place, core, quick=args.quick, cache=args.cache, install=not args.no_install
                )
                yield "peers", asyncio.run(served)
        small = [name for name in wanted if name in {"echo", "step", "streams", "metrics", "memory"}]
        if small:
            fitted = fitted_store(_folder(folder, "fitted"))
            graph = served_graph(fitted.parent / "store", SMALL)
        for name in small:
            harness.say(f"== {name}")
            place = _folder(folder, name)
            config = _copied(fitted, place)  # each part begins with the store as it was fitted
            match name:
                case "echo":
                    yield name, asyncio.run(scoring_echo.run(config, graph, place, core, quick=args.quick))
                case "step":
                    yield name, scoring_step.run(graph, quick=args.quick)
                case "streams":
                    yield name, asyncio.run(scoring_streams.run(config, place, core, quick=args.quick))
                case "metrics":
                    second = _copied(fitted, _folder(place, "metered"))
                    yield name, asyncio.run(scoring_metrics.run(config, second, place, core, quick=args.quick))
                case _:
                    yield name, asyncio.run(scoring_streams.memory(config, place, core, args.memory_minutes))
    if "precision" in wanted:
        harness.say("== precision")
        yield "precision", precision(quick=args.quick)


def precision(*, quick: bool) -> Part:
    """Average precision of a parent and its child on a labelled series: the first seed of the main job."""
    title = f"What pruning cost: LSTM 2x128 on `{main_job.SERIES}`"
    if quick:
        return Part(title, {"skipped": "a quick run"}, {}, "Skipped: a quick run fits nothing to labelled data.")
    try:
        (seed,) = main_job.run(quick=True).figures["seeds"]
    except harness.Skip as reason:
        return Part(title, {"skipped": str(reason)}, {}, f"Skipped: {reason}.")
    found, child = seed["precision"], seed["child"]
    if "child" not in found:
        return Part(title, {"outcome": seed["outcome"]}, {}, f"The child was rejected: {seed['reason']}")
    units = "-".join(str(n) for n in child["units"].values())
    change = found["child"] - found["parent"]
    cells = [units, f"{found['parent']:.3f}", f"{found['child']:.3f}", f"{change:+.3f}"]
    heads = ["child", "average precision, parent", "child", "change"]
    return Part(title, {**found, "units": units}, {"precision_change": change}, table(heads, [cells]))


def _folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def _copied(config: Path, folder: Path) -> Path:
    """A copy of a configuration and its store."""
    source = config.parent
    shutil.copytree(source / "store", folder / "store")
    text = config.read_text(encoding="utf-8").replace(str(source), str(folder))
    (folder / config.name).write_text(text, encoding="utf-8")
    return folder / config.name


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--memory-minutes", type=float, metavar="N", help="also watch memory for so many minutes")
    parser.add_argument("--no-install", action="store_true", help="skip peers whose environment is not there yet")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=CACHE,
        help="of environments and stores (default: benchmarks/cache)",
    )
    args = parser.parse_args()
    if args.only is None:
        args.only = USUAL + (("memory",) if args.memory_minutes else ())
    if "memory" in args.only and not args.memory_minutes:
        parser.error("for how long? add --memory-minutes N")
    return args


def main() -> None:
    """Runs as a script."""
    args = arguments()
    try:
        harness.publish("scoring", run(args), args, signed=False)
    except harness.Skip as reason:
        harness.skip("scoring", reason, args)


if __name__ == "__main__":
    main()
