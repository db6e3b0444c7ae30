"""Golden sets: a first parent and some of its points, kept as long as a parent that descends from it.

`<store>/golden/<name>/<parent hash>.safetensors`: the first parent's weights file as bytes, `points<i>` for each
stretch, and in the header the seed of the anomalies that are injected. A parent that was trained on inherits the file
of the one before (a link); a fit that somebody asked for makes its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from detectors.bundle import fsync_folder, make_folder, replaced, write_durably
from detectors.errors import CorruptBundleError, PreconditionError
from detectors.failpoints import failpoint
from detectors.training.fitted import load, save
from detectors.training.stretches import Stretches
from pruning.parent_gate import Golden
from server.layout import BUNDLES, GOLDEN

FIRST = "first"
SUFFIX = ".safetensors"


def golden_path(store: Path, name: str, parent_hash: str) -> Path:
    """Where the golden set of a parent lies, or would lie."""
    return store / GOLDEN / name / f"{parent_hash}{SUFFIX}"


def write_golden(store: Path, name: str, parent_hash: str, golden: Golden) -> None:
    """Keeps the golden set of a parent, whole or not at all."""
    tensors = {f"points{i}": np.ascontiguousarray(part) for i, part in enumerate(golden.points.parts)}
    tensors[FIRST] = np.frombuffer(save(golden.first), np.uint8)
    header = json.dumps({"seed": golden.seed, "follows": golden.follows})
    path = golden_path(store, name, parent_hash)
    make_folder(path.parent)
    with replaced(path) as partial:
        write_durably(partial, safetensors.numpy.save(tensors, {"golden": header}))
        failpoint("golden.before_rename")


def inherit_golden(store: Path, name: str, parent_hash: str, heir_hash: str) -> None:
    """Lets a parent that was trained on have the golden set of the one before, where there is one."""
    path, heir = golden_path(store, name, parent_hash), golden_path(store, name, heir_hash)
    if path.is_file() and not heir.exists():
        os.link(path, heir)
        fsync_folder(heir.parent)


def read_golden(store: Path, name: str, parent_hash: str) -> Golden | None:
    """The golden set of a parent; None where none was kept.

    Raises:
        PreconditionError: it is damaged.
    """
    path = golden_path(store, name, parent_hash)
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["golden"])
        tensors = safetensors.numpy.load(content)
        first = load(tensors.pop(FIRST).tobytes())
        points = Stretches(tuple(tensors[f"points{i}"] for i in range(len(tensors))))
        return replace(Golden(first, points, int(header["seed"])), follows=bool(header["follows"]))
    except (KeyError, TypeError, ValueError, SafetensorError, CorruptBundleError) as error:
        raise PreconditionError(
            "is damaged, so no parent can be judged by it.",
            field=str(path.relative_to(store)),
            hint="Fit the detector again: that keeps a new one. Or restore a backup.",
        ) from error


def sweep_golden(store: Path) -> None:
    """Removes the golden sets of parents that are gone, and what was half written."""
    for path in (store / GOLDEN).glob("*/*"):
        if path.suffix != SUFFIX or not (store / BUNDLES / path.stem).is_dir():
            path.unlink(missing_ok=True)
