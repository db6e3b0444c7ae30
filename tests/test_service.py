"""What the services that manage detectors promise, with a real hub and a trainer process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, eventually, hub_settings, publish
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from graphs import ewma_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from quick_trainer import CRASH, HANG, REFUSE, REJECT

from detectors.stamps import Status
from prunewatch.client import Client, ServiceError
from prunewatch.v1 import detectors_pb2 as pb
from prunewatch.v1 import detectors_pb2_grpc
from server.app import Hub
from server.config import Settings

RNG = np.random.default_rng(5)
TRAINING = {
    "features": ["f1", "f2"],
    "stamps": NOW + np.arange(100),
    "values": RNG.normal(size=(100, 2)).astype(np.float32),
}


async def stream_points(client: Client, n: int, start: int = 0, detector: str = "pump") -> list[int]:
    """Sends n LIVE points of one series; returns their statuses."""
    reply = await client.score(
        detector, series=["a"], stamps=NOW + np.arange(start, start + n), values=np.zeros((n, 2), np.float32)
    )
    return reply.statuses.tolist()


async def fitted(client: Client) -> None:
    """Fits `pump` on an upload."""
    await client.wait_operation(await client.fit_upload("pump", **TRAINING))


# detectors


async def test_an_upload_creates_fits_and_serves_a_detector(hub: Hub, client: Client) -> None:
    """One upload makes a detector that scores; its progress is seen and its points are kept for cycles."""
    seen = []

    name = await client.fit_upload("pump", **TRAINING)
    result = await client.wait_operation(name, lambda *progress: seen.append(progress))

    assert result["parent"]["version"] == 1
    assert result["rows"] == 100
    assert seen[-1][0] == "train"
    detector = await client.get("pump")
    assert (detector["state"], detector["features"], detector["history_points"]) == ("ready", ["f1", "f2"], 100)
    assert [served["version"] for served in detector["served"]] == [1]
    assert await stream_points(client, 4) == [Status.WARMING_UP] * 3 + [Status.OK]


async def test_an_upload_may_have_its_columns_in_any_order(hub: Hub, client: Client) -> None:
    """Columns are matched by name; a missing one is refused with the names that are wanted."""
    await fitted(client)

    await client.wait_operation(await client.fit_upload("pump", **{**TRAINING, "features": ["f2", "f1"]}))
    with pytest.raises(ServiceError) as caught:
        await client.fit_upload("pump", **{**TRAINING, "features": ["f2", "f3"]})

    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "header.features")
    assert "f1, f2" in caught.value.problem


async def test_a_detector_learns_from_its_stream_and_fits_itself(hub: Hub, client: Client) -> None:
    """With `fit_after` points answer LEARNING until so many were seen; then it scores without warming up again."""
    await client.create("pump", {"fit_after": 20})

    assert set(await stream_points(client, 20)) == {Status.LEARNING}
    await eventually(lambda: ready(client))

    assert await stream_points(client, 2, start=20) == [Status.OK, Status.OK]
    assert (await client.get("pump"))["features"] == ["f1", "f2"]


async def test_every_setting_of_the_api_comes_back_as_it_was_said(hub: Hub, client: Client) -> None:
    """How errors are made, missing values, gaps and network travel over the wire and are what the service uses."""
    said = {
        "network": "ensemble",
        "options": {"members": "gru,autoencoder", "gru.width": 8},
        "missing": "carry",
        "max_gap": "2h",
        "half_life": 0.0,
        "aggregate": "mean",
    }

    await client.create("pump", said)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = detectors_pb2_grpc.DetectorServiceStub(channel)
        message = (await stub.GetDetector(pb.GetDetectorRequest(name="detectors/pump"))).config
    config = hub.roster.config_of("pump")
    assert (message.network, message.missing, message.max_gap) == ("ensemble", "carry", "7200s")
    assert (message.half_life, message.aggregate) == (0.0, "mean")
    assert (config.max_gap, config.error.half_life, config.options["gru.width"]) == (7200.0, 0.0, 8)


@pytest.mark.slow
async def test_a_second_detector_begins_with_what_the_first_has_learned(tmp_path: Path) -> None:
    """With the real trainer: it takes over network and sizes, is fitted to its own points, and is independent after."""
    hub = Hub(hub_settings(tmp_path))
    await hub.start()
    rows = np.random.default_rng(0).normal(size=(400, 2)).cumsum(axis=0)
    points = {"features": ["a", "b"], "stamps": np.arange(400), "values": rows}
    config = {"network": "gru", "options": {"width": 8, "layers": 1}}

    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        with pytest.raises(ServiceError) as missing:
            await client.fit_upload("second", **points, start_from="first")
        await client.wait_operation(await client.fit_upload("first", **points, config=config))
        upload = await client.fit_upload("second", **{**points, "values": rows * 2}, start_from="first")
        result = await client.wait_operation(upload)
        shown = await client.show("second")
    await hub.stop()

    assert missing.value.code == "NOT_FOUND"
    assert result["parent"]["units"] == {"layer0": 8}
    assert (shown["network"], shown["state"]) == ("gru", "ready")


async def ready(client: Client) -> bool:
    """Whether `pump` scores."""
    return (await client.get("pump"))["state"] == "ready"


async def test_a_fit_needs_points(hub: Hub, client: Client) -> None:
    """Fitting a detector that has seen nothing is refused at once, with what to do."""
    await client.create("pump", {"features": ["f1"]})

    with pytest.raises(ServiceError) as caught:
        await client.fit("pump")

    assert (caught.value.code, caught.value.field) == ("FAILED_PRECONDITION", "name")


async def test_versions_are_listed_with_sizes_and_measurements(hub: Hub, client: Client) -> None:
    """`show` tells versions, parents and children, sizes, measured times and what serves."""
    await fitted(client)
    await client.wait_operation(await client.prune("pump", speedup=2))

    shown = await client.show("pump")

    first, second = shown["versions"]
    assert (first["cause"], first["children"], second["cause"], second["serving"]) == ("fit", {}, "prune", ["hub"])
    child = second["children"]["hub"]
    assert child["units"] == {"lstm0": 2}
    assert child["measurements"][0]["p50_seconds"] == pytest.approx(1e-4)
    assert second["parent"]["hash"] == first["parent"]["hash"]


async def test_rolling_back_and_pinning(hub: Hub, client: Client) -> None:
    """Rolling back serves the earlier version at once; what is pinned is not pruned until it is unpinned."""
    await fitted(client)
    await client.wait_operation(await client.prune("pump", speedup=2))

    back = await client.roll_back("pump")
    pinned = await client.pin("pump")
    with pytest.raises(ServiceError) as caught:
        await client.prune("pump", speedup=2)
    await client.unpin("pump")
    again = await client.wait_operation(await client.prune("pump", speedup=2))

    assert back["served"][0]["version"] == 1
    assert pinned["served"][0]["pinned"] is True
    assert (caught.value.code, "pinned" in caught.value.problem) == ("FAILED_PRECONDITION", True)
    assert again["outcome"] == "adopted"
    assert hub.host.get("pump").served.version == again["version"] == 3


async def test_rolling_back_to_nothing_is_refused(hub: Hub, client: Client) -> None:
    """There is nothing before the first version, and no version that never was."""
    await fitted(client)

    with pytest.raises(ServiceError, match="first"):
        await client.roll_back("pump")
    with pytest.raises(ServiceError) as caught:
        await client.roll_back("pump", 7)

    assert caught.value.code == "NOT_FOUND"


async def test_a_damaged_version_is_not_rolled_back_to(hub: Hub, client: Client) -> None:
    """Rolling back to a version whose files are damaged is refused, and what serves goes on."""
    await fitted(client)
    first = hub.store.catalog.serving("pump", "hub").bundle_hash
    await client.wait_operation(await client.prune("pump", speedup=2))
    (hub.store.bundle_folder(first) / "step.onnx").write_bytes(b"")

    with pytest.raises(ServiceError) as caught:
        await client.roll_back("pump")

    assert (caught.value.code, caught.value.field) == ("DATA_LOSS", "step.onnx")
    assert (await client.get("pump"))["served"][0]["version"] == 2
    assert (await stream_points(client, 4))[-1] == Status.OK


async def test_a_fit_that_the_series_can_not_go_on_in_is_not_published(hub: Hub, client: Client) -> None:
    """A version that needs longer rings than the live series have is refused before it serves."""
    await fitted(client)
    hub.host.get("pump")._scorer.series.ring_points = 2  # as if the settings had said so

    with pytest.raises(ServiceError) as caught:
        await client.wait_operation(await client.fit_upload("pump", **TRAINING))

    assert (caught.value.code, "warm up" in caught.value.problem) == ("FAILED_PRECONDITION", True)
    assert len(await client.versions("pump")) == 1


async def test_deleting_forgets_everything(hub: Hub, client: Client) -> None:
    """A deleted detector is gone from lists, disk and metrics, and its name is free again."""
    await fitted(client)
    await stream_points(client, 5)

    await client.delete("pump")

    assert await client.list() == []
    assert list((hub.store.root / "bundles").iterdir()) == []
    assert "pump" not in str([metric.samples for metric in hub.metrics.registry.collect()])
    await client.create("pump")


async def test_detectors_are_listed_in_pages(hub: Hub) -> None:
    """Pages go through all detectors by name; a token that is none of ours is refused."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = detectors_pb2_grpc.DetectorServiceStub(channel)
        for name in ("c", "a", "b"):
            await stub.CreateDetector(pb.CreateDetectorRequest(detector_id=name))
        first = await stub.ListDetectors(pb.ListDetectorsRequest(page_size=2))
        second = await stub.ListDetectors(pb.ListDetectorsRequest(page_size=2, page_token=first.next_page_token))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListDetectors(pb.ListDetectorsRequest(page_token="none"))

    names = [[detector.name for detector in page.detectors] for page in (first, second)]
    assert names == [["detectors/a", "detectors/b"], ["detectors/c"]]
    assert second.next_page_token == ""
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"network": "transformer"}, "config.network"),
        ({"falseAlarmRate": 2}, "config.false_alarm_rate"),
        ({"features": ["a", "a"]}, "config"),
        ({"pruneEvery": "sometimes"}, "config.schedule.prune_every"),
        ({"deviceClasses": ["pi4"]}, "device_classes"),
    ],
)
async def test_a_bad_configuration_is_refused(hub: Hub, client: Client, config: dict, field: str) -> None:
    """What a detector can not be is refused with the name of the setting, and no detector appears."""
    with pytest.raises(ServiceError) as caught:
        await client.create("pump", config)

    assert caught.value.field == field
    assert await client.list() == []


