"""The detectors of prunewatch in the detection benchmark: fitted, exported and scored as the service does it."""

from __future__ import annotations

import ast
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from detection_series import Detection, Series, Stopwatch

OURS = (
    "ensemble",
    "lstm",
    "gru",
    "autoencoder",
    "conv_autoencoder",
    "lstm_autoencoder",
    "variational_autoencoder",
    "isolation_forest",
)
"""Kinds of detectors; one that this version can not fit is left out."""
DEFAULT = "lstm"
"""The kind that a user gets without asking for one."""
COSTLIER = "ensemble"
"""The kind for who can spend twice as much a point."""
RATE = 0.02  # of normal points flagged: what the threshold asks for
THRESHOLD = -math.log10(RATE)
WARM_ROWS = 60  # beside the warm-up: the last training rows go before the test part, as in a stream
TRAINING = harness.ROOT / "detectors" / "training"
NETWORKS = TRAINING / "networks"


@dataclass(frozen=True)
class Ours:
    """One kind of detector, with its defaults.

    Attributes:
        kind: Of detector.
        version: Of the code behind it.
        seeded: Whether anything about it is random.
    """

    kind: str
    version: str
    seeded: bool = True

    def __call__(self, series: Series, seed: int) -> Detection:
        """Fits and exports; scores point after point through the runtime and the scorer of the service."""
        from detectors.bundle import Lineage
        from detectors.scorer import Scorer, score_alone
        from detectors.served import Served
        from detectors.training.export import to_bundle
        from detectors.training.fit import fit
        from detectors.training.stretches import Stretches

        train, test = series.train.astype(np.float32), series.test.astype(np.float32)
        watch = Stopwatch()
        fitted = fit(self.kind, Stretches.of([train]), series.features, seed=seed)
        lineage = Lineage(cause="fit", seed=seed, data_rows=len(train))
        bundle = to_bundle(fitted, detector="series", version=1, device_class="parent", lineage=lineage)
        fit_seconds = watch.lap()
        scorer = Scorer(Served.load(bundle))
        warm = train[-(bundle.manifest.warm_up_points + WARM_ROWS) :]
        for _ in score_alone(scorer, "series", np.arange(len(warm)), warm):
            pass
        watch.lap()
        stamps = np.arange(len(warm), len(warm) + len(test))
        scores = np.concatenate([part.score for part in score_alone(scorer, "series", stamps, test)])
        return Detection(scores, scores >= THRESHOLD, fit_seconds, watch.lap())


def ours() -> dict[str, Ours]:
    """The kinds of `OURS` that this version can fit."""
    from detectors.training.networks import KINDS

    return {kind: Ours(kind, code_version(kind)) for kind in OURS if kind in KINDS}


def code_version(kind: str) -> str:
    """A hash of the code that fits and exports a kind; comments and docstrings do not count."""
    sources = sorted({*TRAINING.glob("*.py"), NETWORKS / "base.py", *_behind(_defining(kind), set())})
    text = "".join(f"{path.relative_to(TRAINING)}\n{_bare(path)}\n" for path in sources)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _defining(kind: str) -> Path:
    from detectors.training.networks import network_class

    module = network_class(kind).__module__.removeprefix("detectors.training.networks.")
    return NETWORKS / f"{module.replace('.', '/')}.py"


def _behind(path: Path, seen: set[Path]) -> set[Path]:
    """A file of a network and those of other networks that it imports, however far away."""
    if path in seen:
        return seen
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "detectors.training.networks":
            for other in NETWORKS.glob("*.py"):  # the package: any of them
                _behind(other, seen)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectors.training.networks."):
            _behind(NETWORKS / f"{node.module.rsplit('.', 1)[1]}.py", seen)
    return seen


def _bare(path: Path) -> str:
    """The code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
