"""The scoring path: order is kept, bad points leave no trace, and a new version takes over without a gap."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from fits import untrained
from graphs import ewma_bundle, ewma_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import ExhaustedError
from detectors.runtime import Runtime
from detectors.scorer import Scored, Scorer, score_alone
from detectors.series import SeriesTable
from detectors.served import Served
from detectors.stamps import NO_STAMP, StampPolicy, Status
from detectors.training.export import step_graph

WARM_UP = 3
drawn = settings(max_examples=60, deadline=None, derandomize=True)
batches = st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=8)
"""Arrivals: in each batch the series of each point, repeats and all."""


def ewma(gain: float = 1.0, **fields) -> Served:
    """A version whose arithmetic is the same in every batch, bit for bit."""
    return Served.load(ewma_bundle("pump", n_features=2, gain=gain, warm_up_points=WARM_UP, **fields))


@cache
def network(kind: str, seed: int) -> Served:
    """A version around a random network with two features."""
    detector = untrained(kind, 2, seed)
    return Served(seed, "", Runtime(step_graph(detector)), detector.warm_up_points)


def points(n: int, seed: int = 0) -> np.ndarray:
    """Raw values [n, 2]."""
    return np.random.default_rng(seed).normal(3, 2, (n, 2)).astype(np.float32)


def same(a: Scored, b: Scored) -> bool:
    """Bit for bit."""
    return (a.status.tobytes(), a.score.tobytes(), a.contribution.tobytes()) == (
        b.status.tobytes(),
        b.score.tobytes(),
        b.contribution.tobytes(),
    )


def feed(scorer: Scorer, series: list[int], clock: int, values: np.ndarray) -> Scored:
    """Scores points of the named series with stamps that go on from `clock`."""
    slots = scorer.series.slots([f"s{i}" for i in series])
    return scorer.score(slots, np.arange(clock, clock + len(series)), values)


@drawn
@given(st.lists(st.integers(0, 5), max_size=30))
def test_rounds_take_every_point_once_and_keep_the_order_of_each_series(series) -> None:
    """No series twice in a round; the k-th point of a series is in round k."""
    scorer = Scorer(ewma())
    slots = scorer.series.slots([f"s{i}" for i in series])

    rounds = [np.arange(len(series))[rows] for rows in scorer.rounds(slots)]

    assert sorted(np.concatenate(rounds)) == list(range(len(series)))
    for rows in rounds:
        assert len(set(slots[rows])) == len(rows)
    for slot in set(slots):
        taken = [row for rows in rounds for row in rows if slots[row] == slot]
        assert taken == sorted(taken)
        assert all(sum(slots[row] == slot for row in rows) for rows in rounds[: len(taken)])


@drawn
@given(batches)
def test_batches_score_as_points_one_by_one(arrivals) -> None:
    """However points of many series are put together, each gets the score it gets in order of arrival."""
    together, alone, reference = Scorer(ewma()), Scorer(ewma()), {}
    values = points(100)
    clock = 0
    for series in arrivals:
        rows = values[clock : clock + len(series)]
        batch = feed(together, series, clock, rows)
        for i, name in enumerate(series):
            one = feed(alone, [name], clock + i, rows[i : i + 1])
            assert (one.status[0], one.score.tobytes()) == (batch.status[i], batch.score[i : i + 1].tobytes())
            seen = reference.setdefault(name, [])
            seen.append(rows[i])
            wanted = ewma_scores(np.array(seen), warm_up_points=WARM_UP)[-1]
            np.testing.assert_allclose(batch.score[i], wanted, rtol=1e-5)
        clock += len(series)


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_networks_score_in_batches_as_alone(kind: str) -> None:
    """Real networks too, to rounding."""
    series = np.random.default_rng(0).integers(0, 5, 600).tolist()
    values = points(600)
    together, alone = Scorer(network(kind, 1)), Scorer(network(kind, 1))

    batch = feed(together, series, 0, values)
    single = [feed(alone, [name], i, values[i : i + 1]) for i, name in enumerate(series)]

    np.testing.assert_array_equal(batch.status, np.concatenate([s.status for s in single]))
    np.testing.assert_allclose(batch.score, np.concatenate([s.score for s in single]), rtol=1e-4, atol=1e-5)


def test_warm_up_is_counted_in_points_of_the_series() -> None:
    """Exactly the first `warm_up_points` have no score and no contribution, each series for itself."""
    scorer = Scorer(ewma())

    first = feed(scorer, [0] * 5, 0, points(5))
    second = feed(scorer, [0, 1], 5, points(2))

    assert first.status.tolist() == [Status.WARMING_UP] * WARM_UP + [Status.OK] * 2
    assert np.isnan(first.score).tolist() == [True] * WARM_UP + [False] * 2
    assert not first.contribution[:WARM_UP].any()
    assert first.contribution[WARM_UP:].all()
    assert second.status.tolist() == [Status.OK, Status.WARMING_UP]


BAD = {
    "nan": (Status.INVALID, 1, [np.nan, 1.0]),
    "infinite": (Status.INVALID, 1, [1.0, -np.inf]),
    "late": (Status.LATE, -5, [1.0, 1.0]),
    "duplicate": (Status.DUPLICATE, 0, [1.0, 1.0]),
    "too far": (Status.TOO_FAR, 10**6, [1.0, 1.0]),
}
"""name: status, stamp after the series' last one, values"""
POLICY = StampPolicy(max_ahead=1000)


