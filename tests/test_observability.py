"""Rules, alerts and dashboards: right by themselves, and with data from a real hub and real devices."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import NOW, QUICK_TRAINER, bundle_facts, eventually, hub_settings, publish
from graphs import ewma_bundle
from prometheus import RULES, Prometheus, running, tool

from detectors.bundle import Bundle, make_bundle, write_bundle
from prunewatch.client import Client
from server.app import Hub
from server.metrics import Metrics
from server.metrics.device import DeviceMetrics
from server.metrics.registry import families
from server.publish import publish_cycle

ROOT = Path(__file__).parent.parent
BOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
SERIES, MESSAGES = 256, 220  # more steps than `prunewatch_live_step_seconds` is of
REJECT = 9004  # `quick_trainer`
BUDGET = {"p50": "1ms", "p99": "2ms", "size": "64KiB"}
RARE = {
    *("prunewatch_rolled_back_timestamp_seconds", "prunewatch_drifting_since_timestamp_seconds"),
    *("prunewatch_child_waiting_since_timestamp_seconds", "prunewatch_child_waiting_expires_timestamp_seconds"),
    *("prunewatch_releases_rejected_total", "prunewatch_certificate_expiry_timestamp_seconds"),
}
"""Of what hopefully never happens, or is there with TLS alone, there are no time series."""


def rules() -> Iterator[dict[str, Any]]:
    """Every recording and alert rule."""
    for path in sorted(RULES.glob("*.rules.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """Every query of every panel, with where it stands."""
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"]


ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_the_rules_are_valid() -> None:
    """Promtool takes the configuration and the files of rules that it names."""
    done = promtool("check", "config", str(RULES / "prometheus.yml"))

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rules found") == len(list(RULES.glob("*.rules.yml")))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """The unit tests of the rules pass; each alert has its own, with an instance that fires and one that must not."""
    done = promtool("test", "rules", str(RULES / "alerts.test.yml"))

    tests = {it["name"]: it for it in yaml.safe_load((RULES / "alerts.test.yml").read_text())["tests"]}
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(tests) == {rule["alert"] for rule in ALERTS}
    for name, it in tests.items():
        expected = [asked["exp_samples"] for asked in it["promql_expr_test"]]
        assert [len(samples) for samples in expected] == [0, 1], name
        assert 'instance="bad"' in expected[1][0]["labels"], name
        assert any('instance="good"' in series["series"] for series in it["input_series"]), name


def test_what_alerts_say_can_be_rendered(tmp_path: Path) -> None:
    """Summaries and descriptions of alerts that fire have no template that fails, and no value that is missing."""
    whole = yaml.safe_load((RULES / "alerts.test.yml").read_text())
    whole["rule_files"] = [str(RULES / name) for name in whole["rule_files"]]
    for it in whole["tests"]:
        fires = it.pop("promql_expr_test")[1]["eval_time"]
        it["alert_rule_test"] = [{"alertname": it["name"], "eval_time": fires, "exp_alerts": []}]
    (tmp_path / "test.yml").write_text(yaml.safe_dump(whole))

    said = promtool("test", "rules", str(tmp_path / "test.yml")).stderr

    for rule in ALERTS:  # none is expected, so promtool shows each that came
        assert f'alertname="{rule["alert"]}"' in said
    assert "error expanding" not in said
    assert "<no value>" not in said


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """A summary, a description, how bad it is, and a paragraph of docs/metrics.md that its runbook_url names."""
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^### (.*)$", (ROOT / page).read_text(), re.MULTILINE)

    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert len(rule["annotations"]["summary"]) > 10
    assert len(rule["annotations"]["description"]) > 60
    assert (anchor, rule["alert"]) in [(heading.lower(), heading) for heading in headings]


def test_names_in_expressions_are_families_or_recorded() -> None:
    """No rule and no panel asks for a metric that nothing exposes; all of them parse."""
    parser = pytest.importorskip("promql_parser")
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    known = {it.name + ending for it in (*families(Metrics), *families(DeviceMetrics)) for ending in endings[it.kind]}
    others = r"up|ALERTS|process_\w+"

    asked = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    asked += list(panel_queries())
    for where, expr in asked:
        plain = filled(expr)
        parser.parse(plain)
        for name in metric_names(plain):
            assert name in known | recorded or re.fullmatch(others, name), (where, name)


def metric_names(expr: str) -> set[str]:
    """Metrics that an expression selects."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', "", expr)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b(?:prunewatch_\w+|grpc_\w+|process_\w+|\w+:\w+:\w+|up|ALERTS)\b", bare))


