"""Labels and maintenance windows: over gRPC, on the command line, in the answers of the service, over restarts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from graphs import ewma_bundle
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import ExhaustedError, NotFoundError
from detectors.stamps import Status
from prunewatch.client import Batch, Client, ServiceError
from prunewatch.v1 import feedback_pb2 as pb
from prunewatch.v1 import feedback_pb2_grpc
from server import feedback_rows
from server.app import Hub
from server.catalog import Catalog
from server.cli import main
from server.drift import Drift
from server.segments import read_segment, schema_of
from server.spans import Span, Spans
from server.store import Store

WARM_UP = 3
SECOND = 10**9


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with a fitted detector `pump` of two features; its threshold is 3."""
    await publish(hub, ewma_bundle("pump"))
    return hub


async def alarm(client: Client, start: int, series: str = "a", **how):
    """Three calm points and one that is far off, a second apart from NOW + `start` seconds on."""
    points = np.array([(0, 0)] * WARM_UP + [(0, 50)], np.float32)
    stamps = NOW + SECOND * (np.arange(len(points)) + start)
    return await client.score("pump", series=[series], stamps=stamps, values=points, **how)


async def found(client: Client) -> list[int]:
    """Stamps of the anomalies that are kept, in seconds after NOW, oldest first."""
    return [(it.stamp - NOW) // SECOND async for it in client.anomalies("pump")][::-1]


# the service


async def test_labels_are_kept_listed_and_taken_back(pump: Hub, client: Client) -> None:
    """Each field comes back; the list is newest first, over pages; what was taken back is gone."""
    first = await client.add_label("pump", "anomaly", 5, 9, series="a", note="ran hot")
    second = await client.add_label("pump", "normal", 7, 7)

    assert first == {**first, "label": "anomaly", "series": "a", "first_stamp": 5, "last_stamp": 9, "note": "ran hot"}
    assert await client.labels("pump") == [second, first]
    assert abs(first["created_seconds"] - second["created_seconds"]) < 60

    await client.delete_label("pump", first["id"])
    assert await client.labels("pump") == [second]
    third = await client.add_label("pump", "anomaly", 5, 9)
    assert third["id"] > second["id"] > first["id"]


async def test_pages_follow_each_other_whatever_happens_between(pump: Hub, client: Client) -> None:
    """Every row once, newest first, although rows come and go while somebody reads."""
    for i in range(5):
        await client.add_window("pump", i, i)
        await client.add_label("pump", "normal", i, i)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pump.listener.port}") as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        request = pb.ListMaintenanceWindowsRequest(parent="detectors/pump", page_size=2)
        page = await stub.ListMaintenanceWindows(request)
        assert [it.first_stamp for it in page.maintenance_windows] == [4, 3]
        assert page.maintenance_windows[0].name == "detectors/pump/maintenanceWindows/5"
        await client.add_window("pump", 99, 99)
        await client.delete_window("pump", 4)  # the last one of the page
        stamps = []
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = await stub.ListMaintenanceWindows(request)
            stamps += [it.first_stamp for it in page.maintenance_windows]
        assert stamps == [2, 1, 0]

        with pytest.raises(grpc.aio.AioRpcError) as refused:  # the token of another list
            await stub.ListFeedback(pb.ListFeedbackRequest(parent="detectors/pump", page_token=request.page_token))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateFeedback(pb.CreateFeedbackRequest(parent="detectors/pump", feedback=pb.Feedback()))
        assert "feedback.label" in refused.value.details()