@pytest.mark.promise("I3")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("make", [ewma, lambda: network("lstm", 1), lambda: network("autoencoder", 1)])
def test_a_bad_point_changes_nothing(name: str, make) -> None:
    """It has its status and no score; the next score is, bit for bit, what it would have been without it."""
    status, ahead, bad = BAD[name]
    touched, untouched = Scorer(make(), policy=POLICY), Scorer(make(), policy=POLICY)
    for scorer in (touched, untouched):
        feed(scorer, [0] * 60, 0, points(60))
    slots = touched.series.slots(["s0"])

    refused = touched.score(slots, np.array([59 + ahead]), np.array([bad], np.float32), now=60)

    assert refused.status.tolist() == [status]
    assert np.isnan(refused.score).all()
    assert not refused.contribution.any()
    assert touched.series.seen.tolist() == untouched.series.seen.tolist()
    assert touched.series.last_stamp.tolist() == untouched.series.last_stamp.tolist()
    assert touched.series.recent(0).tobytes() == untouched.series.recent(0).tobytes()
    assert same(feed(touched, [0], 60, points(1, 9)), feed(untouched, [0], 60, points(1, 9)))


@drawn
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, *BAD])), max_size=60), st.integers(1, 17))
def test_bad_points_among_good_ones_change_nothing(arrivals, chunk: int) -> None:
    """Scores of the good points are those of a stream that never had the bad ones, in whatever batches they come."""
    mixed, clean = Scorer(ewma(), policy=POLICY), Scorer(ewma(), policy=POLICY)
    values, last, rows = points(60), {}, []
    for i, (series, wanted_kind) in enumerate(arrivals):
        never_late = wanted_kind in {"late", "duplicate"} and series not in last
        kind = "nan" if never_late else wanted_kind
        status, ahead, row = (None, 1, values[i]) if kind is None else BAD[kind]
        stamp = last.get(series, 0) + ahead
        if kind is None:
            last[series] = stamp
        rows.append((series, stamp, row, status))

    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        good = [i for i, row in enumerate(part) if row[3] is None]
        names, stamps = [f"s{row[0]}" for row in part], np.array([row[1] for row in part])
        data = np.array([row[2] for row in part], np.float32)
        got = mixed.score(mixed.series.slots(names), stamps, data, now=1000)
        wanted = clean.score(clean.series.slots([names[i] for i in good]), stamps[good], data[good], now=1000)

        assert [got.status[i] for i in range(len(part)) if i not in good] == [row[3] for row in part if row[3]]
        assert got.status[good].tobytes() == wanted.status.tobytes()
        assert got.score[good].tobytes() == wanted.score.tobytes()
        assert got.contribution[good].tobytes() == wanted.contribution.tobytes()


