"""What `prunewatch bench` promises of the load that it sends, against a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice, pairwise
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import eventually, hub_settings, publish
from graphs import ewma_bundle
from hypothesis import given
from hypothesis import strategies as st
from test_client import imported_by
from test_metrics import called, key, samples

from detectors.errors import PrunewatchError
from detectors.stamps import Status
from prunewatch import prepared
from prunewatch.client import Client, ServiceError
from prunewatch.prepared import Reply
from prunewatch.v1 import scoring_pb2 as pb
from server.app import Hub
from server.bench.load import Load, arrivals
from server.bench.messages import Messages, random_walk, rows_wanted, spread
from server.bench.outcome import Outcome
from server.bench.run import Run
from server.bench.session import Bench, connected
from server.bench.sweep import NEAR, sweep
from server.bench.tally import Tally
from server.csv_input import read_csv
from server.edge import Edge

QUICK = {"duration": 0.5, "warm_up": 0.0, "timeout": 5.0}


@asynccontextmanager
async def bench(hub: Hub | Edge, *detector: str, **what) -> AsyncIterator[Bench]:
    """A load generator that is connected to a hub of this process."""
    async with connected(f"127.0.0.1:{hub.listener.port}", *detector, **what) as made:
        yield made


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with the fitted detector `pump` of two features, which takes three points to warm up."""
    await publish(hub, ewma_bundle("pump"))
    return hub


def accounted(tally: Tally) -> bool:
    """Whether every message that was due became something, once."""
    return tally.due == tally.scored + tally.failed + tally.unsent + tally.unanswered


async def test_what_a_closed_loop_counts_is_what_the_server_counts(pump: Hub) -> None:
    """Messages and points are those of the server's metrics, in the warm-up and after it; one more call asked first."""
    load = Load(concurrency=3, series=4, points=2, duration=0.4, warm_up=0.2)

    async with bench(pump) as client:
        outcome = await client.measure(load)

    found, measured, warming = await samples(pump), outcome.measured, outcome.warming
    messages = measured.scored + warming.scored
    assert warming.scored > 0 < measured.scored
    assert accounted(measured)
    assert accounted(warming)
    assert found[key("prunewatch_message_seconds_count", method="ScoringService/ScoreStream")] == messages
    assert found[called("unary", "Score", "OK")] == 1
    assert found[key("prunewatch_step_seconds_count", detector="pump")] == 2 * (messages + 1)  # a step for each round
    assert sum((measured.statuses + warming.statuses).values()) == 8 * messages
    assert warming.statuses[Status.WARMING_UP] == 3 * 4 * 3  # 3 streams, 4 series, 3 points
    assert set(measured.statuses) == {Status.OK}
    assert dict(measured.versions) == {1: measured.scored}
    assert measured.threshold == pytest.approx(3.0)


async def test_nothing_of_a_detector_changes_unless_it_is_live(pump: Hub) -> None:
    """The default load leaves no series, no points, no history and no anomalies behind."""
    async with bench(pump) as client:
        outcome = await client.measure(Load(series=5, **QUICK))

    found = await samples(pump)
    assert outcome.measured.scored > 0
    assert found[key("prunewatch_series", detector="pump")] == 0
    assert (
        sum(found.get(key("prunewatch_points_total", detector="pump", status=it.name.lower()), 0) for it in Status) == 0
    )
    assert pump.host.get("pump").points_kept == 0
    assert pump.host.get("pump").accepted == 0


@pytest.mark.parametrize(
    ("time", "unary", "rate"), [("stamp", False, None), ("index", False, 2000.0), ("stamp", True, 2000.0)]
)
async def test_live_points_are_taken_in_order_under_series_of_their_own(
    hub: Hub, time: str, unary: bool, rate: float | None
) -> None:
    """With `live` no point is late or repeated; series are new ones with the prefix; the server counts the same."""
    await publish(hub, ewma_bundle("pump"), time=time)
    load = Load(rate=rate, unary=unary, concurrency=2, series=3, points=4, live=True, **QUICK)

    async with bench(hub) as client:
        outcome = await client.measure(load)

    found, measured = await samples(hub), outcome.measured
    counted = {
        it: found.get(key("prunewatch_points_total", detector="pump", status=it.name.lower()), 0) for it in Status
    }
    assert measured.failed == 0
    assert accounted(measured)
    assert set(measured.statuses) == {Status.OK, Status.WARMING_UP}
    assert {int(it): count for it, count in counted.items() if count} == dict(measured.statuses)
    series = found[key("prunewatch_series", detector="pump")]
    assert series == 6 if not unary else series % 3 == 0
    assert client.prefix.startswith("bench-")


