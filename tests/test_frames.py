"""DataFrames in, DataFrames out."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import NOW, QUICK_TRAINER, hub_settings, publish
from graphs import ewma_bundle, ewma_scores

from detectors.archive import load_bundle
from prunewatch.client import Batch, Client, Retry, ServiceError
from prunewatch.points import MESSAGE_POINTS
from server.app import Hub
from server.config import DetectorConfig, Settings
from server.edge import Edge

COLUMNS = ["score", "status", "anomaly", "threshold", "version"]


def frame(n: int = 60, seed: int = 0, start: int = 0) -> pd.DataFrame:
    """Rows a second apart with the features `f1` and `f2`, some of them anomalies."""
    values = np.random.default_rng(seed).normal(size=(n, 2))
    values[20::31] += 8
    index = pd.to_datetime(NOW, unit="ns") + pd.to_timedelta(np.arange(start, start + n), unit="s")
    return pd.DataFrame(values.astype(np.float32), columns=["f1", "f2"], index=index)


async def test_scores_come_back_under_the_same_index(hub: Hub, client: Client) -> None:
    """A frame in, a frame out: same rows, with score, status, anomaly, threshold and version."""
    await publish(hub, ewma_bundle("pump"))
    given = frame()

    scored = await client.score_frame("pump", given, series="north")

    expected = ewma_scores(given.to_numpy())
    assert list(scored.columns) == COLUMNS
    pd.testing.assert_index_equal(scored.index, given.index)
    np.testing.assert_allclose(scored["score"], expected, rtol=1e-5)
    assert scored["status"].tolist() == ["WARMING_UP"] * 3 + ["OK"] * 57
    np.testing.assert_array_equal(scored["anomaly"], expected >= 3)
    assert scored["anomaly"].any()
    assert set(scored["version"]) == {1}
    assert set(scored["threshold"]) == {3.0}


async def test_columns_and_rows_may_stand_in_any_order(hub: Hub, client: Client) -> None:
    """Columns are put in the detector's order, rows in that of time; the answer is in the caller's."""
    await publish(hub, ewma_bundle("pump"))
    given = frame()
    plain = await client.score_frame("pump", given, ephemeral=True, contributions=True)

    mixed = given.sample(frac=1, random_state=0)[["f2", "f1"]]
    scored = await client.score_frame("pump", mixed, ephemeral=True, contributions=True)

    pd.testing.assert_frame_equal(scored.sort_index(), plain)
    assert not scored.index.is_monotonic_increasing


async def test_a_column_says_the_series(hub: Hub, client: Client) -> None:
    """A long frame with a column `series` is scored series by series; `series=` wins over it."""
    await publish(hub, ewma_bundle("pump"))
    parts = {name: frame(seed=i) for i, name in enumerate(["north", "south", "west"])}
    long = pd.concat([part.assign(series=name) for name, part in parts.items()])

    scored = await client.score_frame("pump", long)
    alone = await client.score_frame("pump", parts["west"].assign(series="north"), series="alone")

    for name, part in parts.items():
        mine = scored[(long["series"] == name).to_numpy()]
        np.testing.assert_allclose(mine["score"], ewma_scores(part.to_numpy()), rtol=1e-5)
    np.testing.assert_allclose(alone["score"], ewma_scores(parts["west"].to_numpy()), rtol=1e-5)
    assert hub.host.get("pump").accepted == 240


async def test_contributions_have_a_column_for_each_feature(hub: Hub, client: Client) -> None:
    """Shares of the error for anomalies, NaN for all else."""
    await publish(hub, ewma_bundle("pump"))
    given = frame()
    given.iloc[40, 1] += 50

    scored = await client.score_frame("pump", given, contributions=True)

    assert list(scored.columns) == [*COLUMNS, "share.f1", "share.f2"]
    assert scored["share.f2"].iloc[40] > 0.9
    np.testing.assert_array_equal(scored["share.f1"].notna(), scored["anomaly"])


async def test_a_large_frame_is_cut(hub: Hub, client: Client) -> None:
    """More rows than a message takes: the scores are those of one series without a seam, LIVE and EPHEMERAL."""
    await publish(hub, ewma_bundle("pump"))
    given = frame(MESSAGE_POINTS + 900, start=-100_000)
    expected = ewma_scores(given.to_numpy())

    ephemeral = await client.score_frame("pump", given, ephemeral=True)
    live = await client.score_frame("pump", given)

    np.testing.assert_allclose(ephemeral["score"], expected, rtol=1e-4)
    pd.testing.assert_frame_equal(live, ephemeral)
    assert hub.host.get("pump").accepted == len(given)


async def test_large_arrays_are_cut_as_well(hub: Hub, client: Client) -> None:
    """An array beyond what one message may hold is scored too, also in several series and without stamps."""
    await publish(hub, ewma_bundle("pump"), time="index")
    values = np.tile(np.random.default_rng(0).normal(size=(100, 2)), (700, 1)).astype(np.float32)
    series = [f"s{i % 700}" for i in range(70_000)]
    values = values[np.argsort(np.arange(70_000) % 100, kind="stable")]  # point i is the (i // 700)th of its series

    reply = await client.score("pump", values=values, series=series)

    expected = ewma_scores(values[::700])
    np.testing.assert_allclose(reply.scores.reshape(100, 700), np.repeat(expected[:, None], 700, 1), rtol=1e-4)
    assert len(reply.statuses) == 70_000


async def test_frames_and_batches_share_a_stream(hub: Hub, client: Client) -> None:
    """`score_stream` takes frames too, one reply for each, whatever was named before."""
    await publish(hub, ewma_bundle("pump"))
    first, rest = frame(10), frame(MESSAGE_POINTS, start=10)
    stamps = first.index.as_unit("ns").asi8

    def batches():
        yield Batch(first.to_numpy(), stamps, series=["other"])
        yield first.assign(series="north").iloc[::-1]
        yield pd.concat([rest.assign(series="north"), first.assign(series="south")])
        yield Batch(first.to_numpy(), stamps + 10**15, series_index=[0] * 10)

    replies = [it async for it in client.score_stream("pump", batches(), ephemeral=True)]

    expected = ewma_scores(np.concatenate([first, rest]))
    assert [it.sequence for it in replies] == [1, 2, 3, 4]
    np.testing.assert_array_equal(replies[0].scores, replies[1].scores[::-1])
    np.testing.assert_allclose(replies[2].scores[: len(rest)], expected[10:], rtol=1e-4)
    np.testing.assert_array_equal(replies[2].scores[len(rest) :], replies[0].scores)
    assert set(replies[3].statuses.tolist()) == {1}


async def test_score_and_stream_take_frames(hub: Hub, client: Client) -> None:
    """`Client.score` and a stream that reconnects give arrays for a frame, in the order of its rows."""
    await publish(hub, ewma_bundle("pump"))
    given = frame()[::-1]
    expected = ewma_scores(given[::-1].to_numpy())[::-1]

    single = await client.score("pump", values=given, series="a")
    async with client.stream("pump") as stream:
        streamed = await stream.score(given, series="b")

    np.testing.assert_allclose(single.scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(streamed.scores, single.scores)
    with pytest.raises(ServiceError, match="stamps"):
        await client.score("pump", values=given, stamps=[1])


async def test_times_are_what_they_mean(hub: Hub, client: Client) -> None:
    """Zones and units of the index do not matter; integers are nanoseconds, or row numbers where these are counted."""
    await publish(hub, ewma_bundle("pump"))
    await publish(hub, ewma_bundle("fan"), time="index")
    given = frame()
    indexes = [given.index.tz_localize("UTC").tz_convert("Asia/Tokyo"), given.index.as_unit("s"), given.index.asi8]
    assert given.index.unit == "ns"

    first = await client.score_frame("pump", given)
    again = [await client.score_frame("pump", given.set_index(pd.Index(index))) for index in indexes]
    counted = await client.score_frame("fan", given.reset_index(drop=True))

    assert [it["status"].iloc[-1] for it in again] == ["DUPLICATE"] * 3
    np.testing.assert_array_equal(counted["score"], first["score"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda it: it.drop(columns="f2"), "lacks f2"),
        (lambda it: it.assign(f9=1.0), "unknown f9"),
        (lambda it: it.assign(f1="high"), "not numbers: f1"),
        (lambda it: it.assign(series=[None, *["a"] * 59]), "name no series"),
        (lambda it: it.reset_index(drop=True), "set_index"),
        (lambda it: it.set_index(it.index.astype(str)), "DatetimeIndex"),
        (lambda it: it.set_index(it.index.where(it.index != it.index[3])), "NaT"),
        (lambda it: pd.concat([it, it["f1"]], axis=1), "twice: f1"),
    ],
)
async def test_a_frame_that_does_not_fit_is_refused(hub: Hub, client: Client, change, complaint: str) -> None:
    """The error names the column or the index, and what to do; nothing was sent."""
    await publish(hub, ewma_bundle("pump"))

    with pytest.raises(ServiceError) as caught:
        await client.score_frame("pump", change(frame()))

    assert complaint in str(caught.value)
    assert caught.value.hint
    assert hub.host.get("pump").accepted == 0


async def test_a_frame_with_times_is_nothing_for_a_detector_that_counts(hub: Hub, client: Client) -> None:
    """Nanoseconds are no row numbers; and as many names as rows are wanted."""
    await publish(hub, ewma_bundle("fan"), time="index")
    with pytest.raises(ServiceError, match="counts rows"):
        await client.score_frame("fan", frame())
    with pytest.raises(ServiceError, match="2 series for 60 rows"):
        await client.score_frame("fan", frame().reset_index(drop=True), series=["a", "b"])


async def test_a_lasting_stream_waits_for_a_server_with_frames_too(tmp_path, unused_tcp_port: int) -> None:
    """The detector's columns are asked for as patiently as points are sent."""
    settings = hub_settings(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}")
    retry = Retry(attempts=None, first_seconds=0.02, longest_seconds=0.1)
    async with Client(settings.listen) as client, client.stream("pump", retry=retry) as stream:
        scoring = asyncio.create_task(stream.score(frame()[["f2", "f1"]]))
        await asyncio.sleep(0.2)
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await publish(hub, ewma_bundle("pump"))
        await hub.start()
        reply = await scoring
    await hub.stop()

    np.testing.assert_allclose(reply.scores, ewma_scores(frame().to_numpy()), rtol=1e-5)


