"""What Prometheus sees of a hub: sizes, speeds, points, anomalies, cycles, versions; never an unbounded label."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import NOW, Hub, publish
from graphs import ewma_bundle
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from prunewatch.client import Client
from server.metrics import Metrics
from server.metrics.device import DeviceMetrics
from server.metrics.family import Family
from server.metrics.registry import BUCKETS, families

LABELS = {
    *("detector", "device_class", "status", "method", "way", "group", "check", "label", "limit", "reason", "stage"),
    *("quantile", "kind", "trigger", "outcome", "state", "what", "part"),
    *("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
}
INFO_LABELS = {"detector", "device_class", "version", "bundle", "network", "role", "python", "onnxruntime"}


async def get(hub: Hub, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of an admin page."""

    def fetch() -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{hub.listener.admin_port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def samples(hub: Hub) -> dict[tuple[str, frozenset], float]:
    """Everything on /metrics."""
    status, text = await get(hub, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset]:
    """Where a sample lies."""
    return name, frozenset(labels.items())


def called(kind: str, method: str, code: str, service: str = "prunewatch.v1.ScoringService") -> tuple[str, frozenset]:
    """Where calls that ended are counted."""
    labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
    return key("grpc_server_handled_total", **labels)


async def test_points_anomalies_and_steps_are_counted(hub: Hub, client: Client) -> None:
    """Points count by what became of them, anomalies and steps by detector; EPHEMERAL points do not count."""
    await publish(hub, ewma_bundle("pump"))
    values = np.zeros((6, 2), np.float32)
    values[4], values[5] = 9, np.nan
    await client.score("pump", series=["a"], stamps=NOW + np.arange(6), values=values)
    await client.score("pump", series=["a"], values=values, ephemeral=True)

    found = await samples(hub)

    points = {
        s: found[key("prunewatch_points_total", detector="pump", status=s)] for s in ("ok", "warming_up", "invalid")
    }
    assert points == {"ok": 2, "warming_up": 3, "invalid": 1}
    assert found[key("prunewatch_anomalies_total", detector="pump")] == 1
    assert found[key("prunewatch_step_seconds_count", detector="pump")] == 12
    assert found[key("prunewatch_series", detector="pump")] == 1
    assert found[key("prunewatch_state_bytes", detector="pump")] > 0
    assert found[called("unary", "Score", "OK")] == 2


async def test_sizes_and_versions_are_shown(hub: Hub) -> None:
    """What serves is shown with parameters, units, bytes by kind, measured times and version."""
    bundle = ewma_bundle("pump")
    await publish(hub, bundle)
    where = {"detector": "pump", "device_class": "hub"}

    found = await samples(hub)

    assert found[key("prunewatch_parameters", **where)] == 3
    assert found[key("prunewatch_units", **where, group="lstm0")] == 2
    assert found[key("prunewatch_macs", **where)] == 2
    assert found[key("prunewatch_bundle_bytes", **where, kind="step")] == bundle.size
    assert found[key("prunewatch_bundle_bytes", **where, kind="manifest")] > 100
    assert found[key("prunewatch_measured_step_seconds", **where, quantile="0.99")] == 2e-4
    info = key("prunewatch_detector_info", **where, version="1", bundle=bundle.hash[:12], network="lstm")
    assert found[info] == 1


async def test_a_swap_replaces_the_info(hub: Hub) -> None:
    """Only the version that serves has an info line; the swap is counted."""
    for version in (1, 2):
        await publish(hub, ewma_bundle("pump", version))

    found = await samples(hub)

    versions = [dict(labels)["version"] for name, labels in found if name == "prunewatch_detector_info"]
    assert versions == ["2"]
    assert found[key("prunewatch_swaps_total", detector="pump")] == 1  # from 1 to 2; the first takes over from none


async def test_cycles_are_counted_by_trigger_and_outcome(hub: Hub, client: Client) -> None:
    """A cycle counts with its device class, who asked and how it ended."""
    upload = {"features": ["f1", "f2"], "stamps": np.arange(50), "values": np.zeros((50, 2))}
    await client.wait_operation(await client.fit_upload("pump", **upload))
    await client.wait_operation(await client.prune("pump", speedup=2))

    found = await samples(hub)

    labels = {"detector": "pump", "device_class": "hub", "trigger": "manual", "outcome": "adopted"}
    assert found[key("prunewatch_cycles_total", **labels)] == 1


async def test_the_process_and_the_build_are_shown(hub: Hub) -> None:
    """Memory and versions of the process are there without any detector."""
    found = await samples(hub)

    assert found[key("process_resident_memory_bytes")] > 1e7
    assert [value for (name, _), value in found.items() if name == "prunewatch_build_info"] == [1]


def test_labels_are_bounded_and_buckets_reach_a_step() -> None:
    """No family has a label for a series, a device or a free text; histograms begin at 25 us and end at 1 s."""
    for family in (*families(Metrics), *families(DeviceMetrics)):
        assert set(family.labels) <= (INFO_LABELS if family.name.endswith("_info") else LABELS), family.name
    assert (BUCKETS[0], BUCKETS[-1]) == (25e-6, 10.0)
    assert list(BUCKETS) == sorted(BUCKETS)


@pytest.mark.parametrize("family", families(Metrics), ids=lambda it: it.name)
def test_names_follow_the_rules_of_prometheus(family: Family) -> None:
    """Base units stand at the end of names, `total` is added by the format, `_info` and times of day are gauges."""
    name = family.name

    assert name.startswith(("prunewatch_", "grpc_server_"))
    assert family.help.endswith(".")
    assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_created"))
    assert not re.search(r"_(ms|milliseconds|us|minutes|hours|kib|mib|percent)(_|$)", name)
    if "timestamp" in name:
        assert (family.kind, name.endswith("_timestamp_seconds")) == ("gauge", True)
    if name.endswith(("_info", "_ratio", "_limit_bytes")):
        assert family.kind == "gauge"
    if family.kind == "histogram":
        assert name.endswith("_seconds") or family.buckets == "score"


def test_buckets_have_a_bound_where_a_budget_ends() -> None:
    """What is above the budget of the hub is counted, not guessed between two bounds."""
    metrics = Metrics(CollectorRegistry(), budget=[3e-4, 1.02e-3])
    steps = metrics.for_detector("pump").step_seconds
    for seconds in (2e-4, 3e-4, 3.1e-4, 1.5e-3):
        steps.observe(seconds)

    bounds = {
        sample.labels["le"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "prunewatch_step_seconds_bucket"
    }
    assert (bounds["0.0003"], bounds["0.00102"], bounds["+Inf"]) == (2, 3, 4)
    assert "0.001" not in bounds  # too near to a budget to tell anything more
    assert list(bounds) == sorted(bounds, key=float)


def test_two_hubs_of_one_process_do_not_share_a_registry() -> None:
    """Everything lives in the registry that is passed in."""
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.for_detector("pump").anomalies.inc()

    assert second.registry.get_sample_value("prunewatch_anomalies_total", {"detector": "pump"}) is None


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/healthz", "GET", 200),
        ("/readyz", "GET", 200),
        ("/", "GET", 200),
        ("/", "POST", 405),
        ("/elsewhere", "GET", 404),
        ("/metrics", "POST", 405),
        ("/readyz", "HEAD", 200),
    ],
)
async def test_admin_pages(hub: Hub, path: str, method: str, status: int) -> None:
    """The admin address answers GET where something is, and says where."""
    assert (await get(hub, path, method))[0] == status


async def test_not_ready_while_draining(hub: Hub) -> None:
    """A hub that drains is alive but not ready."""
    await hub.listener.announce_end()

    assert [(await get(hub, path))[0] for path in ("/healthz", "/readyz")] == [200, 503]


async def test_the_admin_port_survives_nonsense(hub: Hub) -> None:
    """Bytes that are no HTTP are dropped, and the next request is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.listener.admin_port)
    writer.write(b"\x00\x01" * 8000 + b"\r\n\r\n")
    await writer.drain()
    assert await reader.read() == b""
    writer.close()

    assert (await get(hub, "/healthz"))[0] == 200