@pytest.mark.parametrize(
    ("ask", "code", "field"),
    [
        (lambda c: c.add_label("pump", "anomaly", 9, 5), "INVALID_ARGUMENT", "feedback.last_stamp"),
        (lambda c: c.add_window("pump", 9, 5), "INVALID_ARGUMENT", "maintenance_window.last_stamp"),
        (lambda c: c.add_label("pump", "anomaly", 1, 2, note="x" * 2001), "INVALID_ARGUMENT", "feedback.note"),
        (lambda c: c.add_label("none", "anomaly", 1, 2), "NOT_FOUND", "detector"),
        (lambda c: c.add_window("none", 1, 2), "NOT_FOUND", "detector"),
        (lambda c: c.labels("none"), "NOT_FOUND", "detector"),
        (lambda c: c.windows("../x"), "INVALID_ARGUMENT", "parent"),
        (lambda c: c.delete_label("pump", 77), "NOT_FOUND", "name"),
        (lambda c: c.delete_window("pump", 77), "NOT_FOUND", "name"),
        (lambda c: c.delete_label("pump", 0), "INVALID_ARGUMENT", "name"),
        (lambda c: c.delete_window("none", 1), "NOT_FOUND", "detector"),
    ],
)
async def test_what_can_not_be_is_refused(pump: Hub, client: Client, ask, code: str, field: str) -> None:
    """With the code and the field of the request."""
    with pytest.raises(ServiceError) as refused:
        await ask(client)

    assert (refused.value.code, refused.value.field) == (code, field)


async def test_labels_go_with_their_detector(pump: Hub, client: Client) -> None:
    """Another one that takes the name begins without."""
    await client.add_label("pump", "anomaly", 1, 2)
    await client.add_window("pump", 0, NOW * 2)
    await client.delete("pump")
    await publish(pump, ewma_bundle("pump"))

    assert await client.labels("pump") == await client.windows("pump") == []
    assert (await alarm(client, 0)).anomalies.any()


def test_a_detector_has_so_many_labels_at_most(tmp_path: Path, monkeypatch) -> None:
    """A client that goes wild fills neither the disk nor every job; what was there stays."""
    monkeypatch.setattr(feedback_rows, "MOST_ROWS", 3)
    catalog = Catalog(tmp_path / "catalog.db")
    catalog.create_detector("pump", {}, None)
    catalog.create_detector("fan", {}, None)
    for i in range(3):
        catalog.add_label("pump", "normal", i, i)

    with pytest.raises(ExhaustedError):
        catalog.add_label("pump", "normal", 3, 3)
    assert [row.first_stamp for row in catalog.labels("pump")] == [2, 1, 0]
    assert catalog.add_label("fan", "normal", 3, 3).id == 4
    assert catalog.add_window("pump", 3, 3).id == 1
    with pytest.raises(NotFoundError):
        catalog.add_label("none", "normal", 1, 1)
    catalog.close()


# maintenance and scoring


async def test_a_point_in_a_window_is_scored_and_raises_no_alarm(pump: Hub, client: Client) -> None:
    """Not in the answer, the list, the metrics or the history; outside its series and time everything does."""
    await client.add_window("pump", NOW, NOW + 10 * SECOND, series="a")

    muted = await alarm(client, 0, contributions=True)
    other = await alarm(client, 0, series="b")
    later = await alarm(client, 20)

    assert muted.scores[-1] == other.scores[-1] > muted.threshold
    assert muted.statuses.tolist() == other.statuses.tolist()
    assert muted.anomalies.tolist() == [False] * 4
    assert muted.muted.tolist() == [3]
    assert muted.contributions == {}
    assert other.anomalies.tolist() == later.anomalies.tolist() == [False] * 3 + [True]
    assert await found(client) == [3, 23]
    registry = pump.metrics.registry
    assert registry.get_sample_value("prunewatch_anomalies_total", {"detector": "pump"}) == 2
    await pump.host.flush()
    table = read_segment((await pump.host.get("pump").history_paths())[0], schema_of(["f1", "f2"]))
    assert np.flatnonzero(table["flagged"].to_numpy()).tolist() == [7, 11]
    assert table["score"].to_numpy()[3] == muted.scores[-1]