def filled(expr: str) -> str:
    """An expression with the variables of dashboards filled in."""
    for variable, value in {
        '=~"$device_class"': '=~"hub|pi4"',
        "$device_class": "pi4",
        "$detector": "pump",
        "$instance": ".*",
        "$__rate_interval": "30s",
    }.items():
        expr = expr.replace(variable, value)
    return expr


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_dashboards_can_be_used_anywhere(path: Path) -> None:
    """The datasource is a variable, every panel explains itself and has a unit, nothing has an id of some Grafana."""
    board = json.loads(path.read_text())
    variables = {it["name"]: it for it in board["templating"]["list"]}
    panels = [it for it in board["panels"] if it["type"] != "row"]

    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert "id" not in board
    assert len(panels) >= 10
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "table", panel["title"]
    for name, it in variables.items():
        assert name == "datasource" or it["query"].startswith("label_values(")
    used = set(re.findall(r"\$(\w+)", json.dumps(board["panels"]))) - {"__rate_interval", "datasource"}
    assert used == set(variables) - {"datasource"}
    assert not re.search(r'"uid": "(?!prunewatch-|\$\{datasource\})', json.dumps(board))


def test_the_dashboards_are_what_their_short_form_makes() -> None:
    """deploy/grafana/dashboards is what deploy/grafana/generate.py writes."""
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        pytest.skip("grafana-foundation-sdk is not installed")

    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "grafana" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_what_prometheus_and_grafana_read() -> None:
    """deploy/compose.yaml has both, with images of one version, and the folders that the configurations name."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/prunewatch.yml").read_text())[
        "providers"
    ][0]
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())

    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in services["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])


# with a real Prometheus


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def gated(bundle: Bundle) -> Bundle:
    """The same bundle as a gate has let it in."""
    check = {"value": 0.9, "limit": 0.6, "passed": True, "detail": ""}
    fields = {name: getattr(bundle.manifest, name) for name in type(bundle.manifest).model_fields}
    fields |= {"gate": {"passed": True, "checks": {"alarms": check, "latency p99": check}}}
    del fields["files"]
    return make_bundle(bundle.files, **fields)


def token_for(hub: Hub, folder: Path) -> Path:
    """A file in a new folder with a token for a device."""
    folder.mkdir()
    path = folder / "token"
    path.write_text(hub.fleet.enrolment.make_token("pi4").text)
    return path


@asynccontextmanager
async def device(folder: Path, hub: Hub, listen: int, admin: int) -> AsyncIterator[None]:
    """`prunewatch edge --hub`: an agent of class `pi4` with a store in `folder`, enrolled with a token."""
    token = await asyncio.to_thread(token_for, hub, folder)
    command = [sys.executable, "-c", "from server.cli import main; main()", "edge", "--store", str(folder / "store")]
    command += ["--hub", f"127.0.0.1:{hub.listener.port}", "--device-class", "pi4", "--device", folder.name]
    command += ["--token-file", str(token)]
    command += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


class Load:
    """Points of 256 series, message by message, some of them late, one an anomaly."""

    def __init__(self, port: int) -> None:
        self._client = Client(f"127.0.0.1:{port}", timeout_seconds=20)
        self._row = 0
        self._series = [f"s{i}" for i in range(SERIES)]
        self._rng = np.random.default_rng(0)

    async def send(self, messages: int, *, anomaly: bool = False) -> None:
        """Over two streams at once, and over calls."""

        async def streamed(own: str) -> None:
            series = [f"{own}{i}" for i in range(SERIES // 2)]
            async with self._client.stream("pump") as stream:
                answers = [
                    await stream.send(series=series, stamps=[NOW + row] * len(series), values=self._values(len(series)))
                    for row in range(first, first + messages)
                ]
                await asyncio.gather(*answers)

        first, self._row = self._row, self._row + messages
        await asyncio.gather(streamed("a"), streamed("b"))
        for row in range(first, first + messages):
            values = self._values(SERIES)
            values[0] *= 100 if anomaly else 1
            await self._client.score("pump", series=self._series, stamps=[NOW + row] * SERIES, values=values)
        await self._client.score("pump", series=self._series[:1], stamps=[NOW], values=np.zeros((1, 2)))

    def _values(self, points: int) -> np.ndarray:
        return self._rng.normal(0, 1, (points, 2)).astype("f")

    async def close(self) -> None:
        """Ends."""
        await self._client.close()


async def lived(hub: Hub) -> None:
    """A detector with versions, cycles of two outcomes, labels, a schedule, and an eye on drift."""
    config = {"device_classes": ["hub", "pi4"], "triggers": {"drift": True, "drift_window": 40}}
    config["schedule"] = {"prune_every": "7d", "refit_every": "9000000 points"}
    dense, child = ewma_bundle("pump"), gated(ewma_bundle("pump", 2, device_class="pi4"))
    await publish(hub, dense, **config)
    write_bundle(child, hub.store.bundle_folder(child.hash))
    made = {"outcome": "adopted", "parent": bundle_facts(dense), "child": bundle_facts(child)}
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        upload = {"features": ["f1", "f2"], "stamps": np.arange(50), "values": np.zeros((50, 2))}
        await client.wait_operation(await client.prune("pump", **upload, seed=REJECT))
        await asyncio.to_thread(publish_cycle, hub.store, "pump", "pi4", made, batch=SERIES)
        await client.freeze("pump")  # drift is seen, but nothing begins by itself
    await hub.fleet.settle(["pump"])


@pytest.mark.slow
async def test_every_rule_and_every_panel_has_data(tmp_path: Path) -> None:
    """A real Prometheus scrapes a hub and two devices: all rules are healthy, and every query returns something."""
    tool("prometheus")
    settings = hub_settings(
        tmp_path,
        device_classes={name: {**BUDGET, "batch": SERIES} for name in ("hub", "pi4")},
        history_flush_seconds=0.2,
        fleet={"status_every": "1s"},
    )
    hub, ports = Hub(settings, trainer=QUICK_TRAINER), [free_port() for _ in range(5)]
    await hub.start()
    loads: list[Load] = []
    try:
        await lived(hub)
        jobs = {
            "prunewatch": [f"127.0.0.1:{hub.listener.admin_port}"],
            "prunewatch-edge": [f"127.0.0.1:{port}" for port in ports[2:4]],
        }
        async with (
            device(tmp_path / "north", hub, ports[0], ports[2]),
            device(tmp_path / "south", hub, ports[1], ports[3]),
            running(tmp_path, ports[4], jobs) as prometheus,
        ):
            loads = [Load(port) for port in (hub.listener.port, *ports[:2])]
            await eventually(prometheus.ready, 40)
            await eventually(lambda: all_up(prometheus), 40)
            await eventually(lambda: all_scoring(prometheus), 40)
            await asyncio.gather(*(load.send(MESSAGES, anomaly=True) for load in loads))
            sending = asyncio.create_task(keep_sending(loads))
            try:
                async with Client(f"127.0.0.1:{hub.listener.port}") as client:
                    await client.wait_operation(await client.prune("pump"))  # while it is looked at
                    await hub.host.flush()
                    await client.add_label("pump", "anomaly", NOW, NOW + 10**9)
                await eventually(lambda: all_recorded(prometheus), 30)

                assert await unhealthy(prometheus) == []
                assert await silent(prometheus) == []
            finally:
                sending.cancel()
                with suppress(asyncio.CancelledError):
                    await sending
    finally:
        for load in loads:
            await load.close()
        await hub.stop()


async def keep_sending(loads: list[Load]) -> None:
    """Some points a few times a second."""
    while True:
        await asyncio.gather(*(load.send(2, anomaly=True) for load in loads))
        await asyncio.sleep(0.3)


async def all_up(prometheus: Prometheus) -> bool:
    """Whether hub and devices are scraped."""
    return len(await prometheus.query("up == 1")) == 3


async def all_scoring(prometheus: Prometheus) -> bool:
    """Whether both devices have what was released to them."""
    return len(await prometheus.query("prunewatch_detector_info * on (instance) prunewatch_hub_connected == 1")) == 2


async def all_recorded(prometheus: Prometheus) -> bool:
    """Whether what changes slowest has been recorded of all three."""
    for expr in (
        "increase(prunewatch_operations_ended_total[1d]) > 0",
        "detector:prunewatch_feedback_precision:ratio",
        "class:prunewatch_devices_away:ratio",
        "prunewatch_devices_step_seconds",
    ):
        if not await prometheus.query(expr):
            return False
    return len(await prometheus.query("detector:prunewatch_alarms_asked:ratio_rate1h > 0")) == 3


async def unhealthy(prometheus: Prometheus) -> list[str]:
    """Rules that can not be evaluated, and alerts without a verdict."""
    groups = (await prometheus.get("rules"))["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(list(rules()))
    bad = [f"{rule['name']}: {rule.get('lastError')}" for rule in found if rule["health"] != "ok"]
    return bad + [rule["name"] for rule in found if rule["type"] == "alerting" and "state" not in rule]


async def silent(prometheus: Prometheus) -> list[str]:
    """Recorded series, panels, variables and inputs of alerts without data."""
    asked = [(rule["record"], rule["record"]) for rule in rules() if "record" in rule]
    asked += [(where, filled(expr)) for where, expr in panel_queries()]
    asked += [(rule["alert"], name) for rule in ALERTS for name in metric_names(rule["expr"]) - RARE]
    empty = [f"{where}: {expr}" for where, expr in asked if not await prometheus.query(expr)]
    for path in BOARDS:
        board = json.loads(path.read_text())
        for it in board["templating"]["list"][1:]:
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", filled(it["query"])).groups()
            if not await prometheus.get(f"label/{label}/values", **{"match[]": selector}):
                empty.append(f"{path.stem}: {it['query']}")
        for it in board["annotations"].get("list", ()):
            await prometheus.query(filled(it["expr"]))
    return empty
