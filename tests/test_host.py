"""What the host promises without any transport: learning, swaps, keeping, watching."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from graphs import ewma_bundle, ewma_scores
from prometheus_client import CollectorRegistry

from detectors.errors import NotFoundError, PreconditionError
from detectors.served import Served
from detectors.stamps import Status
from server.anomalies import Anomaly
from server.config import DetectorConfig
from server.host import Host
from server.hosted import HostedDetector
from server.keeping import HistoryBuffer, Kept, write
from server.metrics import Metrics
from server.watchers import Subscription

RNG = np.random.default_rng(3)


@pytest.fixture
def host() -> Host:
    """A host with small rings."""
    return Host(Metrics(CollectorRegistry()), ring_points=16)


def learner(host: Host, **config) -> HostedDetector:
    """A detector of two features that learns, with row numbers for stamps."""
    return host.add("pump", DetectorConfig(time="index", **config), ["f1", "f2"])


async def feed(hosted: HostedDetector, values: np.ndarray, names=("a",)):
    """Scores LIVE points of all series, one round after the other: values [T, S, F]; returns the outcomes."""
    track = hosted.track(ephemeral=False)
    scorer, slots = track.add(list(names))
    index = np.arange(len(names))
    outcomes = []
    for points in values.astype(np.float32):
        outcome = await hosted.score(scorer, slots, None, points)
        hosted.record(outcome, track.names, index, points)
        outcomes.append(outcome)
    return outcomes


class Sink:
    """Keeps what is appended; fails while the disk is full."""

    def __init__(self) -> None:
        self.series: list[str] = []
        self.stamps: list[int] = []
        self.full = False

    @property
    def rows(self) -> int:
        """Points kept."""
        return len(self.stamps)

    def append(self, series, stamps, values, scores, flagged) -> None:
        """Takes points."""
        assert len(series) == len(stamps) == len(values) == len(scores) == len(flagged)
        self.series += series
        self.stamps += stamps.tolist()

    def flush(self) -> None:
        """Fails on a full disk."""
        if self.full:
            raise OSError(28, "No space left on device")

    def paths(self):
        """None."""
        return []

    def add_points(self, stamps, values):
        """Not used here."""
        raise NotImplementedError


async def test_points_before_the_first_fit_are_learning(host: Host) -> None:
    """A detector without a version takes points and answers LEARNING without a score; bad points still say why."""
    hosted = learner(host)
    values = np.zeros((3, 1, 2))
    values[1] = np.nan

    outcomes = await feed(hosted, values)

    assert [int(o.scored.status[0]) for o in outcomes] == [Status.LEARNING, Status.INVALID, Status.LEARNING]
    assert all(np.isnan(o.scored.score).all() and o.version == 0 for o in outcomes)
    assert (hosted.accepted, hosted.points_kept) == (2, 2)


async def test_the_first_version_goes_on_from_the_points_learnt(host: Host) -> None:
    """The first version takes over like any other: no warm-up again, scores as if it had always been there."""
    hosted = learner(host)
    values = RNG.normal(size=(20, 2, 2)).astype(np.float32)
    await feed(hosted, values[:10], "ab")

    await hosted.serve(Served.load(ewma_bundle("pump")), ["f1", "f2"])
    outcomes = await feed(hosted, values[10:], "ab")

    for i in range(2):
        expected = ewma_scores(values[:, i])[10:]
        np.testing.assert_allclose([o.scored.score[i] for o in outcomes], expected, rtol=1e-5)


async def test_a_swap_replays_the_ring_and_needs_no_warm_up(host: Host) -> None:
    """After a swap every series scores as the new version does over the points in the ring, from fresh state."""
    hosted = learner(host)
    await hosted.serve(Served.load(ewma_bundle("pump")), ["f1", "f2"])
    values = RNG.normal(size=(31, 2, 2)).astype(np.float32)
    await feed(hosted, values[:30], "ab")

    await hosted.serve(Served.load(ewma_bundle("pump", 2, alpha=0.5)), ["f1", "f2"])
    (outcome,) = await feed(hosted, values[30:], "ab")

    assert outcome.version == 2
    for i in range(2):
        expected = ewma_scores(values[-17:, i], alpha=0.5)[-1]  # sixteen points of the ring, then this one
        np.testing.assert_allclose(outcome.scored.score[i], expected, rtol=1e-5)


async def test_a_swap_inside_a_request_is_named_for_each_point(host: Host) -> None:
    """A long request lets a swap in between its rounds; `point_versions` then says which version scored which point."""
    hosted = learner(host)
    await hosted.serve(Served.load(ewma_bundle("pump")), ["f1", "f2"])
    values = RNG.normal(size=(3000, 2)).astype(np.float32)
    track = hosted.track(ephemeral=False)
    scorer, slots = track.add(["a"])

    scoring = asyncio.create_task(hosted.score(scorer, np.repeat(slots, len(values)), None, values))
    await asyncio.sleep(0.01)
    await hosted.serve(Served.load(ewma_bundle("pump", 2, alpha=0.5)), ["f1", "f2"])
    outcome = await scoring

    versions = outcome.point_versions
    assert versions is not None
    assert set(versions.tolist()) == {1, 2}
    assert (np.diff(versions) >= 0).all()
    assert (outcome.scored.status[3:] == Status.OK).all()
    np.testing.assert_allclose(
        outcome.scored.score[versions == 1], ewma_scores(values)[versions == 1], rtol=1e-4, equal_nan=True
    )
    np.testing.assert_allclose(outcome.scored.score[-1], ewma_scores(values[-60:], alpha=0.5)[-1], rtol=1e-4)


async def test_swaps_under_load_lose_nothing(host: Host) -> None:
    """Swaps back and forth under a running stream: every point gets a score, and the score is that of its version."""
    hosted = learner(host)
    bundles = [ewma_bundle("pump", 1), ewma_bundle("pump", 2, gain=2.0)]
    await hosted.serve(Served.load(bundles[0]), ["f1", "f2"])
    values = RNG.normal(size=(400, 5, 2)).astype(np.float32)
    outcomes = []

    async def stream() -> None:
        for t in range(len(values)):
            outcomes.extend(await feed(hosted, values[t : t + 1], "abcde"))
            await asyncio.sleep(0)

    async def swap() -> None:
        for i in range(20):
            await hosted.serve(Served.load(bundles[(i + 1) % 2]), ["f1", "f2"])

    await asyncio.gather(stream(), swap())

    assert {o.version for o in outcomes} == {1, 2}
    assert all((o.scored.status == Status.OK).all() for o in outcomes[3:])
    # The ring holds 16 points, so the carried mean differs by 0.9^16 of the oldest one after a replay.
    for t in range(20, 400):
        plain = np.array([ewma_scores(values[: t + 1, i][-120:])[-1] for i in range(5)])
        np.testing.assert_allclose(outcomes[t].scored.score / outcomes[t].version, plain, atol=0.25)


async def test_a_version_that_can_not_follow_is_refused(host: Host) -> None:
    """A version with other features, or more warm-up than the rings hold, is refused and the old one scores on."""
    hosted = learner(host)
    await hosted.serve(Served.load(ewma_bundle("pump")), ["f1", "f2"])

    for bundle in (ewma_bundle("pump", 2, 3), ewma_bundle("pump", 2, warm_up_points=17)):
        with pytest.raises(PreconditionError):
            await hosted.serve(Served.load(bundle), bundle.manifest.features)

    assert hosted.served is not None
    assert hosted.served.version == 1


async def test_a_first_version_with_a_long_warm_up_gets_longer_rings(host: Host) -> None:
    """The first fit may need more warm-up points than the rings hold: its series then begin anew."""
    hosted = learner(host)
    await feed(hosted, np.zeros((5, 1, 2)))

    await hosted.serve(Served.load(ewma_bundle("pump", warm_up_points=50)), ["f1", "f2"])
    (outcome,) = await feed(hosted, np.zeros((1, 1, 2)))

    assert outcome.scored.status.tolist() == [Status.WARMING_UP]
    assert outcome.version == 1


async def test_a_detector_that_can_not_score_says_so_and_others_go_on(host: Host) -> None:
    """A problem of one detector is a PreconditionError for it alone."""
    learner(host).problem = "its bundle is damaged."
    fan = host.add("fan", DetectorConfig(time="index"), ["f1", "f2"])

    with pytest.raises(PreconditionError, match="damaged"):
        host.get("pump").track(ephemeral=True)
    assert len(await feed(fan, np.zeros((1, 1, 2)))) == 1


async def test_a_deleted_detector_is_gone_for_running_tracks(host: Host) -> None:
    """Who still holds a deleted detector is told that it is gone, in both modes."""
    hosted = learner(host)
    tracks = [hosted.track(ephemeral=ephemeral) for ephemeral in (False, True)]

    host.remove("pump")

    for track in tracks:
        with pytest.raises(NotFoundError):
            track.add(["a"])


async def test_accepted_points_reach_the_history_with_their_series(host: Host) -> None:
    """Every accepted LIVE point is kept with its series' name and stamp; refused ones are not."""
    hosted = learner(host)
    hosted.history = sink = Sink()
    values = np.zeros((3, 2, 2))
    values[1, 1] = np.nan

    await feed(hosted, values, "ab")
    await hosted.flush()

    assert list(zip(sink.series, sink.stamps, strict=True)) == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1)]