async def test_maintenance_is_neither_an_alarm_flood_nor_drift(pump: Hub, client: Client) -> None:
    """What a version is judged by, to serve on or to be trained again, has no points of a window."""
    hosted = pump.host.get("pump")
    hosted.drift = Drift(window=1000)
    await client.add_window("pump", NOW, NOW + 10 * SECOND)

    await alarm(client, 0)
    assert (hosted.usage.points, hosted.usage.flagged) == (0, 0)
    assert sum(len(part.scores) for part in hosted.drift._waiting) == 0

    await alarm(client, 20)
    assert (hosted.usage.points, hosted.usage.flagged) == (4, 1)
    assert sum(len(part.scores) for part in hosted.drift._waiting) == 4


async def test_watchers_hear_nothing_of_maintenance(pump: Hub, client: Client) -> None:
    """The first thing they hear is what comes after it."""
    await client.add_window("pump", NOW, NOW + 10 * SECOND)
    watched = client.watch("pump")
    waiting = asyncio.create_task(anext(watched))
    await eventually(lambda: asyncio.sleep(0, pump.host.watchers.of("pump")))
    await alarm(client, 0)
    await alarm(client, 20)

    assert (await waiting).stamp == NOW + 23 * SECOND
    await watched.aclose()


async def test_a_window_takes_effect_at_once_also_in_open_streams(pump: Hub, client: Client) -> None:
    """From the answer of its creation to the answer of its deletion; several series, one of them many times."""
    values = np.array([[0, 0]] * 3 + [[0, 50]] * 2, np.float32)
    asked: asyncio.Queue[int] = asyncio.Queue()

    async def batches():
        while (start := await asked.get()) >= 0:
            stamps = NOW + SECOND * (start + np.array([0, 1, 2, 3, 3]))
            yield Batch(values, stamps, () if start else ("a", "b"), [0, 0, 0, 0, 1])

    replies = client.score_stream("pump", batches())

    async def flags(start: int) -> list[bool]:
        await asked.put(start)
        return (await anext(replies)).anomalies.tolist()[3:]

    assert await flags(0) == [True, False]  # b is warming up
    assert await flags(10) == [True, False]
    window = await client.add_window("pump", NOW, NOW + 1000 * SECOND, series="a")
    assert await flags(20) == [False, False]
    assert await flags(30) == [False, True]
    await client.delete_window("pump", window["id"])
    assert await flags(40) == [True, True]
    await asked.put(-1)


async def test_windows_are_there_after_a_restart(tmp_path: Path) -> None:
    """A machine may be under maintenance for longer than a server runs."""
    settings = hub_settings(tmp_path)
    for turn in range(2):
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await hub.start()
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            if not turn:
                await publish(hub, ewma_bundle("pump"))
                await client.add_window("pump", NOW, NOW + 1000 * SECOND)
            assert not (await alarm(client, 100 * turn)).anomalies.any()
            assert len(await client.windows("pump")) == 1
        await hub.stop()


async def test_evaluations_know_no_maintenance(pump: Hub, client: Client) -> None:
    """EPHEMERAL points belong to nobody's machine."""
    await client.add_window("pump", NOW, NOW + 1000 * SECOND)

    reply = await alarm(client, 0, ephemeral=True)

    assert reply.anomalies.any()
    assert reply.statuses[-1] == Status.OK


NAMES = ["a", "b", "a", "c"]


@given(
    st.lists(
        st.builds(
            lambda series, first, more: Span(series, first, first + more),
            st.sampled_from(["", "a", "b", "x"]),
            st.integers(0, 9),
            st.integers(0, 4),
        ),
        max_size=5,
    ),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 15)), max_size=10),
)
def test_spans_cover_what_a_plain_loop_says(spans: list[Span], points: list[tuple[int, int]]) -> None:
    """Any spans and points, also where a series is named twice."""
    index, stamps = (np.array([point[i] for point in points], np.int64) for i in range(2))

    covered = Spans(spans).cover(NAMES, index, stamps)

    assert covered.tolist() == [
        any(span.series in {"", NAMES[i]} and span.first <= stamp <= span.last for span in spans) for i, stamp in points
    ]


