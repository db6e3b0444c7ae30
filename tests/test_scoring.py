"""What ScoringService promises about points, over a real connection."""

from __future__ import annotations

import asyncio

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, eventually, publish
from graphs import ewma_bundle, ewma_scores

from detectors.stamps import Status
from prunewatch.client import Batch, Client, ServiceError
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1 import scoring_pb2_grpc
from server.app import Hub

RNG = np.random.default_rng(7)


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with a fitted detector `pump` of two features; its threshold is 3."""
    await publish(hub, ewma_bundle("pump"))
    return hub


def stamps(n: int, start: int = 0) -> np.ndarray:
    """Stamps of n points, one nanosecond apart."""
    return NOW + np.arange(start, start + n)


async def raw_call(hub: Hub, method: str, message: bytes) -> bytes:
    """Bytes in, bytes out."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        return await channel.unary_unary(f"/prunewatch.v1.ScoringService/{method}")(message)


async def test_points_of_one_series_are_scored_in_order(pump: Hub, client: Client) -> None:
    """A request of many points of one series gives the same scores as stepping through them; warm-up has none."""
    values = RNG.normal(size=(20, 2)).astype(np.float32)

    reply = await client.score("pump", series=["a"], stamps=stamps(20), values=values)

    np.testing.assert_allclose(reply.scores, ewma_scores(values), rtol=1e-5)
    assert reply.statuses.tolist() == [Status.WARMING_UP] * 3 + [Status.OK] * 17
    assert (reply.version, reply.threshold) == (1, 3.0)
    assert reply.point_versions.tolist() == [1] * 20


async def test_live_state_goes_on_between_requests_for_each_series(pump: Hub, client: Client) -> None:
    """Points of many series in many requests score as if each series had been sent alone."""
    values = RNG.normal(size=(10, 3, 2)).astype(np.float32)

    replies = [
        await client.score("pump", series=["a", "b", "c"], stamps=[NOW + t] * 3, values=values[t]) for t in range(10)
    ]

    for i in range(3):
        np.testing.assert_allclose([r.scores[i] for r in replies], ewma_scores(values[:, i]), rtol=1e-5)


async def test_series_index_sends_points_to_their_series(pump: Hub, client: Client) -> None:
    """Points of interleaved series find their series through the index, in order of arrival."""
    values = RNG.normal(size=(12, 2)).astype(np.float32)
    index = np.array([0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1])

    reply = await client.score("pump", series=["a", "b"], series_index=index, stamps=stamps(12), values=values)

    for i in (0, 1):
        np.testing.assert_allclose(reply.scores[index == i], ewma_scores(values[index == i]), rtol=1e-5)


async def test_numbers_and_packed_bytes_score_alike(pump: Hub) -> None:
    """A caller without packed arrays sends numbers and gets numbers, the same ones."""
    values = RNG.normal(size=(5, 2)).astype(np.float32)
    request = pb.ScoreRequest(
        detector="detectors/pump", series=["a"], stamps=stamps(5).tolist(), mode=pb.SCORE_MODE_EPHEMERAL
    )
    request.values.extend(values.ravel().tolist())

    response = pb.ScoreResponse.FromString(await raw_call(pump, "Score", request.SerializeToString()))

    assert response.packed_scores == b""
    np.testing.assert_allclose(response.scores, ewma_scores(values), rtol=1e-5)


async def test_ephemeral_scores_leave_no_trace(pump: Hub, client: Client) -> None:
    """EPHEMERAL starts afresh each time, and the live series, their count and history know nothing of it."""
    values = RNG.normal(size=(6, 2)).astype(np.float32)

    first = await client.score("pump", series=["a"], stamps=stamps(6), values=values, ephemeral=True)
    second = await client.score("pump", series=["a"], values=values, ephemeral=True)

    np.testing.assert_array_equal(first.scores, second.scores)
    hosted = pump.host.get("pump")
    assert (hosted.accepted, hosted.points_kept, len(hosted._scorer.series)) == (0, 0, 0)


