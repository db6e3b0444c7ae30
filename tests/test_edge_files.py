"""Devices without a network, graphs to measure, and what a machine says of itself."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from agents import Points, agent, settings_of
from conftest import eventually
from device_hub import DeviceHub, pump
from graphs import ewma_graph, ewma_scores
from typer.testing import CliRunner

from detectors.archive import RELEASE, pack_bundle
from detectors.bundle import write_bundle
from detectors.errors import PrunewatchError
from server.cli import app
from server.edge import conditions
from server.edge.agent import Agent, AgentOptions
from server.releases import SigningKey, UntrustedError


def exported(folder: Path, hub: DeviceHub, version: int = 1, **fields: object) -> Path:
    """A file with a signed release inside."""
    bundle = pump(version, alpha=0.1 * version)
    write_bundle(bundle, folder / bundle.hash)
    out = folder / f"pump-{version}.tar"
    signed = hub.release(bundle.hash, version=version, **fields)
    pack_bundle(folder / bundle.hash, bundle.hash, out, {RELEASE: signed.to_json()})
    return out


def brought(folder: Path, hub: DeviceHub) -> Path:
    """A file with the hub's keys."""
    path = folder / "keys.json"
    path.write_bytes(hub.key_set.to_json())
    return path


async def test_a_device_without_a_network_takes_signed_files_only(tmp_path: Path) -> None:
    """Brought keys and a signed file: it scores, also after a restart without them; the next file swaps in."""
    hub = DeviceHub()
    points = Points()
    first = {"bundle": exported(tmp_path, hub), "trust": brought(tmp_path, hub)}
    async with agent(tmp_path, given=first) as running:
        reply = await points.send(running, 60)
    async with agent(tmp_path) as running:
        again = await points.send(running, 10)
    async with agent(tmp_path, given={"bundle": exported(tmp_path, hub, 2)}) as running:
        swapped = await points.send(running, 10)

    np.testing.assert_allclose(reply.scores, ewma_scores(points.rows(80)[:60, 0]), rtol=1e-5)
    assert (again.statuses == 1).all()
    assert (swapped.statuses == 1).all()
    assert (again.version, swapped.version) == (1, 2)


@pytest.mark.promise("S7")
@pytest.mark.parametrize("bad", ["unsigned", "a stranger's", "another class's", "damaged"])
async def test_a_file_is_judged_like_what_comes_over_the_link(tmp_path: Path, bad: str) -> None:
    """Where nothing serves the agent says what is wrong and ends; where something does, it goes on."""
    hub = DeviceHub()
    given = {"trust": brought(tmp_path, hub)}
    if bad == "a stranger's":
        file = exported(tmp_path, hub, 2, key=SigningKey.generate())
    else:
        file = exported(tmp_path, hub, 2, **({"device_class": "pi3"} if bad == "another class's" else {}))
    if bad == "unsigned":
        bundle = pump(2, alpha=0.2)
        pack_bundle(tmp_path / bundle.hash, bundle.hash, file)
    if bad == "damaged":
        content = bytearray(file.read_bytes())
        content[content.index(b"ewma") + 1] ^= 1
        file.write_bytes(content)
    with pytest.raises(PrunewatchError) as caught:
        async with agent(tmp_path, given={**given, "bundle": file}):
            pass
    async with agent(tmp_path, given={**given, "bundle": exported(tmp_path, hub)}):
        pass
    async with agent(tmp_path, given={"bundle": file}) as running:
        reply = await Points().send(running, 5)

    assert bad == "damaged" or isinstance(caught.value, UntrustedError)
    assert reply.version == 1


@dataclass(frozen=True)
class Outcome:
    """What a prober gives back."""

    costs: dict[str, tuple[float, float]]
    conditions: dict[str, float | int | str]
    problem: str = ""


class Prober:
    """Says that graphs take as long as they have bytes."""

    def __init__(self) -> None:
        self.asked = 0

    async def measure(self, probe, graphs) -> Outcome:
        """Nanoseconds for bytes."""
        assert {it.sha256 for it in probe.graphs} == set(graphs)
        self.asked += 1
        costs = {name: (1e-9 * len(graph), 2e-9 * len(graph)) for name, graph in graphs.items()}
        return Outcome({**costs, "ee" * 32: (1.0, 1.0)}, {"threads": 1, "governor": "performance"})