async def test_an_open_loop_offers_what_it_is_asked_for(pump: Hub) -> None:
    """Evenly spaced messages are as many as fit into the time, sent or not, and each is accounted for."""
    load = Load(rate=800, arrivals="constant", points=2, concurrency=4, duration=0.5, warm_up=0.25)

    async with bench(pump) as client:
        outcome = await client.measure(load)

    assert (outcome.warming.due, outcome.measured.due) == (100, 200)
    assert outcome.offered_rate == pytest.approx(800)
    assert accounted(outcome.measured)
    assert outcome.measured.scored == outcome.measured.from_due.count == outcome.measured.from_sent.count == 200
    assert outcome.measured.from_due.total >= outcome.measured.from_sent.total
    assert outcome.measured.lag.count == 200


@pytest.mark.parametrize("rate", [None, 500.0])
async def test_calls_begin_afresh_each_time(pump: Hub, rate: float | None) -> None:
    """Single calls have no state between them: of five points the first three warm up, in every call."""
    async with bench(pump) as client:
        outcome = await client.measure(Load(rate=rate, unary=True, points=5, **QUICK))

    measured, found = outcome.measured, await samples(pump)
    assert dict(measured.statuses) == {Status.WARMING_UP: 3 * measured.scored, Status.OK: 2 * measured.scored}
    assert found[called("unary", "Score", "OK")] == measured.scored + 1