async def test_problems_of_single_points_are_statuses(pump: Hub, client: Client) -> None:
    """NaN, late, repeated and far-future points are not taken and say so; neighbours are scored as without them."""
    good = RNG.normal(size=(6, 2)).astype(np.float32)
    values = np.insert(good, [4, 4, 4, 4], [[np.nan, 1], [np.inf, 1], [1, 1], [2, 2]], axis=0)
    times = np.insert(stamps(6), [4, 4, 4, 4], [NOW + 4, NOW + 4, NOW + 3, NOW - 5])

    reply = await client.score("pump", series=["a"], stamps=times, values=values)
    far = await client.score("pump", series=["a"], stamps=[2**62], values=[[0, 0]])

    assert reply.statuses[4:8].tolist() == [Status.INVALID, Status.INVALID, Status.DUPLICATE, Status.LATE]
    np.testing.assert_allclose(np.delete(reply.scores, [4, 5, 6, 7]), ewma_scores(good), rtol=1e-5)
    assert far.statuses.tolist() == [Status.TOO_FAR]


async def test_anomalies_come_with_contributions(pump: Hub, client: Client) -> None:
    """Where asked for, anomalies, and only they, come with each feature's share of the error."""
    values = np.zeros((6, 2), np.float32)
    values[5] = [4, 12]

    reply = await client.score("pump", series=["a"], stamps=stamps(6), values=values, contributions=True)

    assert reply.anomalies.tolist() == [False] * 5 + [True]
    assert {i: shares.tolist() for i, shares in reply.contributions.items()} == {5: [0.25, 0.75]}


async def test_row_numbers_go_on_without_stamps(hub: Hub, client: Client) -> None:
    """With `time: index`, points without stamps are numbered on; each series has its own numbers."""
    await publish(hub, ewma_bundle("pump"), time="index")

    await client.score("pump", series=["a"], values=np.zeros((5, 2)))
    await client.score("pump", series=["a", "b"], values=np.zeros((2, 2)))

    assert hub.host.get("pump")._scorer.series.last_stamp[:2].tolist() == [5, 0]


BAD = {
    "no points": ({"packed_values": b""}, "packed_values"),
    "half a float": ({"packed_values": b"123"}, "packed_values"),
    "half a point": ({"packed_values": b"1234"}, "packed_values"),
    "values twice": ({"values": [1.0, 2.0]}, "values"),
    "stamps do not fit": ({"stamps": [1, 2]}, "stamps"),
    "no stamps": ({"stamps": []}, "stamps"),
    "index out of range": ({"series_index": [5]}, "series_index"),
    "index does not fit": ({"series_index": [0, 0]}, "series_index"),
    "no series": ({"series": []}, "series"),
    "empty name": ({"series": [""]}, "series"),
    "long name": ({"series": ["x" * 300]}, "series"),
    "whose points": ({"series": ["a", "b"]}, "series_index"),
    "not a resource name": ({"detector": "../pump"}, "detector"),
    "no detector": ({"detector": ""}, "detector"),
    "too many points": ({"packed_values": bytes(8 * 70_000), "stamps": []}, "packed_values"),
}


@pytest.mark.promise("I2")
@pytest.mark.parametrize("change", BAD)
async def test_bad_requests_name_the_field_and_change_nothing(pump: Hub, change: str) -> None:
    """What can not be used is INVALID_ARGUMENT with the field's name, and no series has changed or appeared."""
    fields, field = BAD[change]
    request = pb.ScoreRequest(
        **{"detector": "detectors/pump", "series": ["a"], "stamps": [NOW], "packed_values": bytes(8), **fields}
    )
    address = f"127.0.0.1:{pump.listener.port}"

    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scoring_pb2_grpc.ScoringServiceStub(channel).Score(request)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{field}: ")
    assert len(pump.host.get("pump")._scorer.series) == 0


