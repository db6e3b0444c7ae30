"""Points that wait at the same time go into one step, and nobody's scores change for it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, publish
from graphs import ewma_bundle, ewma_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.scorer import Scorer
from detectors.served import Served
from detectors.stamps import StampPolicy, Status
from prunewatch.client import Batch, Client
from server.app import Hub
from server.stepping import JOINED_ROUNDS, Stepper

RNG = np.random.default_rng(5)
requests = st.lists(st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans()), max_size=8)
"""What waits at one moment: of each request the series of its points, and whether it brings stamps."""


class Bench:
    """A stepper over a scorer, and how many steps it took."""

    def __init__(self) -> None:
        self.scorer = Scorer(Served.load(ewma_bundle("pump")), policy=StampPolicy())
        self.steps: list[int] = []
        self.stepper = Stepper(self._step, lambda: NOW)

    def _step(self, scorer, slots, stamps, values, now):
        self.steps.append(len(stamps))
        return scorer.served.version, scorer.step(slots, stamps, values, now)

    async def ask(self, names, stamps, values, *, joins: bool = True):
        """One request."""
        slots = self.scorer.series.slots(names)
        return await self.stepper.score(self.scorer, slots, stamps, values, joins=joins)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(requests, max_size=5))
async def test_together_as_one_after_the_other(moments) -> None:
    """Status, score, contribution and stamps of each request are those it would have had alone, bit for bit."""
    joined, alone = Bench(), Bench()
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    with ExitStack() as calls:
        for _ in range(2):
            calls.enter_context(joined.stepper.calling())
        at = 0
        for moment in moments:
            asked = []
            for series, stamped in moment:
                rows = slice(at, at + len(series))
                stamps = np.arange(at, at + len(series)) if stamped else None
                asked.append(([f"s{i}" for i in series], stamps, values[rows]))
                at += len(series)
            together = await asyncio.gather(*(joined.ask(*it) for it in asked))
            for it, got in zip(asked, together, strict=True):
                want = await alone.ask(*it)
                assert got.stamps.tolist() == want.stamps.tolist()
                assert got.version == want.version
                for part in ("status", "score", "contribution"):
                    assert getattr(got.scored, part).tobytes() == getattr(want.scored, part).tobytes()


async def test_requests_that_wait_take_one_step() -> None:
    """Fifty callers with a point each: one step; a caller that is alone is not made to wait."""
    bench = Bench()
    one = np.ones((1, 2), np.float32)
    with bench.stepper.calling():
        await bench.ask(["alone"], None, one)
        assert bench.steps == [1]
        with bench.stepper.calling():
            await asyncio.gather(*(bench.ask([f"s{i}"], None, one) for i in range(50)))
    assert bench.steps == [1, 50]


async def test_long_requests_and_those_of_others_do_not_wait_for_each_other() -> None:
    """A request of many rounds is stepped alone, with breaths in between; fresh states are never mixed."""
    bench = Bench()
    long = np.ones((JOINED_ROUNDS + 1, 2), np.float32)
    with bench.stepper.calling(), bench.stepper.calling():
        await bench.ask(["long"] * len(long), None, long)
        assert bench.steps == [1] * len(long)
        await bench.ask(["own"], None, long[:1], joins=False)
    assert bench.steps[-1] == 1


@pytest.mark.promise("L4")
async def test_who_was_cancelled_is_not_stepped() -> None:
    """Its points are not taken; the others' are."""
    bench = Bench()
    one = np.ones((1, 2), np.float32)
    with bench.stepper.calling(), bench.stepper.calling():
        gone, stays = (asyncio.create_task(bench.ask([name], None, one)) for name in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
    assert bench.steps == [1]
    assert bench.scorer.series.seen[:2].tolist() == [0, 1]


async def test_an_error_reaches_everybody_who_waits() -> None:
    """And the next ones are served again."""
    bench = Bench()
    one = np.ones((1, 2), np.float32)
    step = bench.stepper._step

    def broken(*_):
        raise ValueError("broken")

    with bench.stepper.calling(), bench.stepper.calling():
        bench.stepper._step = broken
        found = await asyncio.gather(*(bench.ask([n], None, one) for n in "ab"), return_exceptions=True)
        bench.stepper._step = step
        again = await bench.ask(["a"], None, one)
    assert [str(it) for it in found] == ["broken", "broken"]
    assert again.scored.status.tolist() == [Status.WARMING_UP]


async def test_streams_and_calls_share_steps_and_keep_their_order(hub: Hub, client: Client) -> None:
    """Ten streams and ten callers at once: every series has the scores it has alone, in fewer steps than messages."""
    await publish(hub, ewma_bundle("pump", 1), time="index")
    points = RNG.normal(size=(20, 60, 2)).astype(np.float32)
    scores = np.empty((20, 60), np.float32)

    async def stream(i: int) -> None:
        batches = (Batch(points[i, row : row + 2], series=[f"s{i}"] if not row else []) for row in range(0, 60, 2))
        got = [reply.scores async for reply in client.score_stream("pump", batches)]
        scores[i] = np.concatenate(got)

    async def call(i: int) -> None:
        for row in range(60):
            scores[i, row : row + 1] = (
                await client.score("pump", series=[f"s{i}"], values=points[i, row : row + 1])
            ).scores

    await asyncio.gather(*map(stream, range(10)), *map(call, range(10, 20)))
    for i in range(20):
        np.testing.assert_allclose(scores[i], ewma_scores(points[i]), rtol=1e-5)
    steps = hub.metrics.registry.get_sample_value("prunewatch_step_seconds_count", {"detector": "pump"})
    assert steps < 0.8 * (10 * 60 + 10 * 60)  # a stream's message here is two rounds
    assert hub.host.get("pump").stepper.callers == 0


@pytest.mark.slow
@pytest.mark.promise("L4")
async def test_ten_thousand_cancels_leave_nothing_behind(hub: Hub) -> None:
    """At random moments, calls and streams: nothing waits, nothing is counted as running, the next is served."""
    from prunewatch.v1 import scoring_pb2 as pb
    from prunewatch.v1.scoring_pb2_grpc import ScoringServiceStub

    await publish(hub, ewma_bundle("pump", 1), time="index")
    rng = np.random.default_rng(1)
    values = np.ones((8, 2), "<f4").tobytes()
    names = [f"s{i}" for i in range(8)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = ScoringServiceStub(channel)

        async def call() -> None:
            running = stub.Score(pb.ScoreRequest(detector="detectors/pump", series=names, packed_values=values))
            await asyncio.sleep(rng.exponential(0.004))
            running.cancel()

        async def stream() -> None:
            running = stub.ScoreStream()
            request = pb.ScoreRequest(detector="detectors/pump", series=names, packed_values=values)
            try:
                await running.write(pb.ScoreStreamRequest(points=request))
                await asyncio.sleep(rng.exponential(0.004))
            finally:
                running.cancel()

        tasks_before = len(asyncio.all_tasks())
        for _ in range(100):
            await asyncio.gather(*(call() for _ in range(90)), *(stream() for _ in range(10)), return_exceptions=True)
        stepper = hub.host.get("pump").stepper
        for _ in range(200):
            if not (stepper.callers or hub.listener.gate.calls or hub.listener.gate.streams):
                break
            await asyncio.sleep(0.05)
        answer = await stub.Score(pb.ScoreRequest(detector="detectors/pump", series=names, packed_values=values))
    assert set(answer.statuses) <= {Status.OK, Status.WARMING_UP}
    assert (stepper.callers, len(stepper._waiting)) == (0, 0)
    assert (hub.listener.gate.calls, hub.listener.gate.streams) == (0, 0)
    assert len(hub.listener.streams) == 0
    assert len(asyncio.all_tasks()) <= tasks_before + 20