async def test_names_are_ids_never_paths(hub: Hub, client: Client) -> None:
    """A name that could mean something to a file system is refused."""
    for name in ("../x", "a/b", "", "A", "x" * 64, "a\0b", "%2e"):
        with pytest.raises(ServiceError) as caught:
            await client.create(name)
        assert caught.value.code == "INVALID_ARGUMENT"


async def test_there_are_at_most_max_detectors(tmp_path: Path) -> None:
    """One detector more than allowed is refused."""
    hub = Hub(hub_settings(tmp_path, max_detectors=1))
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.create("a")
        with pytest.raises(ServiceError) as caught:
            await client.create("b")
    await hub.stop()

    assert caught.value.code == "RESOURCE_EXHAUSTED"


async def test_the_configuration_file_wins_over_the_api(tmp_path: Path) -> None:
    """A detector of the settings exists from the start, and the API can neither create nor delete it."""
    settings = hub_settings(tmp_path, detectors={"pump": {"network": "autoencoder", "features": ["f1"]}})
    hub = Hub(settings)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        detector = await client.get("pump")
        refused = []
        for call in (client.create("pump"), client.delete("pump")):
            with pytest.raises(ServiceError) as caught:
                await call
            refused.append((caught.value.code, "configuration file" in caught.value.problem))
    await hub.stop()

    assert (detector["network"], detector["state"]) == ("autoencoder", "learning")
    assert refused == [("FAILED_PRECONDITION", True)] * 2