async def test_missing_values_are_the_detectors_affair(hub: Hub, client: Client) -> None:
    """NaN and pandas' own NA become NaN: that point is INVALID, the others are scored."""
    await publish(hub, ewma_bundle("pump"))
    given = frame(10).astype({"f1": "Float64"})
    given.iloc[5, 0] = pd.NA

    scored = await client.score_frame("pump", given)

    assert (scored["status"] == "INVALID").to_numpy().nonzero()[0].tolist() == [5]


async def test_an_edge_takes_frames_by_position(hub: Hub) -> None:
    """A device does not tell its features: columns are taken as they stand."""
    await publish(hub, ewma_bundle("pump"))
    folder = hub.store.bundle_folder(hub.store.catalog.serving("pump", "hub").bundle_hash)
    settings = Settings(listen="127.0.0.1:0", admin="127.0.0.1:0", drain_seconds=0.5)
    edge = Edge(load_bundle(folder), settings, config=DetectorConfig())
    await edge.start()
    async with Client(f"127.0.0.1:{edge.listener.port}") as device:
        scored = await device.score_frame("pump", frame().set_axis(["a", "b"], axis=1), contributions=True)
    await edge.stop()

    np.testing.assert_allclose(scored["score"], ewma_scores(frame().to_numpy()), rtol=1e-5)
    assert list(scored.columns[-2:]) == ["share.a", "share.b"]


def test_arrays_need_no_pandas() -> None:
    """The client never imports pandas, whatever is sent over it but a frame."""
    code = "import sys; from prunewatch.frames import is_frame; print(is_frame([[1.0]]), 'pandas' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["False", "False"]
