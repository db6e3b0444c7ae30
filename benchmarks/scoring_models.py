"""What is served in the benchmark of scoring: a small LSTM, and a large one with the child that pruning made of it.

All are fitted and pruned through the command line on drawn points of 8 features. That takes a minute, so the store is
kept (benchmarks/cache/, git-ignored) while no source file of the product changes, and each run works on a copy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import harness

CACHE = harness.ROOT / "benchmarks" / "cache"
SERIES, FEATURES, WIDTH, PARENT_WIDTH = 256, 8, 32, 128
FIT_POINTS = 4000
SPEEDUP, SIZE = "4", "60KiB"
"""What the child must meet. The size decides, the same on every machine: about a quarter of the units, 2x32."""
SMALL, PRUNED = "machine", "pruned"
"""The detectors: an LSTM 2x32 as it was fitted, and the child of an LSTM 2x128."""
SOURCES = ("detectors", "pruning", "server")


@dataclass(frozen=True)
class Store:
    """A copy of the store with both detectors.

    Attributes:
        config: Its configuration.
        graphs: Step graphs by name: `small`, `parent` and `child`.
        units: Of the child, as 32-24.
        detector: Which detector serves the child.
    """

    config: Path
    graphs: dict[str, bytes]
    units: str
    detector: str = PRUNED


def training_file(folder: Path) -> Path:
    """A CSV of drawn points."""
    import pandas as pd

    values = harness.drawn(FIT_POINTS, 1, FEATURES, seed=2)[:, 0]
    frame = pd.DataFrame(values, columns=[f"f{i + 1}" for i in range(FEATURES)])
    frame.to_csv(folder / "train.csv", index_label="row")
    return folder / "train.csv"


def fitted_store(folder: Path, width: int = WIDTH) -> Path:
    """A configuration beside a store that holds an LSTM of two such layers, fitted through the command line."""
    config = _configured(folder, {SMALL: width})
    _fit(folder, config, SMALL, training_file(folder))
    return config


@contextmanager
def copied_store(cache: Path = CACHE) -> Iterator[Store]:
    """A fresh copy of the store with both detectors, which is made where the cache has none of these sources."""
    kept = cache / f"scoring-{_sources_hash()}"
    if not (kept / "hashes.json").is_file():
        _make(kept)
    with TemporaryDirectory(prefix="prunewatch-bench-") as name:
        folder = Path(name)
        shutil.copytree(kept / "store", folder / "store")
        about = json.loads((kept / "hashes.json").read_text(encoding="utf-8"))
        config = _configured(folder, {SMALL: WIDTH, PRUNED: PARENT_WIDTH})
        yield Store(config, _graphs(folder / "store", about["hashes"]), about["units"])


def _graphs(path: Path, hashes: dict[str, str]) -> dict[str, bytes]:
    """Read before anybody serves: a store has one process at a time."""
    from server.store import Store as Opened

    with Opened.open(path, create=False) as opened:
        return {name: opened.read_bundle(each).graph for name, each in hashes.items()}


def served_graph(path: Path, name: str) -> bytes:
    """The step graph that a detector of a store serves."""
    served = _cli("show", name, "--store", str(path), "--json")["served"]
    return _graphs(path, {name: served[0]["bundle_hash"]})[name]


def _make(kept: Path) -> None:
    """Fits both and prunes the large one; what is half done when this is interrupted is made anew."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    data = training_file(kept)
    config = _configured(kept, {SMALL: WIDTH, PRUNED: PARENT_WIDTH})
    _fit(kept, config, SMALL, data)
    _fit(kept, config, PRUNED, data)
    shown = _cli("show", SMALL, "--store", str(kept / "store"), "--json")
    harness.say(f"pruning the LSTM 2x{PARENT_WIDTH} to {SIZE} and a step {SPEEDUP} times as fast")
    command = ["prune", PRUNED, "--speedup", SPEEDUP, "--size", SIZE, "--batch", str(SERIES), "--seed", "0"]
    pruned = _cli(*command, "--store", str(kept / "store"), "--json")
    if pruned.get("outcome") != "adopted":
        sys.exit(f"the child was rejected, so there is nothing to compare: {pruned.get('reason')}")
    small = shown["served"][0]["bundle_hash"]
    hashes = {"small": small, "parent": pruned["parent"]["hash"], "child": pruned["child"]["hash"]}
    about = {"hashes": hashes, "units": "-".join(str(n) for n in pruned["child"]["units"].values())}
    (kept / "hashes.json").write_text(json.dumps(about), encoding="utf-8")


def _fit(folder: Path, config: Path, name: str, data: Path) -> None:
    harness.say(f"fitting detector {name!r}")
    options = ["--data", str(data), "--config", str(config), "--store", str(folder / "store")]
    subprocess.run([*harness.CLI, "fit", name, *options], cwd=harness.ROOT, check=True, stdout=sys.stderr)


def _cli(*arguments: str) -> dict:
    done = subprocess.run([*harness.CLI, *arguments], cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.startswith("{"):
        sys.exit(f"prunewatch {arguments[0]} failed with exit code {done.returncode}")
    return json.loads(done.stdout)


def _configured(folder: Path, widths: dict[str, int]) -> Path:
    lines = [f"  {name}: {{network: lstm, options: {{layers: 2, width: {width}}}}}" for name, width in widths.items()]
    config = folder / "prunewatch.yaml"
    config.write_text("\n".join([f"store: {folder / 'store'}", "detectors:", *lines, ""]), encoding="utf-8")
    return config


def _sources_hash() -> str:
    files = sorted(path for folder in SOURCES for path in (harness.ROOT / folder).rglob("*.py"))
    content = hashlib.sha256(Path(__file__).read_bytes())
    for path in files:
        content.update(path.read_bytes())
    return content.hexdigest()[:12]