# operations


async def test_a_crash_of_the_trainer_fails_the_operation_and_nothing_else(hub: Hub, client: Client) -> None:
    """A trainer that dies ends its operation with a clear error; scoring and the version stay as they were."""
    await fitted(client)

    with pytest.raises(ServiceError) as caught:
        await client.wait_operation(await client.prune("pump", speedup=2, seed=CRASH))

    assert (caught.value.code, "exit code -9" in caught.value.problem) == ("INTERNAL", True)
    assert hub.host.get("pump").served.version == 1
    assert (await client.cycles("pump"))[0]["outcome"] == "failed"
    assert (await stream_points(client, 4))[-1] == Status.OK


async def test_what_the_trainer_refuses_is_told_as_it_said_it(hub: Hub, client: Client) -> None:
    """An error of the trainer reaches the caller with its field and hint; the detector says what is wrong."""
    with pytest.raises(ServiceError) as caught:
        await client.wait_operation(await client.fit_upload("pump", **TRAINING, seed=REFUSE))

    assert (caught.value.code, caught.value.field, caught.value.hint) == ("INVALID_ARGUMENT", "data", "Send more.")
    detector = await client.get("pump")
    assert (detector["state"], "too few points" in detector["problem"]) == ("failed", True)


async def test_a_rejected_candidate_is_a_result(hub: Hub, client: Client) -> None:
    """A cycle that finds nothing good enough says what is reachable; what serves has not changed."""
    await fitted(client)

    result = await client.wait_operation(await client.prune("pump", p99_seconds=1e-9, seed=REJECT))

    assert (result["outcome"], result["reason"]) == ("rejected", "nothing is fast enough")
    assert result["best_reachable"] == {"p50_seconds": 1e-3, "units": {"lstm0": 1}, "hint": "Ask for more."}
    assert (result["child"], result["gate"], result["version"]) == (None, None, None)
    assert [version["version"] for version in await client.versions("pump")] == [1]


