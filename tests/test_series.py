"""Series in bounded memory: they leave for the disk, come back bit by bit the same, and outlive the process."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fits import untrained
from graphs import ewma_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.runtime import Runtime
from detectors.scorer import Scored, Scorer
from detectors.served import Served
from detectors.shelf import GONE, Shelved
from detectors.stamps import StampPolicy, Status
from detectors.training.export import step_graph
from server.series_file import SeriesFile

FEATURES, RING = 2, 8
EACH = 4 * RING * FEATURES + 4 * FEATURES  # bytes of one series under the small graph: its ring and its state
drawn = settings(max_examples=60, deadline=None, derandomize=True)


def ewma(gain: float = 1.0, version: int = 1, alpha: float = 0.1) -> Served:
    """A version whose arithmetic is the same in every batch, bit for bit."""
    return Served.load(ewma_bundle("pump", version, FEATURES, gain=gain, alpha=alpha))


class Clock:
    """Seconds that pass when somebody looks."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        """The next second."""
        self.now += 1.0
        return self.now


def scorer(path: Path, room: int, **fields) -> Scorer:
    """With room for so many series."""
    return Scorer(
        fields.pop("served", None) or ewma(),
        ring_points=RING,
        memory=room * EACH,
        shelf=SeriesFile(path),
        clock=Clock(),
        **fields,
    )


def score(scorer: Scorer, series: Sequence[int], clock: int, values: np.ndarray) -> Scored:
    """One point of each series named, stamps going on from `clock`."""
    slots = scorer.series.slots([f"s{i}" for i in series])
    return scorer.score(slots, clock + np.arange(len(series)), values)


def save(scorer: Scorer) -> None:
    """What the server does every minute and when it ends."""
    copies = scorer.carried.copies(scorer.carried.unsaved())
    scorer.carried._shelf.put(copies.rows)
    scorer.carried.saved(copies)


def same(a: Scored, b: Scored) -> None:
    """Bit for bit."""
    assert a.status.tobytes() == b.status.tobytes()
    assert a.score.tobytes() == b.score.tobytes()
    assert a.contribution.tobytes() == b.contribution.tobytes()


steps = st.one_of(
    st.lists(st.integers(0, 11), min_size=1, max_size=14),  # points of these series, repeats and all
    st.sampled_from(["swap", "begin swap", "save", "restart", "let go", "begin anew"]),
)


@pytest.mark.promise("L6")
@drawn
@given(st.lists(steps, max_size=24), st.integers(1, 6), st.data())
def test_series_that_left_come_back_as_if_they_had_not(tmp_path_factory, work, room: int, data) -> None:
    """Whatever happens in between: swaps that begin and end, checkpoints, ends of the process, deletions.

    Beside it a scorer with room for all does the same. Its state is that of a series replayed from its ring where the
    other one's is: both start series anew from their rings when a version takes over, and arithmetic is the same.
    """
    path = tmp_path_factory.mktemp("series") / "pump.db"
    small, large = scorer(path, room), Scorer(ewma(), ring_points=RING)
    begun = []
    clock, version = 0, 1
    values = np.random.default_rng(0).normal(size=(4000, FEATURES)).astype(np.float32)
    for step in work:
        if isinstance(step, list):
            rows = values[clock : clock + len(step)]
            same(score(small, step, clock, rows), score(large, step, clock, rows))
            clock += len(step)
        elif step == "begin swap":
            version += 1
            begun = [it.successor(ewma(1.0 + version / 7, version)) for it in (small, large)]
            for successor in begun:
                if (replay := successor.snapshot(2)) is not None:
                    successor.run(replay)
                    successor.commit(replay)
        elif step == "swap" and begun:
            for it, successor in zip((small, large), begun, strict=True):
                it.flip(successor)
            begun = []
        elif step == "save":
            save(small)
        elif step == "restart":
            save(small)
            small.carried._shelf.close()
            served, begun = small.served, []
            small = scorer(path, room, served=served)
            small.carried.unshelve()
        else:
            names = [f"s{i}" for i in data.draw(st.lists(st.integers(0, 11), max_size=4))]
            for it in (small, large):
                known = it.series.known(names)
                (it.carried.let_go if step == "let go" else it.carried.begin_anew)(known)
        assert small.series.seated <= max(room, 1)
        assert len(small.series) == len(large.series)
    small.carried._shelf.close()


@pytest.mark.promise("L6")
@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "lstm_autoencoder"])
def test_networks_go_on_bit_by_bit(tmp_path: Path, kind: str) -> None:
    """10,000 series with room for 2,000 (a tenth of both for slow networks): each score as with room for all."""
    detector = untrained(kind, FEATURES, 1)
    served = Served(1, "it", Runtime(step_graph(detector)), detector.warm_up_points)
    n = 10_000 if kind == "lstm" else 1_000
    large = Scorer(served)
    each = 4 * large.series.ring_points * FEATURES + served.runtime.state_bytes
    small = Scorer(served, memory=n // 5 * each, shelf=SeriesFile(tmp_path / "pump.db"), clock=Clock())
    rng = np.random.default_rng(3)
    names = [f"s{i}" for i in range(n)]
    for turn in range(detector.warm_up_points + 3 if kind != "lstm" else 12):
        for part in np.split(rng.permutation(n), 10):
            values = rng.normal(size=(len(part), FEATURES)).astype(np.float32)
            stamps = np.full(len(part), turn)
            got = [it.score(it.series.slots([names[i] for i in part]), stamps, values) for it in (small, large)]
            same(*got)
    assert small.series.seated <= n // 5 < len(small.series) == n
    assert small.carried.left > n
    assert small.state_bytes < 0.35 * large.state_bytes


def test_a_message_of_more_series_than_there_is_room_for_is_scored(tmp_path: Path) -> None:
    """In parts, each series once, in order."""
    small, large = scorer(tmp_path / "pump.db", 3), Scorer(ewma(), ring_points=RING)
    rng = np.random.default_rng(0)
    for turn in range(6):
        values = rng.normal(size=(10, FEATURES)).astype(np.float32)
        same(score(small, range(10), 10 * turn, values), score(large, range(10), 10 * turn, values))
    assert small.series.seated <= 3


def test_those_that_were_silent_for_longest_leave(tmp_path: Path) -> None:
    """Room for four: the one that was heard of last stays."""
    small = scorer(tmp_path / "pump.db", 4)
    for clock, name in enumerate([0, 1, 2, 3, 0, 1, 4]):
        score(small, [name], clock, np.ones((1, FEATURES), np.float32))
    seated = {small.series.name(slot) for slot in np.flatnonzero(small.series.seat >= 0)}
    assert seated == {"s3", "s0", "s1", "s4"}


@pytest.mark.promise("R4")
def test_scoring_goes_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """Series stay in memory beyond what they may take, and leave it again when they can."""

    class Full(SeriesFile):
        is_full = False

        def put(self, rows: Sequence[Shelved]) -> None:
            if self.is_full:
                raise OSError(28, "No space left on device")
            super().put(rows)

    shelf = Full(tmp_path / "pump.db")
    small = Scorer(ewma(), ring_points=RING, memory=3 * EACH, shelf=shelf, clock=Clock())
    large = Scorer(ewma(), ring_points=RING)
    rng = np.random.default_rng(0)
    most = []
    for turn in range(12):
        shelf.is_full = 3 <= turn < 8
        for part in ([0, 1, 2], [3, 4, 5], [6, 7, 8]):
            values = rng.normal(size=(3, FEATURES)).astype(np.float32)
            same(score(small, part, 10 * turn, values), score(large, part, 10 * turn, values))
        most.append(small.series.seated)
        if turn == 8:
            save(small)
            small.carried.leave_excess()
    assert most[2:9] == [3, 9, 9, 9, 9, 9, 9]
    assert most[-1] == 3


def test_what_can_not_be_read_begins_anew(tmp_path: Path) -> None:
    """A row that is missing, one that is too short, and one of another width: they warm up, others go on."""
    path = tmp_path / "pump.db"
    small = scorer(path, 2)
    for turn in range(5):
        for name in range(6):
            score(small, [name], 10 * turn + name, np.ones((1, FEATURES), np.float32))
    with sqlite3.connect(path) as book:
        book.execute("DELETE FROM series WHERE name = 's0'")
        book.execute("UPDATE series SET ring = x'00' WHERE name = 's1'")
        book.execute("UPDATE series SET state = x'0000' WHERE name = 's2'")
    status = [int(score(small, [name], 100 + name, np.ones((1, FEATURES), np.float32)).status[0]) for name in range(4)]
    assert status == [Status.WARMING_UP, Status.WARMING_UP, Status.WARMING_UP, Status.OK]


def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog) -> None:
    """The series of the last process are not known, and the next ones can be kept."""
    path = tmp_path / "pump.db"
    path.write_bytes(b"no database at all " * 100)
    small = scorer(path, 2)
    small.carried.unshelve()
    for turn in range(2):
        for name in range(5):
            score(small, [name], 10 * turn + name, np.ones((1, FEATURES), np.float32))
    assert small.carried.returned > 0
    assert path.with_name("pump.db.damaged").exists()
    assert "is damaged" in caplog.text


def test_an_older_row_never_replaces_a_newer_one(tmp_path: Path) -> None:
    """A checkpoint that is written in a thread loses against what left its seat meanwhile."""
    shelf = SeriesFile(tmp_path / "pump.db")
    rows = [Shelved("a", turn, turn, 0.0, "it", b"", b"", turn) for turn in (1, 2)]
    shelf.put([rows[1]])
    shelf.put([rows[0]])
    assert shelf.get(["a"]) == [rows[1]]


def test_a_series_that_is_let_go_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its slot and seat become those of another that starts cold; a stamp of long ago is taken again."""
    small = scorer(tmp_path / "pump.db", 4, policy=StampPolicy())
    for turn in range(5):
        score(small, [0, 1], 100 + 10 * turn, np.full((2, FEATURES), 5, np.float32))
    save(small)
    small.carried.let_go(small.series.known(["s0", "nobody"]))
    assert {it.name: it.seen for it in small.carried._shelf.labels()} == {"s0": GONE, "s1": 5}
    assert [it.name for it in small.carried._shelf.get(["s0", "s1"])] == ["s1"]
    fresh = Scorer(ewma(), ring_points=RING)
    for turn in range(4):
        row = np.full((1, FEATURES), turn, np.float32)
        same(score(small, [0 if turn else 7], turn, row), score(fresh, [0 if turn else 7], turn, row))
