"""What the edge costs on a device.

Parts, each a table in a module of its own; those that are not run keep their tables in the document:

  footprint  `prunewatch edge` with an LSTM 2x32 of 38 features on one core: resident memory with 100 series, time from
             the start of the process to the first score over gRPC, and the sizes of the container images above their
             base, where podman or docker has them (docker build --target edge -t prunewatch:edge . and hub)
  arm64      the same bundles on another machine or architecture: are the scores the same? (edge_arm64.py)
  loop       a device on one core, half of which a spinner has; the parent misses its budget by 2x, 5x and 4x: cycles
             until what it runs is measured there inside the budget, and its average precision (edge_loop.py)
  runtimes   the same bundles in OpenVINO and LiteRT, in environments under benchmarks/cache/ (made without --quick)
  faults     200 faults during deliveries to 8 devices (edge_faults.py), in about eight minutes; full disks are
             small tmpfs where they can be mounted

Examples:
  python benchmarks/edge.py --quick --json edge.json
  python benchmarks/edge.py --only arm64 --image prunewatch:edge-arm64

Needs two cores and Linux. Aims: resident memory <= 130 MB, first score <= 2 s, edge image <= 200 MB above its base, hub
image <= 1.5 GB above it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import edge_arm64
import edge_faults
import edge_footprint
import edge_loop
import edge_runtimes
import harness
from parts import kept_parts, sections
from scoring_report import Part

PARTS = ("footprint", "arm64", "runtimes", "loop", "faults")
"""In the order of the document."""


def run(args: argparse.Namespace) -> harness.Result:
    """The parts that were asked for.

    Raises:
        harness.Skip: none of them can run here.
    """
    parts = dict(_parts(args))
    if not parts:
        raise harness.Skip("no part can run here")
    figures = {name: part.figures for name, part in parts.items()}
    ratios = {key: value for part in parts.values() for key, value in part.ratios.items()}
    return harness.Result(figures, ratios, sections(kept_parts(args.docs, "edge"), parts, PARTS, quick=args.quick))


def _parts(args: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    for name in args.only:
        harness.say(f"== {name}")
        with TemporaryDirectory(prefix="prunewatch-bench-") as folder:
            try:
                match name:
                    case "footprint":
                        yield name, edge_footprint.run(Path(folder), quick=args.quick, images=not args.no_images)
                    case "loop":
                        yield name, edge_loop.run(Path(folder), quick=args.quick)
                    case "runtimes":
                        yield name, edge_runtimes.run(Path(folder), quick=args.quick)
                    case "faults":
                        yield name, edge_faults.run(Path(folder), quick=args.quick)
                    case _:
                        yield name, edge_arm64.run(Path(folder), args.image, quick=args.quick)
            except harness.Skip as reason:
                harness.say(f"SKIPPED {name}: {reason}")


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--image",
        default=edge_arm64.IMAGE,
        help=f"an edge image of the other architecture (default: {edge_arm64.IMAGE})",
    )
    parser.add_argument("--no-images", action="store_true", help="leave container images out of the footprint")
    args = parser.parse_args()
    try:
        harness.publish("edge", run(args), args, signed=False)
    except harness.Skip as reason:
        harness.skip("edge", reason, args)


if __name__ == "__main__":
    main()