async def test_cancelling_ends_the_trainer(hub: Hub, client: Client) -> None:
    """A cancelled operation is over at once, and so is its process; the queue goes on."""
    name = await client.fit_upload("pump", **TRAINING, seed=HANG)
    await eventually(lambda: stage_of(hub, name, "train"))
    with pytest.raises(ServiceError) as busy:
        await client.fit("pump")
    with pytest.raises(ServiceError) as busy_delete:
        await client.delete("pump")

    await client.cancel_operation(name)
    with pytest.raises(ServiceError) as caught:
        await client.wait_operation(name)
    await fitted(client)

    assert {busy.value.code, busy_delete.value.code} == {"FAILED_PRECONDITION"}
    assert caught.value.code == "CANCELLED"


async def test_a_waiting_operation_can_be_cancelled(hub: Hub, client: Client) -> None:
    """One trainer runs at a time; what waits behind it can be taken out of the queue."""
    running = await client.fit_upload("pump", **TRAINING, seed=HANG)
    waiting = await client.fit_upload("fan", **TRAINING)
    await eventually(lambda: stage_of(hub, running, "train"))
    assert (await hub.operations.get(waiting)).stage == "queued"

    await client.cancel_operation(waiting)

    assert (await hub.operations.get(waiting)).state == "cancelled"
    await client.cancel_operation(running)


async def stage_of(hub: Hub, name: str, stage: str) -> bool:
    """Whether an operation has reached a stage."""
    return (await hub.operations.get(name)).stage == stage