def test_no_points_give_no_scores() -> None:
    """An empty batch is answered with an empty answer."""
    scored = feed(Scorer(ewma()), [], 0, points(0))

    assert (len(scored.status), len(scored.score), scored.contribution.shape) == (0, 0, (0, 2))


def test_series_that_come_later_do_not_disturb_earlier_ones() -> None:
    """Slots grow from one to hundreds; scores are those of a table that was large from the start."""
    growing, large = Scorer(ewma()), Scorer(ewma())
    large.series.slots([f"s{i}" for i in range(300)])
    for i, count in enumerate([1, 2, 63, 64, 65, 130, 300, 300]):
        values = points(count, i)

        assert same(
            feed(growing, list(range(count)), 1000 * i, values), feed(large, list(range(count)), 1000 * i, values)
        )

    assert len(growing.series) == 300
    assert growing.series.names == large.series.names


def test_too_many_series_are_refused_and_leave_nothing_behind() -> None:
    """Not even those of the refused names that would still have fitted; who is there goes on as before."""
    scorer, other = Scorer(ewma(), max_series=3), Scorer(ewma(), max_series=3)
    for each in (scorer, other):
        feed(each, [0, 1] * 4, 0, points(8))

    with pytest.raises(ExhaustedError, match="holds 2 series and may hold 3"):
        scorer.series.slots(["s0", "new", "newer"])

    assert scorer.series.names == ["s0", "s1"]
    assert same(feed(scorer, [0, 1, 2], 8, points(3)), feed(other, [0, 1, 2], 8, points(3)))
    assert len(scorer.series.slots(["s2", "s0", "s2"])) == 3


@pytest.mark.parametrize("count", [64, 65, 256])
def test_a_slice_of_slots_is_the_slots(count: int) -> None:
    """Rounds over all series may name them as a slice, whole, in part and mixed: the same scores."""
    sliced, listed = Scorer(ewma()), Scorer(ewma())
    for scorer in (sliced, listed):
        scorer.series.slots([f"s{i}" for i in range(count)])
    ranges = [(0, count), (0, count), (3, 17), (0, count), (0, 5), (2, count), (0, count), (0, count)]
    for i, (start, stop) in enumerate(ranges):
        stamps, values = np.full(stop - start, i), points(stop - start, i)
        if i == 4:
            values[2, 0] = np.nan

        got = sliced.step(slice(start, stop), stamps, values)
        wanted = listed.step(np.arange(start, stop), stamps, values)

        assert same(got, wanted)
    for slot in range(count):
        assert sliced.series.recent(slot).tobytes() == listed.series.recent(slot).tobytes()


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_scoring_one_series_alone_is_scoring_it(chunk: int) -> None:
    """`score_alone` cuts into chunks and gives the same scores."""
    alone, together = Scorer(ewma()), Scorer(ewma())
    values = points(40)
    values[20] = np.nan

    parts = list(score_alone(alone, "s0", np.arange(40), values, chunk))
    wanted = feed(together, [0] * 40, 0, values)

    assert np.concatenate([part.score for part in parts]).tobytes() == wanted.score.tobytes()
    assert np.concatenate([part.status for part in parts]).tobytes() == wanted.status.tobytes()


@drawn
@given(st.integers(1, 6), st.lists(st.integers(0, 3), max_size=40), st.integers(0, 8))
def test_the_ring_holds_the_last_points_of_each_series(ring: int, series, asked: int) -> None:
    """Oldest first, at most K and at most what was asked for; counts and stamps go along."""
    table = SeriesTable(2, ring_points=ring)
    kept = {i: deque(maxlen=ring) for i in range(4)}
    stamps = dict.fromkeys(range(4), NO_STAMP)
    table.slots([f"s{i}" for i in range(4)])
    for clock, slot in enumerate(series):
        row = np.array([[clock, slot]], np.float32)
        table.append(np.array([slot]), np.array([slot]), np.array([clock]), row)
        kept[slot].append(row[0].tolist())
        stamps[slot] = clock

    for slot, rows in kept.items():
        assert table.recent(slot).tolist() == list(rows)
        assert table.recent(slot, asked).tolist() == list(rows)[max(len(rows) - asked, 0) :]
        assert (table.seen[slot], table.last_stamp[slot]) == (series.count(slot), stamps[slot])