# the command line


def ran(capsys, *arguments: object) -> str:
    """What a command prints; it must end well."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert ended.value.code == 0, output.err
    return output.out


def refused(capsys, *arguments: object) -> str:
    """What a command complains of."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def script(capsys, *where: object) -> None:
    """Says, lists and takes back what there is to say of `pump`."""
    noon, later = "2024-05-01T12:00Z", "2024-05-01T12:20:00Z"
    added = json.loads(ran(capsys, "feedback", "pump", "--anomaly", noon, later, "--note", "hot", "--json", *where))
    (label,) = added.pop("labels")
    assert added == {"detector": "pump", "time": "stamp"}
    assert (label["first_stamp"], label["last_stamp"]) == (1_714_564_800 * SECOND, 1_714_566_000 * SECOND)
    assert (label["label"], label["series"], label["note"]) == ("anomaly", "", "hot")
    listed = ran(capsys, "feedback", "pump", *where)
    assert all(text in listed for text in (later, "anomaly", "hot", "all"))
    ran(capsys, "feedback", "pump", "--normal", noon, noon, *where)
    two = json.loads(ran(capsys, "feedback", "pump", "--list", "--json", *where))["labels"]
    assert [it["label"] for it in two] == ["normal", "anomaly"]
    assert two[1] == label
    assert ran(capsys, "feedback", "pump", "--delete", label["id"], *where) == f"pump: took {label['id']} back\n"
    assert json.loads(ran(capsys, "feedback", "pump", "--json", *where))["labels"] == two[:1]

    window = ran(capsys, "maintenance", "pump", noon, later, "--series", "north", *where)
    assert "north" in window
    (planned,) = json.loads(ran(capsys, "maintenance", "pump", "--list", "--json", *where))["windows"]
    assert planned.keys() == label.keys() - {"label"}
    assert planned["last_stamp"] == label["last_stamp"]
    ran(capsys, "maintenance", "pump", "--delete", planned["id"], *where)
    assert ran(capsys, "maintenance", "pump", *where) == "pump: no maintenance windows\n"


async def test_the_command_line_asks_a_server(pump: Hub, capsys) -> None:
    """What was said is listed and taken back, as tables and as JSON."""
    await asyncio.to_thread(script, capsys, "--server", f"127.0.0.1:{pump.listener.port}")


def test_the_command_line_works_on_a_store(tmp_path: Path, capsys) -> None:
    """The same without a server."""
    with Store.open(tmp_path / "store") as store:
        store.catalog.create_detector("pump", {}, ["f1"])

    script(capsys, "--store", tmp_path / "store")


def test_the_command_line_complains(tmp_path: Path, capsys) -> None:
    """Of times that are none, that go back, of row numbers, and of two wishes at once; nothing is kept."""
    root = tmp_path / "store"
    with Store.open(root) as store:
        store.catalog.create_detector("pump", {"time": "index"}, ["f1"])

    where = ("--store", root)
    assert "is before 20" in refused(capsys, "feedback", "pump", "--anomaly", 20, 10, *where)
    assert "no row number" in refused(capsys, "feedback", "pump", "--anomaly", "2024-05-01", "2024-05-02", *where)
    assert "--normal" in refused(capsys, "feedback", "pump", "--normal", "soon", "later", *where)
    assert "do not go together" in refused(capsys, "feedback", "pump", "--normal", 1, 2, "--delete", 3, *where)
    assert "last point is missing" in refused(capsys, "maintenance", "pump", 5, *where)
    assert "no label 5" in refused(capsys, "feedback", "pump", "--delete", 5, *where)
    assert "no maintenance window 5" in refused(capsys, "maintenance", "pump", "--delete", 5, *where)
    assert ran(capsys, "feedback", "pump", *where) == "pump: no labels\n"