async def test_waiting_honours_its_timeout(hub: Hub, client: Client) -> None:
    """WaitOperation returns after its timeout although the operation goes on; unknown ones are NOT_FOUND."""
    name = await client.fit_upload("pump", **TRAINING, seed=HANG)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        request = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(nanos=10_000_000))
        operation = await asyncio.wait_for(stub.WaitOperation(request), 5)
        listed = await stub.ListOperations(operations_pb2.ListOperationsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetOperation(operations_pb2.GetOperationRequest(name="operations/00"))

    assert not operation.done
    assert [it.name for it in listed.operations] == [name]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await client.cancel_operation(name)


@pytest.mark.parametrize(
    ("budget", "field"),
    [({}, "budget"), ({"speedup": 0.5}, "budget.speedup"), ({"p99_seconds": -1}, "budget.p99_seconds")],
)
async def test_a_budget_that_can_not_be_is_refused(hub: Hub, client: Client, budget: dict, field: str) -> None:
    """A cycle without a budget, or with an impossible one, never starts."""
    await fitted(client)

    with pytest.raises(ServiceError) as caught:
        await client.prune("pump", **budget)

    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", field)


async def test_a_cycle_on_uploaded_points(hub: Hub, client: Client) -> None:
    """A cycle can run on points that are sent; they do not join the history."""
    await fitted(client)

    result = await client.wait_operation(await client.prune("pump", speedup=2, **TRAINING))

    assert result["outcome"] == "adopted"
    assert (await client.get("pump"))["history_points"] == 100
    assert (await client.cycles("pump"))[0]["trigger"] == "manual"


async def test_uploads_that_make_no_sense_are_refused(hub: Hub, client: Client) -> None:
    """Points out of order, too few bytes and a missing header are refused; no detector appears."""
    with pytest.raises(ServiceError) as caught:
        await client.fit_upload("pump", **{**TRAINING, "stamps": np.zeros(100)})
    assert caught.value.field == "points.stamps"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = detectors_pb2_grpc.DetectorServiceStub(channel)
        header = pb.FitDetectorFromUploadRequest(
            header=pb.FitHeader(name="detectors/pump", features=["f1"], allow_missing=True)
        )
        points = pb.FitDetectorFromUploadRequest(points=pb.PointColumns(stamps=[1], packed_values=b"12"))
        for messages in ([points], [header, points], [header, header], [header], []):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.FitDetectorFromUpload(iter(messages))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await client.list() == []


# by itself


async def test_cycles_run_by_themselves_after_so_many_points(tmp_path: Path) -> None:
    """With `prune_every: N points` a cycle starts after N points, once; its row says that the schedule asked."""
    settings = hub_settings(
        tmp_path,
        device_classes={"hub": {"p99": "2ms"}},
        detectors={"pump": {"features": ["f1", "f2"], "schedule": {"prune_every": "50 points", "jitter": 0}}},
    )
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await fitted(client)
        await stream_points(client, 49)
        await hub.scheduler.look()
        early = await client.cycles("pump")
        await stream_points(client, 1, start=49)
        await eventually(lambda: client.cycles("pump"))
        await eventually(lambda: asyncio.sleep(0, not hub.maintenance.is_busy("pump")))
        cycles = await client.cycles("pump")
    await hub.stop()

    assert early == []
    assert [(cycle["trigger"], cycle["outcome"]) for cycle in cycles] == [("schedule", "adopted")]


async def test_cycles_run_by_the_clock_and_a_restart_does_not_repeat_them(tmp_path: Path) -> None:
    """With `prune_every: 1h` a cycle is due an hour after the fit or the last one, also after a restart."""
    now = [1e9]
    settings = hub_settings(
        tmp_path,
        device_classes={"hub": {"p99": "2ms"}},
        detectors={"pump": {"features": ["f1", "f2"], "schedule": {"prune_every": "1h", "jitter": 0}}},
    )
    counts = []
    hub = Hub(settings, trainer=QUICK_TRAINER, clock=lambda: now[0], monotonic=lambda: now[0])
    hub.store.catalog.clock = lambda: now[0]
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await fitted(client)
        for seconds in (3599, 1, 3599):
            now[0] += seconds
            await hub.scheduler.look()
            await eventually(lambda: asyncio.sleep(0, not hub.maintenance.is_busy("pump")))
            counts.append(len(await client.cycles("pump")))
    await hub.stop()
    hub = Hub(settings, trainer=QUICK_TRAINER, clock=lambda: now[0], monotonic=lambda: now[0])
    hub.store.catalog.clock = lambda: now[0]
    await hub.start()
    for seconds in (0, 1):
        now[0] += seconds
        await hub.scheduler.look()
        await eventually(lambda: asyncio.sleep(0, not hub.maintenance.is_busy("pump")))
        counts.append(len(hub.store.catalog.cycles("pump")))
    await hub.stop()

    assert counts == [0, 1, 1, 1, 2]


# life of the process


async def test_a_restart_serves_the_same(tmp_path: Path) -> None:
    """After a restart versions, pins, thresholds and history are as they were."""
    settings = hub_settings(tmp_path)
    described = []
    for _ in range(2):
        hub = Hub(settings, trainer=QUICK_TRAINER)
        await hub.start()
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            if not described:
                await client.create("pump", {"false_alarm_rate": 0.01, "features": ["f1", "f2"]})
                await fitted(client)
                await client.wait_operation(await client.prune("pump", speedup=2))
                await stream_points(client, 5)
                await client.pin("pump")
            described.append(await client.show("pump"))
            reply = await client.score("pump", series=["a"], values=np.ones((5, 2)), ephemeral=True)
            described[-1]["reply"] = (reply.scores[3:].tolist(), reply.version, reply.threshold)
        await hub.stop()

    assert described[0] == described[1]
    assert described[0]["threshold"] == 2.0
    assert described[0]["history_points"] == 105


async def test_a_damaged_bundle_stops_one_detector_only(tmp_path: Path) -> None:
    """A served bundle that was damaged on disk is refused with a clear error; the others serve on."""
    settings = hub_settings(tmp_path)
    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    for name in ("pump", "fan"):
        await publish(hub, ewma_bundle(name))
    bundle_hash = hub.store.catalog.serving("pump", "hub").bundle_hash
    await hub.stop()
    graph = settings.store / "bundles" / bundle_hash / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])

    hub = Hub(settings, trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        with pytest.raises(ServiceError) as caught:
            await stream_points(client, 1)
        state = (await client.get("pump"))["state"]
        statuses = await stream_points(client, 4, detector="fan")
    await hub.stop()

    assert (caught.value.code, "does not match its manifest" in caught.value.problem) == ("FAILED_PRECONDITION", True)
    assert str(tmp_path) not in str(caught.value)
    assert state == "failed"
    assert statuses[-1] == Status.OK


async def test_health_and_reflection(hub: Hub) -> None:
    """Health is SERVING for the whole and each service, NOT_SERVING while it drains; reflection lists the services."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hub.listener.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ["", *(f"prunewatch.v1.{it}Service" for it in ("Scoring", "Detector", "Pruning"))]
        before = [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = {it.name for it in (await call.read()).list_services_response.service}
        await call.done_writing()
        await hub.listener.announce_end()
        after = (await stub.Check(health_pb2.HealthCheckRequest())).status

    assert set(before) == {health_pb2.HealthCheckResponse.SERVING}
    assert services >= {*names[1:], "google.longrunning.Operations", "grpc.health.v1.Health"}
    assert after == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_address_is_an_error_that_names_the_setting(hub: Hub, tmp_path: Path) -> None:
    """Two hubs can not share an address."""
    taken = f"127.0.0.1:{hub.listener.port}"
    other = Hub(hub_settings(tmp_path / "other", listen=taken))

    with pytest.raises(Exception, match="listen: can not listen"):
        await other.start()
    await other.stop()


def serve(settings: Settings) -> subprocess.Popen:
    """A hub in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from server.app import run; from server.config import Settings; "
        "run(Settings(store=Path(sys.argv[1]), listen=sys.argv[2], admin='127.0.0.1:0', drain_seconds=1))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(settings.store), settings.listen])


@pytest.mark.slow
async def test_sigterm_drains_and_keeps_the_points(tmp_path: Path, unused_tcp_port: int) -> None:
    """SIGTERM ends the process with 0; points answered before are in the history, and the store is free."""
    settings = hub_settings(tmp_path, listen=f"127.0.0.1:{unused_tcp_port}")
    process = serve(settings)
    try:
        async with Client(settings.listen) as client:

            async def up() -> bool:
                try:
                    await client.create("pump", {"features": ["f1", "f2"]})
                except ServiceError:
                    return False
                return True

            await eventually(up, 30)
            await stream_points(client, 7)
            process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait, 20)
    finally:
        process.kill()

    assert code == 0
    hub = Hub(hub_settings(tmp_path))
    await hub.start()
    assert hub.host.get("pump").points_kept == 7
    await hub.stop()


async def test_stopping_ends_a_running_trainer(tmp_path: Path) -> None:
    """A hub that stops takes its trainer with it; after a restart the operation says that it was interrupted."""
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await hub.start()
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        name = await client.fit_upload("pump", **TRAINING, seed=HANG)
        await eventually(lambda: stage_of(hub, name, "train"))
        assert len(running_trainers()) == 1
    await hub.stop()
    left = running_trainers()
    hub = Hub(hub_settings(tmp_path), trainer=QUICK_TRAINER)
    await hub.start()
    operation = await hub.operations.get(name)
    state = hub.store.catalog.get_detector("pump").state
    await hub.stop()

    assert left == []
    assert (operation.state, operation.error["problem"]) == ("failed", "interrupted by a restart.")
    assert state == "learning"


def running_trainers() -> list[str]:
    """Process ids of trainers that this process has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in children if "quick_trainer" in Path(f"/proc/{pid}/cmdline").read_text()]