async def test_unknown_detector_is_not_found(pump: Hub, client: Client) -> None:
    """A detector that does not exist is NOT_FOUND, and the hint names those that do."""
    with pytest.raises(ServiceError) as caught:
        await client.score("fan", series=["a"], stamps=[NOW], values=[[1, 2]])

    assert (caught.value.code, caught.value.field, caught.value.hint) == ("NOT_FOUND", "detector", "There are: pump.")


async def test_too_many_series_are_refused_whole(hub: Hub, client: Client) -> None:
    """A request that would go beyond `max_series` is refused as a whole: none of its series appears."""
    await hub.roster.create("pump", {"features": ["f1", "f2"], "max_series": 2})
    await publish(hub, ewma_bundle("pump"))

    with pytest.raises(ServiceError) as caught:
        await client.score("pump", series=["a", "b", "c"], stamps=stamps(3), values=np.zeros((3, 2)))

    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert len(hub.host.get("pump")._scorer.series) == 0


async def test_stream_names_series_once(pump: Hub, client: Client) -> None:
    """Later messages of a stream need no names, and names that come later get the next indexes."""
    values = RNG.normal(size=(6, 2)).astype(np.float32)
    batches = [
        Batch(values[:2], stamps=[NOW, NOW], series=["a", "b"]),
        Batch(values[2:4], stamps=[NOW + 1, NOW + 1]),
        Batch(values[4:], stamps=[NOW + 2, NOW + 2], series=["c"], series_index=[2, 0]),
    ]

    replies = [reply async for reply in client.score_stream("pump", batches)]

    assert [reply.sequence for reply in replies] == [1, 2, 3]
    table = pump.host.get("pump")._scorer.series
    assert (table.names, table.seen[:3].tolist()) == (["a", "b", "c"], [3, 2, 1])


async def test_a_bad_message_does_not_end_a_stream(pump: Hub, client: Client) -> None:
    """A message that can not be used is answered with its error, changes nothing, and the next one is scored."""
    values = RNG.normal(size=(2, 2)).astype(np.float32)
    batches = [
        Batch(values, stamps=[NOW], series=["a"]),  # one stamp too few; its name is not taken either
        Batch(values[:1], stamps=[NOW], series=["b"]),
        Batch(np.zeros((1, 3)), stamps=[NOW + 1]),
        Batch(values[1:], stamps=[NOW + 1]),
    ]

    replies = [reply async for reply in client.score_stream("pump", batches, keep_going=True)]

    assert [reply.error and reply.error.field for reply in replies] == ["stamps", None, "packed_values", None]
    table = pump.host.get("pump")._scorer.series
    assert (table.names, table.seen[:1].tolist()) == (["b"], [2])