async def test_load_that_is_shed_is_counted_and_no_latency(hub: Hub) -> None:
    """What the server refuses for a limit counts as shed, in no latency and not as goodput."""
    await publish(hub, ewma_bundle("pump"), max_series=2)

    async with bench(hub) as client:
        outcome = await client.measure(Load(series=3, **QUICK))

    measured = outcome.measured
    assert accounted(measured)
    assert measured.shed == measured.failed == measured.due > 0
    assert measured.from_due.count == 0
    assert outcome.answered_rate == 0
    assert "2" in measured.problems["RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize(("unary", "rate"), [(False, None), (False, 400.0), (True, None), (True, 400.0)])
async def test_a_server_that_goes_away_is_errors_and_not_an_end(
    tmp_path: Path, unary: bool, rate: float | None
) -> None:
    """When the server stops in the middle, what is lost has a code, everything is accounted for, and it goes on."""
    hub = Hub(hub_settings(tmp_path, drain_seconds=0.05))
    await hub.start()
    await publish(hub, ewma_bundle("pump"))

    async with bench(hub) as client:
        running = asyncio.create_task(
            client.measure(Load(rate=rate, unary=unary, duration=1.0, warm_up=0, timeout=0.5))
        )
        await asyncio.sleep(0.4)
        await hub.stop()
        outcome = await running

    measured = outcome.measured
    assert measured.scored > 0
    assert measured.failed > 0
    assert accounted(measured)
    assert set(measured.errors) <= {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}


async def test_a_load_that_is_stopped_gives_what_there_is(pump: Hub) -> None:
    """Stopping ends the measured time then; what was measured until then is there."""
    async with bench(pump) as client:
        running = asyncio.create_task(client.measure(Load(rate=500, duration=60, warm_up=0)))
        await asyncio.sleep(0.4)
        client.stop()
        outcome = await asyncio.wait_for(running, 5)

        assert outcome.interrupted
        assert 0 < outcome.seconds < 5
        assert outcome.measured.scored > 0
        assert accounted(outcome.measured)
        assert (await client.measure(Load(duration=60))).measured.scored == 0  # nothing begins after it


async def test_messages_that_nobody_answers_count_with_the_time_they_waited() -> None:
    """A port that accepts and stays silent: nothing scored, and every message is at least as slow as it waited."""
    load = Load(rate=100, arrivals="constant", duration=0.3, warm_up=0, timeout=0.3)
    messages = Messages(load, "pump", random_walk(8, 1, 2, 0), stamped=False, prefix="x-")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        async with prepared.PreparedScoring(f"127.0.0.1:{silent.getsockname()[1]}") as scoring:
            outcome = await Run(scoring, load, messages).run()

    measured = outcome.measured
    assert measured.scored == 0
    assert measured.due == 30
    assert accounted(measured)
    assert measured.open_ended == measured.from_due.count
    if measured.open_ended:
        assert measured.from_due.smallest >= 0.3


@pytest.mark.parametrize("unary", [False, True])
async def test_a_load_is_held_back_before_it_takes_all_memory(unary: bool) -> None:
    """Only so many messages may be without an answer; what was due meanwhile was not sent, and that is said."""
    load = Load(rate=500, unary=unary, duration=0.5, warm_up=0, timeout=1)
    messages = Messages(load, "pump", random_walk(8, 1, 2, 0), stamped=False, prefix="x-")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        async with prepared.PreparedScoring(f"127.0.0.1:{silent.getsockname()[1]}") as scoring:
            outcome = await Run(scoring, load, messages, most_outstanding=20).run()

    measured = outcome.measured
    assert outcome.held
    assert measured.sent <= 20
    assert measured.unsent > 0
    assert accounted(measured)


# asking for a detector


async def test_the_only_detector_needs_no_name(pump: Hub) -> None:
    """One detector is found by itself, with what the server knows of it; of two the names are listed."""
    async with bench(pump) as client:
        target = client.target
    await publish(pump, ewma_bundle("fan"))
    with pytest.raises(PrunewatchError, match="fan, pump") as caught:
        async with bench(pump):
            pass

    assert (target.detector, target.features, target.network, target.stamped) == ("pump", ("f1", "f2"), "lstm", True)
    assert (target.version, [it["p50_seconds"] for it in target.steps]) == (1, [1e-4])
    assert caught.value.field == "DETECTOR"


async def test_what_can_not_be_measured_is_said_before_it_begins(hub: Hub, client: Client, tmp_path: Path) -> None:
    """No detector, an unknown one, one that learns, a file with other columns, a message that is too large."""
    with pytest.raises(PrunewatchError, match="no detector"):
        async with bench(hub):
            pass
    await client.create("pump")
    with pytest.raises(PrunewatchError, match="still learning"):
        async with bench(hub):
            pass
    with pytest.raises(ServiceError) as unknown:
        async with bench(hub, "fan"):
            pass
    await publish(hub, ewma_bundle("fan", n_features=300))
    file = tmp_path / "points.csv"
    file.write_text("time,a\n1,2\n")
    with pytest.raises(PrunewatchError, match="f1"):
        async with bench(hub, "fan", table=read_csv(file)):
            pass
    async with bench(hub, "fan") as generator:
        with pytest.raises(PrunewatchError, match="larger than max") as large:
            await generator.measure(Load(series=4000, **QUICK))

    assert unknown.value.code == "NOT_FOUND"
    assert "--series" in large.value.hint


async def test_a_device_is_measured_too() -> None:
    """An edge has no list of detectors and no widths: it says what it needs to be told, and then is measured."""
    edge = Edge(ewma_bundle("pump"), hub_settings(Path("unused")))
    await edge.start()
    with pytest.raises(PrunewatchError, match="does not list") as nameless:
        async with bench(edge):
            pass
    with pytest.raises(PrunewatchError, match="how many features") as widthless:
        async with bench(edge, "pump"):
            pass
    async with bench(edge, "pump", n_features=3) as generator:
        with pytest.raises(PrunewatchError, match="3 features, the detector has 2"):
            await generator.measure(Load(**QUICK))
    async with bench(edge, "pump", n_features=2) as generator:
        outcome = await generator.measure(Load(**QUICK))
    await edge.stop()

    assert (nameless.value.field, widthless.value.field) == ("DETECTOR", "--features")
    assert outcome.measured.scored > 0
    assert outcome.measured.failed == 0


# messages


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 300))
def test_bytes_are_what_protobuf_reads(
    series: int, points: int, features: int, live: bool, stamped: bool, number: int
) -> None:
    """What is put together from bytes is a request with detector, mode, names, values, indexes and rising stamps."""
    load = Load(series=series, points=points, live=live)
    values = random_walk(2 * points, series, features, seed=1)
    messages = Messages(load, "pump", values, stamped=stamped, prefix="bench-")
    sender = messages.sender(number)

    opening = pb.ScoreStreamRequest.FromString(sender.opening()).points
    following = pb.ScoreStreamRequest.FromString(sender.following()).points
    alone = pb.ScoreRequest.FromString(sender.request())

    n = series * points
    assert opening.detector == alone.detector == "detectors/pump"
    assert opening.mode == (pb.SCORE_MODE_LIVE if live else pb.SCORE_MODE_EPHEMERAL)
    assert len(set(opening.series)) == series
    assert (following.detector, list(following.series), following.mode) == ("", [], 0)
    for each in (opening, following, alone):
        assert len(each.packed_values) == 4 * n * features
        assert each.n_features == features
        assert len(each.stamps) == (n if live and stamped else 0)
        index = list(each.series_index) or (list(range(n)) if n == series else [0] * n)
        assert index == [i % series for i in range(n)]
    if live and stamped:
        of_first = [*opening.stamps[::series], *following.stamps[::series], *alone.stamps[::series]]
        assert all(a < b for a, b in pairwise(of_first))