def replayed(scorer: Scorer, served: Served, slot: int) -> tuple[np.ndarray, ...]:
    """The reference: fresh state and the ring, point after point."""
    state = served.runtime.fresh(1)
    for row in scorer.series.recent(slot):
        state = served.runtime.step(row[None], state).state
    return state


WORK = st.sampled_from(["arrive", "arrive", "arrive", "snapshot", "run", "commit"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([("autoencoder", 110), ("lstm", 120)]),
    st.lists(st.tuples(WORK, st.lists(st.integers(0, 5), min_size=1, max_size=40)), max_size=25),
    st.integers(1, 4),
)
def test_after_a_swap_every_series_stands_where_its_ring_leads(setting, work, limit: int) -> None:
    """Whatever arrives between snapshots and commits: state after the flip is fresh state plus the ring.

    To 1e-5: catching up may have started from an older ring, which the smoothed error and an LSTM forget by and by.
    """
    kind, ring = setting
    scorer, new = Scorer(network(kind, 1), ring_points=ring), network(kind, 2)
    values, clock, replay, ran = points(2000), 0, None, False
    for series in ([0, 1, 2] * 50, [0, 3]):
        feed(scorer, series, clock, values[clock : clock + len(series)])
        clock += len(series)
    successor = scorer.successor(new)
    for what, series in work:
        if what == "arrive":
            feed(scorer, series, clock, values[clock : clock + len(series)])
            clock += len(series)
        elif what == "snapshot" and replay is None:
            replay, ran = successor.snapshot(limit), False
        elif what == "run" and replay is not None and not ran:
            successor.run(replay)
            ran = True
        elif what == "commit" and ran and replay is not None:
            successor.commit(replay)
            replay = None

    seen, stamps = scorer.series.seen.copy(), scorer.series.last_stamp.copy()
    scorer.flip(successor)

    assert scorer.served is new
    assert successor.lag == 0
    assert scorer.series.seen.tolist() == seen.tolist()
    assert scorer.series.last_stamp.tolist() == stamps.tolist()
    count = len(scorer.series)
    for slot in range(count):
        for carried, wanted in zip(scorer.carried.state, replayed(scorer, new, slot), strict=True):
            np.testing.assert_allclose(carried[slot], wanted[0], rtol=1e-5, atol=1e-5)
    states = [np.concatenate(parts) for parts in zip(*(replayed(scorer, new, i) for i in range(count)), strict=True)]
    following = points(count, 5)
    wanted_step = new.runtime.step(following, tuple(states))
    got = scorer.score(np.arange(count), np.arange(clock, clock + count), following)
    cold = seen[:count] < new.warm_up_points
    np.testing.assert_array_equal(got.status == Status.WARMING_UP, cold)
    np.testing.assert_allclose(got.score[~cold], wanted_step.score[~cold], rtol=1e-4, atol=1e-5)


def test_a_successor_that_fell_behind_its_ring_starts_again() -> None:
    """What it reached before the gap is forgotten: fresh state and the ring, and nothing from before them."""
    scorer, new = Scorer(ewma(), ring_points=8), ewma(gain=2.0)
    feed(scorer, [0, 1] * 6, 0, points(12))
    successor = scorer.successor(new)
    replay = successor.snapshot()
    successor.run(replay)
    successor.commit(replay)

    feed(scorer, [0] * 9 + [1] * 8, 12, points(17, 1))  # series 0 misses one point, series 1 misses none
    scorer.flip(successor)

    assert scorer.carried.state[0][0].tobytes() == replayed(scorer, new, 0)[0].tobytes()
    continued = new.runtime.fresh(1)
    for row in [*points(12)[1::2], *points(17, 1)[9:]]:
        continued = new.runtime.step(row[None], continued).state
    assert scorer.carried.state[0][1].tobytes() == continued[0].tobytes()


def test_the_old_version_scores_until_the_flip() -> None:
    """Catching up is not noticed by those who ask meanwhile."""
    swapping, staying = Scorer(ewma()), Scorer(ewma())
    for scorer in (swapping, staying):
        feed(scorer, [0, 1] * 10, 0, points(20))
    successor = swapping.successor(ewma(gain=100.0))
    replay = successor.snapshot()
    successor.run(replay)
    successor.commit(replay)

    before = feed(swapping, [0, 1], 20, points(2))
    swapping.flip(successor)
    after = feed(swapping, [0, 1], 22, points(2, 1))

    assert same(before, feed(staying, [0, 1], 20, points(2)))
    np.testing.assert_allclose(after.score, 100 * feed(staying, [0, 1], 22, points(2, 1)).score, rtol=1e-4)


def test_there_is_no_second_warm_up() -> None:
    """A series that had scores has one for its first point after the swap; one that had too few still warms up."""
    scorer = Scorer(ewma())
    feed(scorer, [0] * 10 + [1], 0, points(11))

    scorer.flip(scorer.successor(ewma(gain=2.0)))

    assert feed(scorer, [0, 1], 11, points(2)).status.tolist() == [Status.OK, Status.WARMING_UP]


def test_catching_up_elsewhere_while_points_arrive() -> None:
    """`run` on another thread and scoring on this one do not disturb each other."""
    scorer, new = Scorer(network("autoencoder", 1), ring_points=32), network("autoencoder", 2)
    clock, names = 0, list(range(40))
    for _ in range(40):
        feed(scorer, names, clock, points(40, clock))
        clock += 40
    successor = scorer.successor(new)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            if (replay := successor.snapshot(16)) is None:
                break
            future = pool.submit(successor.run, replay)
            while not future.done():
                feed(scorer, names, clock, points(40, clock))
                clock += 40
            future.result()
            successor.commit(replay)
    scorer.flip(successor)

    for slot in names:
        for carried, wanted in zip(scorer.carried.state, replayed(scorer, new, slot), strict=True):
            np.testing.assert_array_equal(carried[slot], wanted[0])


def test_a_swap_without_series_is_a_swap() -> None:
    """Nothing to catch up: the first point of a new series is scored by the new version."""
    scorer = Scorer(ewma())
    successor = scorer.successor(ewma(gain=3.0))

    assert successor.lag == 0
    assert successor.snapshot() is None
    scorer.flip(successor)

    scored = feed(scorer, [0] * 5, 0, points(5))
    np.testing.assert_allclose(scored.score, ewma_scores(points(5), gain=3.0, warm_up_points=WARM_UP), rtol=1e-5)


def test_successors_that_can_not_take_over_are_refused() -> None:
    """Other features, or a warm-up longer than the ring remembers."""
    scorer = Scorer(ewma(), ring_points=4)

    with pytest.raises(ValueError, match="same features"):
        scorer.successor(Served.load(ewma_bundle("pump", n_features=3)))
    with pytest.raises(ValueError, match="ring is shorter"):
        scorer.successor(Served.load(ewma_bundle("pump", n_features=2, warm_up_points=5)))


def test_the_ring_is_at_least_the_warm_up() -> None:
    """Else the first version itself could not be replayed."""
    assert Scorer(ewma(), ring_points=1).series.ring_points == WARM_UP


def test_memory_is_reported() -> None:
    """Bytes of rings, stamps, counts, beginnings, times, seats and state of all slots."""
    scorer = Scorer(ewma(), ring_points=10)
    feed(scorer, list(range(64)), 0, points(64))

    assert scorer.state_bytes == 64 * (10 * 2 * 4 + 5 * 8 + 2 * 4)
