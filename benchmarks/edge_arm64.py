"""The same bundles on another architecture: are the scores the same?

Bundles of every kind of network and golden inputs are made here, scored here and there, and compared point by point.
*There* is an edge image of the other architecture, under emulation (binfmt, qemu-user) or not:

  docker buildx build --platform linux/arm64 --target edge -t prunewatch:edge-arm64 .
  python benchmarks/edge.py --only arm64

or a device with the base install, to which a folder is copied:

  python benchmarks/edge_arm64.py write golden && scp -r golden benchmarks/edge_golden.py pi:
  ssh pi python edge_golden.py golden > scores.json
  python benchmarks/edge_arm64.py compare golden scores.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import edge_device
import edge_golden
import harness
import numpy as np
from edge_images import command_output, engine, image_architecture
from scoring_report import Part, table

IMAGE = "prunewatch:edge-arm64"
KINDS = (
    "lstm",
    "gru",
    "autoencoder",
    "conv_autoencoder",
    "lstm_autoencoder",
    "variational_autoencoder",
    "isolation_forest",
    "ensemble",
)
SERIES, POINTS = 8, 200
THRESHOLD = 3.0  # one normal point in a thousand
NAMES = {"amd64": "x86_64", "arm64": "aarch64"}  # of images -> of machines


def write(folder: Path, *, quick: bool) -> None:
    """Makes bundles and golden inputs, a few of them far from normal."""
    for kind in KINDS[:3] if quick else KINDS:
        harness.say(f"fitting {kind}")
        edge_device.packed_bundle(folder, kind)
        values = harness.drawn(POINTS, SERIES, edge_device.FEATURES, seed=5)
        values[-20:, ::2] *= np.float32(1.5)
        np.save(folder / f"{kind}.npy", values)


def run(folder: Path, image: str, *, quick: bool) -> Part:
    """Compares this machine with an image.

    Raises:
        harness.Skip: there is no such image, or it can not be run here.
    """
    tool = engine()
    architecture = tool and image_architecture(tool, image)
    if not tool or not architecture:
        raise harness.Skip(f"there is no image {image}; see python benchmarks/edge_arm64.py --help")
    write(folder, quick=quick)
    shutil.copy(edge_golden.__file__, folder)
    mounts = ["-v", f"{folder.resolve()}:/golden:ro"]
    emulated = NAMES.get(architecture, architecture) != platform.machine()
    if emulated:
        # ONNX Runtime asks /sys which processors there are and would find those of the host.
        (folder / "no-cpus").mkdir()
        mounts += ["-v", f"{(folder / 'no-cpus').resolve()}:/sys/devices/system/cpu:ro"]
    _readable(folder)
    harness.say(f"scoring in {image}")
    entry = ["--entrypoint", "python", image, "/golden/edge_golden.py", "/golden"]
    limits = ["--rm", "--network", "none", "--read-only", "--platform", f"linux/{architecture}"]
    there = json.loads(command_output(tool, "run", *limits, *mounts, *entry))
    return compared(edge_golden.scored(folder), there, emulated=emulated)


def compared(here: dict[str, Any], there: dict[str, Any], *, emulated: bool = False) -> Part:
    """What differs between two machines' scores of the same golden inputs."""
    rows, figures = [], {}
    for name, mine in here["results"].items():
        other = there["results"][name]
        scores, others = (np.array(it["scores"], np.float32) for it in (mine, other))
        scored = np.isfinite(scores)
        found = {
            "points": int(scored.sum()),
            "equal_bits_share": float((scores[scored] == others[scored]).mean()),
            "largest_difference": float(np.abs(scores[scored] - others[scored]).max()),
            "largest_score": float(scores[scored].max()),
            "statuses_equal": mine["statuses"] == other["statuses"],
            "anomalies": int((scores[scored] >= THRESHOLD).sum()),
            "anomalies_equal": bool(np.array_equal(scores[scored] >= THRESHOLD, others[scored] >= THRESHOLD)),
        }
        figures[name] = found
        rows.append(
            [
                f"`{name}`",
                f"{found['points']:,}",
                f"{found['equal_bits_share']:.1%}",
                f"{found['largest_difference']:.1e}",
                f"{found['largest_score']:.1f}",
                "the same" if found["statuses_equal"] else "**differ**",
                f"{found['anomalies']}: {'the same' if found['anomalies_equal'] else '**differ**'}",
            ]
        )
    heads = ["network", "scores", "equal to the bit", "largest difference", "largest score", "statuses", "anomalies"]
    where = f"{there['architecture']}{' (emulated)' if emulated else ''}, {_packages(there)}"
    title = f"The same bundles on {where} and on {here['architecture']}, {_packages(here)}"
    largest = max(it["largest_difference"] for it in figures.values())
    return Part(title, {**figures, "largest_difference": largest, "emulated": emulated}, {}, table(heads, rows))


def _packages(side: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in side["versions"].items())


def _readable(folder: Path) -> None:
    """The image runs as another user."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)


def main() -> None:
    """Runs as a script: writes golden inputs, or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="bundles and golden inputs").add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="this machine's scores with those of another")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("scores", type=Path, metavar="SCORES.json", help="what edge_golden.py printed there")
    args = parser.parse_args()
    if args.command == "write":
        args.folder.mkdir(parents=True, exist_ok=True)
        write(args.folder, quick=False)
        return
    there = json.loads(args.scores.read_text("utf-8"))
    part = compared(edge_golden.scored(args.folder), there)
    print(f"{part.title}\n\n{part.table}")
    same = all(it["statuses_equal"] and it["anomalies_equal"] for it in part.figures.values() if isinstance(it, dict))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