def test_a_random_walk_goes_round_without_a_jump() -> None:
    """It has mean 0 and deviation 1, and its last point is as near to its first as others are to each other."""
    walk = random_walk(4000, 3, 2, seed=0)
    steps = np.abs(np.diff(walk, axis=0)).max()

    np.testing.assert_allclose(walk.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(walk.std(axis=0), 1, atol=1e-3)
    assert np.abs(walk[0] - walk[-1]).max() <= steps
    assert (walk == random_walk(4000, 3, 2, seed=0)).all()


def test_a_file_is_sent_in_its_order_by_every_series_from_its_own_place() -> None:
    """Each series goes through the rows one after the other, and all rows are sent."""
    rows = np.arange(10, dtype=np.float32)[:, None]
    load = Load(series=2, points=3)

    values = spread(rows, load)

    assert values.shape == (12, 2, 1)
    assert values[:, 0, 0].tolist() == [*range(10), 0, 1]
    assert values[:, 1, 0].tolist() == [*range(5, 10), *range(7)]


def test_memory_for_messages_is_bounded() -> None:
    """Wide messages get a pool of few, and there are always two."""
    assert rows_wanted(Load(), 8) == 256
    assert rows_wanted(Load(series=1024), 1024) == 4
    assert rows_wanted(Load(series=65_536), 4096) == 2


def test_arrivals_have_the_rate_and_the_seed() -> None:
    """Poisson arrivals are exponential gaps of the right mean, the same again with the same seed; constant are even."""
    load = Load(rate=1000.0, points=10)
    due = np.array(list(islice(arrivals(load), 20_000)))
    gaps = np.diff(due)

    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.03)
    assert due.tolist() == list(islice(arrivals(load), 20_000))
    even = list(islice(arrivals(Load(rate=1000.0, points=10, arrivals="constant")), 4))
    assert even == pytest.approx([0, 0.01, 0.02, 0.03])


# what is concluded


def outcome_of(rate: float, capacity: float, *, lag: float = 1e-5, cpu: float = 0.5) -> Outcome:
    """Ten seconds at a rate, of a service with a capacity: fast below it, and behind by what is too much above."""
    due, answered = round(10 * rate), round(10 * min(rate, capacity))
    tally = Tally(due=due, in_time=answered)
    late = max(0.0, 10 * (rate - capacity) / capacity)
    for share in np.linspace(0, 1, 1000).tolist():
        tally.answer(Reply(bytes([1]), 1, 3.0), 0.0, 0.0, 1e-3 + share * late)
        tally.lag.record(lag)
    return Outcome(Load(rate=rate), tally, Tally(), 10.0, cpu)