async def test_probes_are_fetched_measured_and_told(tmp_path: Path) -> None:
    """Once each, what was asked for and nothing else; graphs are gone afterwards. Strangers' probes are ignored."""
    prober = Prober()
    async with DeviceHub() as hub, agent(tmp_path, hub.address, token=hub.token(tmp_path), prober=prober) as running:
        await eventually(lambda: asyncio.sleep(0, hub.links))
        graphs = [ewma_graph(2, alpha) for alpha in (0.1, 0.2)]
        true_key, hub.key = hub.key, SigningKey.generate()
        await hub.probe(graphs)
        hub.key = true_key
        await hub.probe(graphs, device_class="pi3")
        await hub.probe(graphs, expires=1)
        probe = await hub.probe(graphs)
        await eventually(lambda: asyncio.sleep(0, any(it.HasField("probe") for it in hub.kept.values())))
        (told,) = (it.probe for it in hub.kept.values() if it.HasField("probe"))
        left = list((tmp_path / "store" / "probes").iterdir())
        assert not running.busy()

    assert (told.probe_id, told.batch, told.problem) == (probe.id, 4, "")
    assert {it.sha256: it.p50_seconds for it in told.costs} == {
        it.sha256: pytest.approx(1e-9 * it.bytes) for it in probe.graphs
    }
    assert told.conditions["governor"] == "performance"
    assert (prober.asked, left) == (1, [])


def test_a_machine_is_read_from_the_system(tmp_path: Path) -> None:
    """Model, cores within the control group's share, the smallest limit of memory, governor, the processor's heat."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Cortex-A72\n",
        "proc/meminfo": "MemTotal:        1000 kB\n",
        "sys/fs/cgroup/cpu.max": "50000 100000",
        "sys/fs/cgroup/memory.max": "500000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/class/thermal/thermal_zone0/type": "battery",
        "sys/class/thermal/thermal_zone0/temp": "99000",
        "sys/class/thermal/thermal_zone1/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": "61500",
        "sys/class/thermal/thermal_zone2/type": "cpu-2",
        "sys/class/thermal/thermal_zone2/temp": "-274000",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = conditions.facts(tmp_path)

    assert (found.processor, found.cores, found.memory_bytes, found.governor) == ("Cortex-A72", 1, 500_000, "ondemand")
    assert conditions.temperature(tmp_path) == 61.5


def test_what_is_not_there_to_be_read_is_left_out(tmp_path: Path) -> None:
    """A system without any of it is fine."""
    found = conditions.facts(tmp_path)

    assert (found.processor, found.memory_bytes, found.governor) == ("", 0, "")
    assert found.cores >= 1
    assert math.isnan(conditions.temperature(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ([], "--bundle, --hub, --store"),
        (["--bundle", "x.tar", "--device", "north-7"], "--device"),
        (["--hub", "nowhere"], "--hub"),
        (["--store", "STORE"], "--device-class"),
        (["--hub", "127.0.0.1:1", "--store", "STORE", "--device-class", "pi4", "--device", "No"], "--device"),
        (["--hub", "127.0.0.1:1", "--store", "STORE", "--token-file", "none"], "none"),
        (["--hub", "127.0.0.1:1", "--false-alarm-rate", "0.1"], "--false-alarm-rate"),
    ],
)
def test_options_that_can_not_be_are_told(tmp_path: Path, arguments: list[str], field: str) -> None:
    """Each with its name and what to do; nothing begins to listen."""
    given = [str(tmp_path / "store") if it == "STORE" else it for it in arguments]

    ended = CliRunner().invoke(app, ["edge", *given, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])

    assert isinstance(ended.exception, PrunewatchError)
    assert ended.exception.field == field
    assert ended.exception.hint or "HOST:PORT" in ended.exception.problem or field in {"none", "--device"}


async def test_two_agents_do_not_share_a_store(tmp_path: Path) -> None:
    """The second one is told who has it."""
    options = AgentOptions(tmp_path / "store", device_class="pi4")
    first = Agent(settings_of(tmp_path), options)
    with pytest.raises(PrunewatchError, match="another process"):
        Agent(settings_of(tmp_path), options)
    first.outbox.close()
    first.device.close()