async def test_a_full_disk_stops_keeping_but_not_scoring(host: Host) -> None:
    """While the history can not be written points are scored; the newest `max_rows` are written once there is room."""
    hosted = learner(host, history={"max_rows": 4})
    hosted.history = sink = Sink()
    sink.full = True
    await feed(hosted, np.zeros((1, 1, 2)))
    await hosted.flush()

    outcomes = await feed(hosted, np.zeros((10, 1, 2)))
    await hosted.flush()
    sink.full = False
    await hosted.flush()

    assert len(outcomes) == 10
    assert sink.stamps == [0, 7, 8, 9, 10]
    assert host.metrics.registry.get_sample_value("prunewatch_history_dropped_points_total", {"detector": "pump"}) == 6


def test_names_of_one_stream_are_resolved_although_they_grow() -> None:
    """Parts of one stream share their list of names, also when it has grown since."""
    names = ["a"]
    sink = Sink()
    one = np.zeros(1)
    part = Kept(names, np.array([0]), one.astype(int), np.zeros((1, 2), np.float32), one, one.astype(bool))
    names.append("b")
    later = Kept(names, np.array([1]), part.stamps, part.values, part.scores, part.flagged)
    other = Kept(["c"], np.array([0]), part.stamps, part.values, part.scores, part.flagged)

    scores: list[np.ndarray] = []
    write([part, other, later], sink, scores.append)

    assert sink.series == ["a", "c", "b"]


def test_the_buffer_keeps_the_newest_points() -> None:
    """Points beyond the retention go, the oldest first; they count as lost only while writing fails."""
    lost = []
    buffer = HistoryBuffer(2, lost.append)
    zeros = np.zeros(1)
    parts = [Kept([str(i)], zeros, zeros, zeros, zeros, zeros) for i in range(5)]

    buffer.append(parts[0])
    buffer.append(parts[1])
    buffer.append(parts[2])
    assert lost == []
    buffer.stalled = True
    buffer.append(parts[3])

    assert [part.names for part in buffer.take()] == [["2"], ["3"]]
    assert lost == [1]


async def test_a_slow_watcher_loses_the_oldest_and_knows_it() -> None:
    """A subscription holds a bounded number of anomalies; the count of lost ones is exact."""
    subscription = Subscription(["pump"], limit=3)
    for i in range(5):
        subscription.put(Anomaly("pump", "a", i, 4.0, 3.0, 1, ()))
    subscription.close()

    assert [anomaly.stamp async for anomaly in subscription] == [2, 3, 4]
    assert subscription.dropped == 2