@pytest.mark.parametrize("first", [1.0, 900.0, 5000.0, 1e6])
async def test_a_sweep_finds_the_capacity_from_wherever_it_begins(first: float) -> None:
    """The knee is kept, within the factor `NEAR` of what is too much, and of the capacity."""

    async def measure(rate: float) -> Outcome:
        return outcome_of(rate, 1000.0)

    found = await sweep(measure, first, 0.05)

    assert found.is_bracketed
    assert 1000 / NEAR <= found.knee.rate <= 1000 * 1.01
    assert {bool(it.reason) for it in found.steps} == {True, False}


async def test_a_sweep_says_when_nothing_was_kept_or_only_the_client_was_slow() -> None:
    """A limit that nothing keeps gives no knee; when this program was the limit, the service's is not known."""

    async def slow(rate: float) -> Outcome:
        return outcome_of(rate, 1000.0)

    async def busy(rate: float) -> Outcome:
        return outcome_of(rate, 1000.0, cpu=1.0 if rate > 1000 else 0.5)

    nothing, client = await sweep(slow, 100.0, 1e-6), await sweep(busy, 100.0, 0.05)

    assert nothing.knee is None
    assert not client.is_bracketed
    assert "busy" in client.client_limit
    assert "this program was the limit" in next(it.reason for it in client.steps if it.reason)


def test_this_program_says_when_it_was_the_limit() -> None:
    """Late itself by more than a tenth of the latency, or busy all the time; a little late is how machines are."""
    assert outcome_of(100, 1000).client_limit == ""
    assert "busy for 95%" in outcome_of(100, 1000, cpu=0.95).client_limit
    assert "late" in outcome_of(100, 1000, lag=0.02).client_limit
    assert outcome_of(100, 1000, lag=9e-4).client_limit == ""


def test_refusals_are_in_no_latency_and_deadlines_are() -> None:
    """What is refused at once would make a server look fast; what waited until its deadline makes it look slow."""
    tally = Tally()
    tally.answer(Reply(code="RESOURCE_EXHAUSTED", problem="busy"), 0.0, 0.0, 1e-4)
    tally.answer(Reply(code="DEADLINE_EXCEEDED"), 0.0, 1.0, 3.0)
    tally.give_up(0.0, None, 7.0)

    assert tally.errors == Counter({"RESOURCE_EXHAUSTED": 1, "DEADLINE_EXCEEDED": 1})
    assert (tally.shed, tally.open_ended, tally.unsent) == (1, 2, 1)
    assert (tally.from_due.count, tally.from_due.smallest, tally.from_due.largest) == (2, 3.0, 7.0)
    assert (tally.from_sent.count, tally.from_sent.largest) == (1, 2.0)


@pytest.mark.parametrize("module", ["prunewatch.prepared", "server.bench.session, server.bench.described"])
def test_it_runs_on_the_base_install(module: str) -> None:
    """Neither bytes nor loads need what fits, keeps or draws."""
    assert not imported_by(module) & {"torch", "pandas", "pyarrow", "matplotlib", "sqlalchemy", "onnx"}


async def test_an_unreachable_server_is_said_at_once(unused_tcp_port: int) -> None:
    """Nobody there: UNAVAILABLE, and what to do."""
    with pytest.raises(ServiceError) as caught:
        async with connected(f"127.0.0.1:{unused_tcp_port}"):
            pass

    assert caught.value.code == "UNAVAILABLE"


async def test_streams_end_with_the_run(pump: Hub) -> None:
    """After a run no call is open at the server, and no task of it is left."""
    before = len(asyncio.all_tasks())

    async with bench(pump) as client:
        await client.measure(Load(rate=300, concurrency=4, **QUICK))

    async def ended() -> bool:
        found = await samples(pump)
        return sum(found.get(called("bidi_stream", "ScoreStream", it), 0) for it in ("OK", "CANCELLED")) == 4

    await eventually(ended)
    assert len(asyncio.all_tasks()) <= before
    assert grpc.aio  # the poller of gRPC's own is no task
