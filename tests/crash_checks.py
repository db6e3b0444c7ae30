"""What must hold of a hub that was started again after a crash."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from crashing import FEATURES, GOLDEN, NAME, Memory, Node, connected

from detectors.bundle import read_bundle
from detectors.runtime import Runtime
from detectors.stamps import Status
from server.layout import BUNDLES, CATALOG, HISTORY
from server.reservoir import is_reservoir
from server.segments import read_segment, schema_of


def offline(root: Path, bundle_hash: str) -> np.ndarray:
    """Golden scores of a bundle, point after point, from its verified bytes alone."""
    bundle = read_bundle(root / BUNDLES / bundle_hash, bundle_hash)
    runtime = Runtime(bundle.graph)
    state, scores = runtime.fresh(1), []
    for point in GOLDEN:
        step = runtime.step(point[None], state)
        state = step.state
        scores.append(step.score[0])
    found = np.array(scores, np.float32)
    found[: bundle.manifest.warm_up_points] = np.nan
    return found


async def check(node: Node, memory: Memory) -> None:
    """Exactly one whole published version serves; the book is closed; the history can be read."""
    async with connected(node) as client:
        memory.learn(await client.versions(NAME))
        shown = await client.get(NAME)
        serving = [it for it in shown["served"] if it["device_class"] == "hub"]
        reply = await client.score(NAME, values=GOLDEN, series=["golden"], ephemeral=True)
    assert len(serving) <= 1
    if serving:
        assert not shown["problem"]
        version = serving[0]["version"]
        assert version in memory.allowed, (version, memory.allowed)
        assert reply.version == version
        assert np.array_equal(reply.scores, offline(node.root, memory.hashes[version]), equal_nan=True)
        assert reply.threshold == np.float32(shown["threshold"])
        memory.allowed = {version}
    else:
        assert memory.allowed <= {0, 1}
        assert (reply.statuses == Status.LEARNING).all()
    _check_book(node.root)
    _check_history(node.root)


def _check_book(root: Path) -> None:
    """Nothing runs any more, and all that is named is there."""
    with closing(sqlite3.connect(f"file:{root / CATALOG}?mode=ro", uri=True)) as book:
        assert book.execute("SELECT count(*) FROM cycles WHERE outcome = 'running'").fetchone() == (0,)
        assert book.execute("SELECT count(*) FROM operations WHERE state = 'running'").fetchone() == (0,)
        for (bundle_hash,) in book.execute("SELECT hash FROM bundles").fetchall():
            read_bundle(root / BUNDLES / bundle_hash, bundle_hash, weights=True)


def _check_history(root: Path) -> None:
    """Every point that was kept is there once."""
    seen: set[tuple[str, int]] = set()
    for path in sorted((root / HISTORY / NAME).glob("*.parquet")):
        table = read_segment(path, schema_of(FEATURES))
        if is_reservoir(path):
            continue
        points = set(zip(table["series"].to_pylist(), table["stamp"].to_pylist(), strict=True))
        assert len(points) == table.num_rows
        assert not points & seen
        seen |= points


def check_replies(node: Node, memory: Memory) -> int:
    """Each reply has exactly the scores of the version it names; returns how many versions those were.

    Replies of versions that have been let go meanwhile must at least have been told the same by all of their replies.
    """
    told: dict[int, np.ndarray] = {}
    for reply in memory.replies:
        if reply.version == 0:
            assert (reply.statuses == Status.LEARNING).all()
            continue
        assert set(reply.point_versions) == {reply.version}
        assert reply.version in memory.hashes
        first = told.setdefault(reply.version, reply.scores)
        assert np.array_equal(first, reply.scores, equal_nan=True), reply.version
    for version, scores in told.items():
        if (node.root / BUNDLES / memory.hashes[version]).is_dir():
            assert np.array_equal(scores, offline(node.root, memory.hashes[version]), equal_nan=True)
    assert len({scores[np.isfinite(scores)].tobytes() for scores in told.values()}) == len(told)
    return len(told)
