"""The commands of docs/fleet.md, edge.md, bundles.md and security.md, as they stand: a real hub, real devices."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from authority import Authority, put
from conftest import QUICK_TRAINER, Hub, eventually, hub_settings, publish
from graphs import ewma_bundle
from ports import free_address
from test_walk import ROOT, blocks
from typer.testing import CliRunner

from prunewatch.client import Client, Credentials
from server.cli import app

PRUNEWATCH = "prunewatch "
ELSEWHERE = {
    ("docs/clients.md", "pip install --group examples"): "CI installs the group; nothing of ours runs",
    ("docs/clients.md", "python examples/mqtt_bridge.py"): "test_mqtt_bridge",
    ("docs/clients.md", "python examples/kafka_scores.py"): "test_kafka_scores",
    ("docs/networks.md", "prunewatch fit pump2 --data pump2.csv --from pump"): "test_fit (a fit takes long)",
    (
        "docs/pyod.md",
        "prunewatch edge --bundle plant",
    ): "test_import_pyod exports that folder; the same line is in edge.md",
    ("docs/operating.md", ""): "test_walk",
}
"""Commands of docs/*.md that are run by another test than those here, or why they are not."""
HERE = ("docs/bundles.md", "docs/edge.md", "docs/fleet.md", "docs/security.md")


class Walk:
    """Runs lines of pages with what stands for their addresses, names and numbers here.

    Args:
        folder: Where they are typed.
        stand_ins: What a page shows, and what it is here.
    """

    def __init__(self, folder: Path, stand_ins: dict[str, str]) -> None:
        self.folder = folder
        self.stand_ins = stand_ins
        self.ran: set[str] = set()

    def here(self, line: str) -> str:
        """The line as it is typed here."""
        self.ran.add(line)
        for shown, own in self.stand_ins.items():
            line = line.replace(shown, own)
        return line

    async def run(self, line: str, **environment: str) -> str:
        """Runs a line; it has to end well."""
        typed = self.here(line)
        if typed.startswith(PRUNEWATCH):
            arguments = shlex.split(typed.removeprefix(PRUNEWATCH))
            done = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            return done.stdout
        shell = await asyncio.to_thread(
            subprocess.run, ["bash", "-ec", typed], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert shell.returncode == 0, f"{line}\n{shell.stdout}\n{shell.stderr}"
        return shell.stdout

    @asynccontextmanager
    async def started(self, line: str, address: str) -> AsyncIterator[None]:
        """While a process runs that a line starts, from when `address` answers; it has to end in order."""
        environment = {**os.environ, "PRUNEWATCH__LISTEN": address, "PRUNEWATCH__ADMIN": free_address()}
        command = [sys.executable, "-c", "from server.cli import main; main()", *shlex.split(self.here(line))[1:]]
        with (self.folder / "process.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, cwd=self.folder, env=environment, stderr=log)
        host, _, port = address.rpartition(":")

        async def answers() -> bool:
            assert process.returncode is None, (self.folder / "process.log").read_text()
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return False
            writer.close()
            return True

        try:
            await eventually(answers, 40)
            yield
        finally:
            process.terminate()
            code = await asyncio.wait_for(process.wait(), 30)
        assert code == 0, (self.folder / "process.log").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str) -> list[str]:
    """Each line of the shell blocks of a page, without what is said about it."""
    lines = [re.sub(r"\s+#.*", "", it).strip() for block in blocks(page, "sh") for it in block.splitlines()]
    return [it for it in lines if it and not it.startswith("#")]


def line(page: str, beginning: str) -> str:
    """The one command of a page that begins so."""
    (found,) = [it for it in commands(page) if it.startswith(beginning)]
    return found


async def released(hub: Hub, version: int) -> None:
    """A new version of `pump` for both classes; its roll-out begins."""
    await publish(hub, ewma_bundle("pump", version, gain=float(version)), device_classes=["hub", "pi4"], time="index")
    await hub.fleet.settle(["pump"])


@pytest.mark.slow
async def test_an_operator_of_devices_can_type_what_stands_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/fleet.md, edge.md and bundles.md: classes, tokens, a device, roll-outs, keys, one without a link."""
    listen, on_device = free_address(), free_address()
    walk = Walk(folder, {"hub.local:8001": listen, "127.0.0.1:8001": listen, "/data": str(folder / "data")})
    store, authority = folder / "prunewatch-store", Authority.new()
    certificate, key = put(folder, *authority.issue())
    (folder / "ca.crt").write_bytes(authority.pem)
    monkeypatch.setenv("PRUNEWATCH_CA", "ca.crt")  # the pages say it once, in security.md
    settings = hub_settings(
        folder,
        listen=listen,
        store=store,
        fleet={"status_every": "0.5s"},
        tls={"certificate": certificate, "key": key},
    )
    hub = Hub(settings, trainer=QUICK_TRAINER)
    fleet, edge = "docs/fleet.md", "docs/edge.md"
    await hub.start()
    try:
        await walk.run(line(fleet, "prunewatch device-classes create pi4"))
        assert "pi4" in await walk.run(line(fleet, "prunewatch device-classes --server"))
        await released(hub, 1)
        told = await walk.run(line(fleet, "prunewatch devices enrol-token"))
        walk.stand_ins["SECRET.FINGERPRINT"] = re.search(r"[\w-]{20,}\.[0-9a-f]{16}", told)[0]
        await walk.run(line(edge, "echo"))
        async with walk.started(
            line(edge, "prunewatch edge --hub hub.local:8001 --ca ca.crt --device-class"), on_device
        ):
            await shows(hub, walk, "trying")
        async with walk.started(line(edge, "prunewatch edge --hub hub.local:8001 --ca ca.crt --store"), on_device):
            await proven(on_device)
            await shows(hub, walk, "serving")
            assert "north-7" in await walk.run(line(fleet, "prunewatch devices --server"))
            await released(hub, 2)
            walk.stand_ins[" 12 "] = f" {newest_rollout(hub)} "
            assert "canary" in await walk.run(line(fleet, "prunewatch rollouts --server"))
            await walk.run(line(fleet, "prunewatch rollouts advance"))
            await released(hub, 3)
            walk.stand_ins[" 12 "] = f" {newest_rollout(hub)} "
            await walk.run(line(fleet, "prunewatch rollouts stop"))
            assert "smells of smoke" in await walk.run(line(fleet, "prunewatch rollouts --server"))
            await walk.run(line(fleet, "prunewatch rollback pump"))
            await walk.run(line(fleet, "prunewatch pin pump"))
            for it in commands(fleet):
                if it.startswith("prunewatch keys"):
                    await walk.run(it)
    finally:
        await hub.stop()
    assert "signed" in await walk.run(line(fleet, "prunewatch export"))
    await walk.run(line("docs/bundles.md", "mkdir -p pump"))
    async with walk.started(line(edge, "prunewatch edge --bundle"), on_device):
        pass
    with tarfile.open(folder / "pump.tar") as packed:
        (folder / "keys.json").write_bytes(packed.extractfile("keys.json").read())
    walk.stand_ins["/data"] = str(folder / "air-gapped")
    async with walk.started(line(edge, "prunewatch edge --store"), on_device), Client(on_device) as client:
        reply = await client.score("pump", series=["a"], stamps=[1], values=[[0.0, 0.0]])

    assert reply.version >= 1
    assert (folder / "pump" / "step.onnx").is_file()
    for page in (fleet, edge, "docs/bundles.md"):
        assert set(commands(page)) <= walk.ran, page


def newest_rollout(hub: Hub) -> int:
    """Its number."""
    return hub.fleet.book.rollouts(limit=1)[0][0].id


async def proven(on_device: str) -> None:
    """Points enough for what is on trial to have proven itself."""
    values = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    async with Client(on_device) as client:
        await client.score("pump", series=["a"], stamps=np.arange(600), values=values)


async def shows(hub: Hub, walk: Walk, state: str) -> None:
    """The hub hears of the device that `pump` is in this state there, and says so."""

    async def heard() -> bool:
        known = hub.fleet.presence.of("north-7")
        return known is not None and "pump" in known.status.served and known.status.served["pump"].state == state

    await eventually(heard)
    assert state in (await walk.run(line("docs/fleet.md", "prunewatch devices show"))).lower()


@pytest.mark.slow
async def test_a_service_can_be_closed_in_five_minutes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/security.md: its file, its tokens, its server in a process of its own, and its clients."""
    authority, listen, page = Authority.new(), free_address(), "docs/security.md"
    put(folder, *authority.issue())
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "prunewatch.yaml").write_text(blocks(page, "yaml")[0])
    hub = Hub(hub_settings(folder, store=folder / "prunewatch-store"), trainer=QUICK_TRAINER)
    await hub.start()
    await publish(hub, ewma_bundle("pump"))
    await hub.stop()
    walk = Walk(folder, {"hub.example:8001": f"localhost:{listen.rpartition(':')[2]}"})

    for it in commands(page):
        if it.startswith("prunewatch tokens make"):
            await walk.run(it)
    async with walk.started(line(page, "prunewatch serve"), listen):
        shown = await walk.run(line(page, "prunewatch show"))
        variables = dict(it.split("=") for it in walk.here(line(page, "export")).split()[1:])
        again = await walk.run(line(page, "prunewatch show").partition(" --ca")[0], **variables)
        pipeline = Credentials((folder / "pipeline.token").read_text().strip(), ca=folder / "ca.crt")
        async with Client(listen, credentials=pipeline) as client:
            reply = await client.score("pump", series=["a"], values=[[0.0, 0.0]], ephemeral=True)

    assert "pump" in shown
    assert again == shown
    assert reply.version == 1
    assert set(commands(page)) <= walk.ran


def test_no_command_of_the_pages_is_left_out() -> None:
    """Each line of a shell block of docs/*.md is run here, or in the list with what runs it, which has no others."""
    found: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "docs").glob("*.md")):
        page = f"docs/{path.name}"
        for it in commands(page) if page not in HERE else ():
            known = [key for key in ELSEWHERE if key[0] == page and it.startswith(key[1])]
            assert known, f"{page}: nothing runs `{it}`"
            found.update(known)

    assert found == set(ELSEWHERE)


def test_the_scrape_configuration_of_the_page_is_one() -> None:
    """What docs/security.md says to Prometheus is what the comment in deploy/prometheus/prometheus.yml says."""
    (job,) = next(it for it in map(yaml.safe_load, blocks("docs/security.md", "yaml")) if "scrape_configs" in it)[
        "scrape_configs"
    ]
    commented = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    lines: dict[str, Any] = yaml.safe_load(
        "\n".join(re.findall(r"^ +# ((?:scheme|tls_config|authorization):.*)$", commented, re.MULTILINE))
    )

    assert lines == {key: job[key] for key in ("scheme", "tls_config", "authorization")}