async def test_a_corrupt_message_does_not_end_a_stream(pump: Hub) -> None:
    """Bytes that are no protobuf get INVALID_ARGUMENT as the answer to that one message."""
    good = pb.ScoreStreamRequest(
        sequence=2,
        points=pb.ScoreRequest(detector="detectors/pump", series=["a"], stamps=[NOW], packed_values=bytes(8)),
    ).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        call = channel.stream_stream("/prunewatch.v1.ScoringService/ScoreStream")()
        answers = []
        for message in (b"\xff\xff\xff", good):
            await call.write(message)
            answers.append(pb.ScoreStreamResponse.FromString(await call.read()))
        await call.done_writing()

        assert await call.code() is grpc.StatusCode.OK

    assert [answer.WhichOneof("result") for answer in answers] == ["error", "scores"]
    assert answers[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "protobuf" in answers[0].error.message
    assert answers[1].sequence == 2


async def test_ephemeral_state_lives_as_long_as_the_stream(pump: Hub, client: Client) -> None:
    """In an EPHEMERAL stream state is carried from message to message, and gone with the stream."""
    values = RNG.normal(size=(8, 2)).astype(np.float32)

    for _ in range(2):
        batches = [Batch(values[:4], series=["a"]), Batch(values[4:])]
        replies = [reply async for reply in client.score_stream("pump", batches, ephemeral=True)]

        np.testing.assert_allclose(np.concatenate([r.scores for r in replies]), ewma_scores(values), rtol=1e-5)
    assert len(pump.host.get("pump")._scorer.series) == 0


async def test_a_stream_has_one_detector_and_one_mode(pump: Hub) -> None:
    """Another detector or mode in the middle of a stream is refused for that message."""
    first = pb.ScoreRequest(detector="detectors/pump", series=["a"], stamps=[NOW], packed_values=bytes(8))
    other = pb.ScoreRequest(detector="detectors/fan", stamps=[NOW + 1], packed_values=bytes(8))
    mode = pb.ScoreRequest(mode=pb.SCORE_MODE_EPHEMERAL, stamps=[NOW + 1], packed_values=bytes(8))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        call = scoring_pb2_grpc.ScoringServiceStub(channel).ScoreStream()
        fields = []
        for points in (first, other, mode):
            await call.write(pb.ScoreStreamRequest(points=points))
            fields.append((await call.read()).error.message.partition(":")[0])

    assert fields == ["", "detector", "mode"]


async def test_a_deleted_detector_answers_not_found_in_open_streams(pump: Hub, client: Client) -> None:
    """A stream outlives its detector; its messages are then NOT_FOUND."""
    deleted = asyncio.Event()

    async def batches():
        yield Batch([[1, 2]], stamps=[NOW], series=["a"])
        await deleted.wait()
        yield Batch([[1, 2]], stamps=[NOW + 1])

    codes = []
    async for reply in client.score_stream("pump", batches(), keep_going=True):
        codes.append(reply.error and reply.error.code)
        if not deleted.is_set():
            await client.delete("pump")
            deleted.set()

    assert codes == [None, "NOT_FOUND"]


async def test_watch_sends_anomalies_of_the_detectors_asked_for(pump: Hub, client: Client) -> None:
    """Anomalies of watched detectors arrive with series, stamp, score, threshold, version and the top features."""
    await publish(pump, ewma_bundle("fan"))
    anomalies = client.watch("pump")
    watching = asyncio.create_task(anext(anomalies))
    await eventually(lambda: asyncio.sleep(0, pump.host.watchers.of("pump")))
    values = np.zeros((5, 2), np.float32)
    values[4] = [4, 12]
    await client.score("fan", series=["x"], stamps=stamps(5), values=values)
    await client.score("pump", series=["a"], stamps=stamps(5), values=values)
    anomaly = await watching
    await anomalies.aclose()

    assert (anomaly.detector, anomaly.series, anomaly.stamp, anomaly.score) == ("pump", "a", NOW + 4, 8.0)
    assert (anomaly.threshold, anomaly.version, anomaly.dropped) == (3.0, 1, 0)
    assert anomaly.contributions == {"f2": 0.75, "f1": 0.25}
    await eventually(lambda: asyncio.sleep(0, not pump.host.watchers.of("pump")))


async def test_watching_an_unknown_detector_is_not_found(pump: Hub, client: Client) -> None:
    """Nobody waits forever for a detector that does not exist."""
    with pytest.raises(ServiceError) as caught:
        await anext(client.watch("fan"))

    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("ephemeral", [True, False])
async def test_a_wrong_number_of_features_is_refused(pump: Hub, client: Client, width: int, ephemeral: bool) -> None:
    """Points of another width are an error that names both widths, also where the counts would come out even."""
    with pytest.raises(ServiceError, match=f"{width} features, the detector has 2") as caught:
        await client.score("pump", series=["a"], values=np.zeros((60, width)), ephemeral=ephemeral)

    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "packed_values")
    reply = await client.score("pump", series=["a"], stamps=stamps(1), values=[[1.0, 2.0]])
    assert reply.statuses.tolist() == [Status.WARMING_UP]
