"""Gauges that are read at a scrape: budgets, gates, the schedule, the history, what people say; and the edge."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, QUICK_TRAINER, Hub, bundle_facts, eventually, hub_settings, publish
from graphs import ewma_bundle
from prometheus_client import CollectorRegistry
from test_metrics import called, key, samples

from detectors.bundle import make_bundle, write_bundle
from prunewatch.client import Client, ServiceError
from server.catalog_readings import left_of, newest
from server.config import Budget, Settings
from server.edge import Edge
from server.metrics import Metrics
from server.publish import publish_cycle
from server.records import Measurement
from server.rejections import CHECKS, REASONS
from server.work_metrics import STAGES

REJECT, REFUSE, FLOOR = 9004, 9002, "floor"
UPLOAD = {"features": ["f1", "f2"], "stamps": np.arange(50), "values": np.zeros((50, 2))}


async def budgeted(folder: Path, **budget: Any) -> Hub:
    """A hub that runs, whose own class has a budget; batches of 256."""
    hub = Hub(hub_settings(folder, device_classes={"hub": budget, "pi4": {}}), trainer=QUICK_TRAINER)
    await hub.start()
    return hub


async def test_headroom_is_what_the_served_bundle_leaves_of_each_limit(tmp_path: Path) -> None:
    """As measured: p50 100 us and p99 200 us, and the bytes of the graph; below 0 where a limit is missed."""
    hub = await budgeted(tmp_path, p50="400us", p99="160us", size="1000B", speedup=2)
    try:
        bundle = ewma_bundle("pump")
        await publish(hub, bundle, device_classes=["hub", "pi4"])
        found = await samples(hub)
    finally:
        await hub.stop()

    where = {"detector": "pump", "device_class": "hub"}
    left = {it: found[key("prunewatch_headroom_ratio", **where, limit=it)] for it in ("p50", "p99", "size", "speedup")}
    assert left == pytest.approx({"p50": 0.75, "p99": -0.25, "size": 1 - bundle.size / 1000, "speedup": -1.0})
    assert found[key("prunewatch_budget_seconds", **where, quantile="0.99")] == 160e-6
    assert found[key("prunewatch_budget_bytes", **where)] == 1000
    assert not [labels for name, labels in found if "budget" in name and ("device_class", "pi4") in labels]
    bounds = {dict(labels)["le"] for name, labels in found if name == "prunewatch_step_seconds_bucket"}
    assert {"0.00016", "0.0004"} <= bounds


async def test_a_child_is_shown_beside_its_parent(hub: Hub) -> None:
    """Parameters, bytes and times of both, what the gate measured, the version with its age, the error."""
    dense, slim = ewma_bundle("pump"), ewma_bundle("pump", 2, device_class="hub")
    checks = {
        "alarms": {"value": 0.9, "limit": 0.6, "passed": True, "detail": ""},
        "latency p99": {"value": 1e-4, "limit": 2e-3, "passed": True, "detail": ""},
    }
    manifest = slim.manifest.model_copy(update={"gate": {"passed": True, "checks": checks}})
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name != "files"}
    child = make_bundle(slim.files, **fields)
    await publish(hub, dense)
    write_bundle(child, hub.store.bundle_folder(child.hash))
    made = {**bundle_facts(child), "p50_seconds": 2e-5, "error": 0.25}
    publish_cycle(hub.store, "pump", "hub", {"outcome": "adopted", "parent": bundle_facts(dense), "child": made})

    found = await samples(hub)

    where = {"detector": "pump", "device_class": "hub"}
    assert found[key("prunewatch_version", **where)] == 2
    assert time.time() - found[key("prunewatch_version_created_timestamp_seconds", **where)] < 60
    assert found[key("prunewatch_versions", detector="pump")] == 2
    assert found[key("prunewatch_parent_parameters", **where)] == dense.manifest.network.parameters
    assert found[key("prunewatch_parent_step_bytes", **where)] == dense.size
    assert found[key("prunewatch_parent_step_seconds", **where, quantile="0.5")] == 1e-4
    assert found[key("prunewatch_measured_step_seconds", **where, quantile="0.5")] == 2e-5
    assert found[key("prunewatch_held_out_error", **where)] == 0.25
    assert found[key("prunewatch_gate_value", **where, check="alarms")] == 0.9
    assert found[key("prunewatch_gate_limit", **where, check="p99")] == 2e-3


async def test_what_cycles_come_to_is_counted_by_reason(hub: Hub, client: Client) -> None:
    """Cycles by outcome, reasons of rejections, how operations ended and where time went, how many came to nothing."""
    await publish(hub, ewma_bundle("pump"))
    await client.wait_operation(await client.prune("pump", speedup=2, seed=REJECT, **UPLOAD))
    with pytest.raises(ServiceError):
        await client.wait_operation(await client.prune("pump", speedup=2, seed=REFUSE, **UPLOAD))
    before = await samples(hub)
    await client.wait_operation(await client.prune("pump", speedup=2, **UPLOAD))
    after = await samples(hub)

    where = {"detector": "pump", "device_class": "hub"}
    assert after[key("prunewatch_rejections_total", **where, reason=FLOOR)] == 1
    for outcome in ("rejected", "failed"):
        assert after[key("prunewatch_cycles_total", **where, trigger="manual", outcome=outcome)] == 1
        assert before[key("prunewatch_cycles_since_adoption", **where, outcome=outcome)] == 1
        assert after[key("prunewatch_cycles_since_adoption", **where, outcome=outcome)] == 0
        assert time.time() - after[key("prunewatch_cycle_ended_timestamp_seconds", **where, outcome=outcome)] < 60
    assert before[key("prunewatch_cycles_total", **where, trigger="manual", outcome="adopted")] == 0
    ended = {
        it: after[key("prunewatch_operations_ended_total", kind="prune", state=it)] for it in ("succeeded", "failed")
    }
    assert ended == {"succeeded": 2, "failed": 1}
    assert after[key("prunewatch_operation_seconds_count", kind="prune")] == 3
    spent = {
        dict(labels)["stage"]: it for (name, labels), it in after.items() if name == "prunewatch_stage_seconds_total"
    }
    assert {"prepare", "other", "publish"} <= set(spent) <= set(STAGES)
    assert sum(spent.values()) == pytest.approx(after[key("prunewatch_operation_seconds_sum", kind="prune")], rel=0.05)


def test_every_check_of_the_gate_has_a_reason() -> None:
    """The words of checks, in the sources of the gates, are all reasons that a rejection can be counted under."""
    root = Path(__file__).parent.parent / "pruning"
    source = (root / "gate.py").read_text() + (root / "parent_gate.py").read_text()
    names = re.findall(r'Check\(\s*"([a-z ]+)"', source)

    assert len(names) >= 8
    assert {name.replace(" ", "_") for name in names} <= set(CHECKS) <= set(REASONS)


async def test_how_much_of_a_period_has_passed(hub: Hub, client: Client) -> None:
    """In seconds or in points, as a share; the period itself; what a trigger and a roll-back wait for."""
    config = {"schedule": {"prune_every": "400 points", "refit_every": "30d"}, "triggers": {"cool_down": "2h"}}
    await publish(hub, ewma_bundle("pump"), **config)
    await hub.scheduler.look()
    await client.score("pump", series=["a"], stamps=NOW + np.arange(100), values=np.zeros((100, 2)))
    await hub.scheduler.look()

    found = await samples(hub)

    assert found[key("prunewatch_prune_progress_ratio", detector="pump", device_class="hub")] == 0.25
    assert 0 <= found[key("prunewatch_refit_progress_ratio", detector="pump")] < 0.01
    assert found[key("prunewatch_schedule_interval_points", detector="pump", what="prune")] == 400
    assert found[key("prunewatch_schedule_interval_seconds", detector="pump", what="refit")] == 30 * 86400
    assert found[key("prunewatch_cool_down_seconds", detector="pump")] == 7200
    assert found[key("prunewatch_back_off_seconds", detector="pump")] == 3600
    assert found[key("prunewatch_false_alarm_rate", detector="pump")] == 0.001


async def test_the_history_shows_when_it_grew_and_when_it_can_not(hub: Hub, client: Client) -> None:
    """Points, bytes and the time of the last write, the scores in it; a write that fails is counted."""
    await publish(hub, ewma_bundle("pump"))
    await client.score("pump", series=["a"], stamps=NOW + np.arange(100), values=np.zeros((100, 2)))
    await hub.host.flush()
    written = await samples(hub)
    folder = hub.store.root / "history" / "pump"
    shutil.rmtree(folder)
    folder.write_text("a file is in the way")
    await client.score("pump", series=["a"], stamps=NOW + 100 + np.arange(5), values=np.zeros((5, 2)))
    await hub.host.flush()
    failed = await samples(hub)
    folder.unlink()

    assert written[key("prunewatch_history_points", detector="pump")] == 100
    assert written[key("prunewatch_history_bytes", detector="pump")] > 500
    assert time.time() - written[key("prunewatch_history_written_timestamp_seconds", detector="pump")] < 60
    assert written[key("prunewatch_score_count", detector="pump")] == 97  # three warm up
    assert written[key("prunewatch_store_failures_total", part="history")] == 0
    assert failed[key("prunewatch_store_failures_total", part="history")] >= 1
    assert failed[key("prunewatch_store_free_bytes")] > 0


async def test_anomalies_are_compared_with_what_people_say(hub: Hub, client: Client) -> None:
    """Of three anomalies one was none: two of three is the precision. The newest label of a point counts."""
    await publish(hub, ewma_bundle("pump"))
    values = np.zeros((60, 2), np.float32)
    values[[10, 30, 50]] = 50.0
    await client.score("pump", series=["a"], stamps=NOW + np.arange(60) * 10**9, values=values)
    await hub.host.flush()
    found = await samples(hub)
    assert key("prunewatch_judged_anomalies", detector="pump", label="anomaly") not in found

    await client.add_label("pump", "anomaly", NOW, NOW + 60 * 10**9)
    await client.add_label("pump", "normal", NOW + 30 * 10**9, NOW + 31 * 10**9, series="a")
    await client.add_label("pump", "normal", NOW, NOW + 60 * 10**9, series="another")
    found = await samples(hub)

    judged = {it: found[key("prunewatch_judged_anomalies", detector="pump", label=it)] for it in ("anomaly", "normal")}
    kept = {it: found[key("prunewatch_labels", detector="pump", label=it)] for it in ("anomaly", "normal")}
    flagged = found[key("prunewatch_anomalies_total", detector="pump")]
    assert kept == {"anomaly": 1, "normal": 2}
    assert judged["normal"] >= 1
    assert judged["anomaly"] + judged["normal"] == flagged


@pytest.mark.slow
async def test_many_series_and_devices_add_no_time_series(hub: Hub, client: Client) -> None:
    """10,000 series and what 1,000 devices have measured change values, and not one name or label."""
    bundle = ewma_bundle("pump")
    await publish(hub, bundle)
    await client.score("pump", series=["a"], stamps=[NOW], values=np.zeros((1, 2)))
    await hub.host.flush()
    await samples(hub)
    before = await samples(hub)
    for start in range(0, 10_000, 2_000):
        names = [f"machine-{start + i}" for i in range(2_000)]
        await client.score("pump", series=names, stamps=[NOW] * 2_000, values=np.zeros((2_000, 2)))
    catalog = hub.store.catalog
    with catalog._writing() as connection:
        for i in range(1_000):
            catalog._record(connection, Measurement(bundle.hash, f"device-{i}", 256, 1e-4, 2e-4, float(i)))
    await hub.host.flush()
    after = await samples(hub)

    assert after[key("prunewatch_series", detector="pump")] == 10_001
    assert set(after) == set(before)


async def test_streams_and_calls_are_counted_as_grpc_servers_do(hub: Hub, client: Client) -> None:
    """Started when they come, handled when they end; a stream is one call, and open until then."""
    await publish(hub, ewma_bundle("pump"))
    stream = {"grpc_type": "bidi_stream", "grpc_service": "prunewatch.v1.ScoringService", "grpc_method": "ScoreStream"}

    async with client.stream("pump") as open_stream:
        for row in range(3):
            answer = await open_stream.send(series="a", stamps=[NOW + row], values=[[0.0, 0.0]])
            await answer
        during = await samples(hub)
    with pytest.raises(ServiceError):
        await client.get("none")

    missed = called("unary", "GetDetector", "NOT_FOUND", "prunewatch.v1.DetectorService")

    async def over() -> dict[Any, float] | None:
        found = await samples(hub)
        return found if found[key("prunewatch_streams")] == 0 and missed in found else None

    after = await eventually(over)
    assert during[key("grpc_server_started_total", **stream)] == 1
    assert during[key("prunewatch_streams")] == 1
    assert during[key("prunewatch_streams_limit")] == hub.settings.max_streams
    assert during[key("prunewatch_message_seconds_count", method="ScoringService/ScoreStream")] == 3
    assert after[key("grpc_server_handling_seconds_count", **stream)] == 1
    assert after[missed] == 1


async def test_points_that_wait_for_each_other_are_timed(hub: Hub, client: Client) -> None:
    """Where several callers share a step, each of their requests is in the histogram of the queue."""
    await publish(hub, ewma_bundle("pump"))

    async def caller(own: int) -> None:
        async with client.stream("pump") as stream:
            for row in range(20):
                await (await stream.send(series=f"s{own}", stamps=[NOW + row], values=np.zeros((1, 2))))

    await asyncio.gather(*map(caller, range(8)))
    found = await samples(hub)

    assert 20 <= found[key("prunewatch_queue_seconds_count", detector="pump")] <= 160
    assert found[key("prunewatch_queue_seconds_sum", detector="pump")] > 0


async def test_a_device_shows_what_it_does_and_nothing_of_a_store() -> None:
    """Role, bundle, budget of its class, alarms asked for; no families of versions, cycles or histories."""
    bundle = ewma_bundle("pump", device_class="pi4")
    settings = Settings(
        listen="127.0.0.1:0", admin="127.0.0.1:0", drain_seconds=0.1, device_classes={"pi4": {"p99": "3ms"}}
    )
    edge = Edge(bundle, settings)
    await edge.start()
    try:
        async with Client(f"127.0.0.1:{edge.listener.port}") as client:
            await client.score("pump", series=["a"], stamps=NOW + np.arange(10), values=np.zeros((10, 2)))
        found = await samples(edge)
    finally:
        await edge.stop()

    where = {"detector": "pump", "device_class": "pi4"}
    names = {name for name, _ in found}
    assert [dict(labels)["role"] for name, labels in found if name == "prunewatch_build_info"] == ["edge"]
    assert found[key("prunewatch_version", **where)] == 1
    assert found[key("prunewatch_units", **where, group="lstm0")] == 2
    assert found[key("prunewatch_bundle_bytes", **where, kind="step")] == bundle.size
    assert found[key("prunewatch_budget_seconds", **where, quantile="0.99")] == 0.003
    assert found[key("prunewatch_false_alarm_rate", detector="pump")] == 0.001
    assert found[key("prunewatch_points_total", detector="pump", status="ok")] == 7
    assert not {it for it in names if re.search(r"_(versions|cycles|history_written|operations|store_free)", it)}


def test_a_reader_that_fails_leaves_the_others_alone() -> None:
    """What can not be read stays as it was and is counted; everything else is shown."""
    metrics = Metrics(CollectorRegistry())

    def bad() -> None:
        raise OSError

    metrics.read_with(bad)
    metrics.read_with(lambda: metrics.version.replace({("pump", "hub"): 7}))
    metrics.registry.get_sample_value("prunewatch_version", {"detector": "pump", "device_class": "hub"})

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("prunewatch_version", detector="pump", device_class="hub") == 7
    assert (value("prunewatch_store_failures_total", part="metrics") or 0) >= 1


def test_a_budget_that_is_not_set_has_no_headroom() -> None:
    """Nothing is shown of limits that nobody asked for, or that were not measured."""
    measured = Measurement("", "hub", 256, 1e-4, 2e-4, 1.0)
    assert left_of(Budget(), measured, measured, 100) == {}
    assert left_of(Budget(p99=1e-3), None, None, 100) == {}
    assert newest([measured], "pi4", 256) is measured  # a fit is measured on the hub alone
    assert newest([measured], "pi4", 64) is None
