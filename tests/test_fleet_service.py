"""What operators do with devices and their classes, over gRPC and on the command line."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Hub, eventually
from devices import Device, Operator, operating, refused
from fleet_hub import fleet_hub, offer
from google.protobuf import field_mask_pb2
from test_anomalies import shape
from typer.testing import CliRunner

from prunewatch.client import Client, ServiceError
from prunewatch.v1 import fleet_pb2 as pb
from prunewatch.v1 import pruning_pb2
from server.catalog import Catalog
from server.cli import app
from server.doctor import examine
from server.findings import is_sound
from server.schema import UPGRADES


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with device classes in its configuration."""
    async with fleet_hub(tmp_path) as running:
        yield running


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[Operator]:
    """Its operator."""
    async with operating(hub) as it:
        yield it


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[Client]:
    """Its client."""
    async with Client(f"127.0.0.1:{hub.listener.port}") as connected:
        yield connected


async def refusal(call: Any) -> str:
    """The code of a call of the client that must fail."""
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value.code


async def test_a_class_is_made_changed_and_forgotten(hub: Hub, client: Client) -> None:
    """It can be used at once by detectors and pruning; what is not named in a change stays; None takes a limit away."""
    fleet = client.fleet
    made = await fleet.create_device_class("esp", {"p99_seconds": 2e-3, "size_bytes": 4096, "batch": 8})
    changed = await fleet.update_device_class("esp", {"p99_seconds": 1e-3, "size_bytes": None})
    await client.create("pump", {"features": ["f1"], "device_classes": ["hub", "esp"]})

    assert (made["p99_seconds"], made["size_bytes"], made["batch"], made["configured"]) == (2e-3, 4096, 8, False)
    assert (changed["p99_seconds"], changed["size_bytes"], changed["batch"]) == (1e-3, None, 8)
    assert hub.roster.budget_of("esp").p99 == 1e-3
    assert await refusal(fleet.delete_device_class("esp")) == "FAILED_PRECONDITION"
    await client.delete("pump")
    await fleet.delete_device_class("esp")
    assert [it["name"] for it in await fleet.device_classes()] == ["hub", "pi3", "pi4"]


async def test_the_configuration_wins(client: Client) -> None:
    """Its classes are changed there."""
    fleet = client.fleet

    assert (await fleet.device_class("pi4"))["configured"]
    assert await refusal(fleet.create_device_class("pi4", {})) == "ALREADY_EXISTS"
    assert await refusal(fleet.update_device_class("pi4", {"p99_seconds": 1.0})) == "FAILED_PRECONDITION"
    assert await refusal(fleet.delete_device_class("hub")) == "FAILED_PRECONDITION"


async def test_classes_outlive_the_process(tmp_path: Path) -> None:
    """A class of the API is there after a restart; where the configuration names it since, that wins."""
    async with fleet_hub(tmp_path) as hub, Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.fleet.create_device_class("esp", {"p99_seconds": 2e-3})
    async with fleet_hub(tmp_path) as hub:
        assert hub.roster.budget_of("esp").p99 == 2e-3
    async with fleet_hub(tmp_path, device_classes={"hub": {}, "esp": {"p99": "7ms"}}) as hub:
        assert hub.roster.budget_of("esp").p99 == 7e-3


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("parent", {}),
        ("../x", {}),
        ("esp", {"p99_seconds": -1.0}),
        ("esp", {"batch": 10**6}),
        ("esp", {"speedup": 0.5}),
    ],
)
async def test_what_is_no_class_is_refused(client: Client, name: str, budget: dict[str, Any]) -> None:
    """With the field that is wrong, and nothing is made."""
    assert await refusal(client.fleet.create_device_class(name, budget)) == "INVALID_ARGUMENT"
    assert len(await client.fleet.device_classes()) == 3


async def test_what_can_not_be_changed_is_said(operator: Operator) -> None:
    """A mask that names something else is refused."""
    await operator.stub.CreateDeviceClass(pb.CreateDeviceClassRequest(device_class_id="esp"))
    for path in ("devices", "budget.colour", ""):
        request = pb.UpdateDeviceClassRequest(
            device_class=pb.DeviceClass(name="deviceClasses/esp", budget=pruning_pb2.Budget(p50_seconds=1)),
            update_mask=field_mask_pb2.FieldMask(paths=[path]),
        )
        assert await refused(operator.stub.UpdateDeviceClass(request)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_class_with_devices_stays(client: Client, operator: Operator) -> None:
    """Devices are removed first; and a device of a class is not one of another."""
    await client.fleet.create_device_class("esp", {})
    await operator.enrolled("north", "esp")

    assert await refusal(client.fleet.delete_device_class("esp")) == "FAILED_PRECONDITION"
    assert [it["name"] for it in await client.fleet.devices("esp")] == ["north"]
    assert await client.fleet.devices("pi4") == []
    await client.fleet.delete_device("north")
    await client.fleet.delete_device_class("esp")


async def test_what_a_device_said_last_is_shown_after_a_restart(tmp_path: Path) -> None:
    """Its status, when it was heard of, and that it is away now."""
    async with fleet_hub(tmp_path) as hub, operating(hub) as operator:
        await offer(hub)
        (device,) = await operator.connected("north")
        await device.say(points=7, reason="hot")
        await eventually(lambda: _said(hub))
    async with fleet_hub(tmp_path) as hub, Client(f"127.0.0.1:{hub.listener.port}") as client:
        shown = await client.fleet.device("north")
    assert (shown["connected"], shown["served"][0]["points"], shown["served"][0]["reason"]) == (False, 7, "hot")
    assert shown["temperature_celsius"] == 0
    assert shown["last_seen_seconds"] == hub.fleet._clock()


async def _said(hub: Hub) -> bool:
    return hub.fleet.presence.of("north") is not None


async def test_lists_come_in_pages(hub: Hub, operator: Operator) -> None:
    """Devices by name, roll-outs newest first; a token of another list is refused."""
    for name in ("a", "b", "c"):
        await operator.enrolled(name)
    page = await operator.stub.ListDevices(pb.ListDevicesRequest(page_size=2))
    rest = await operator.stub.ListDevices(pb.ListDevicesRequest(page_size=2, page_token=page.next_page_token))
    for version in (1, 2, 3, 4):
        await offer(hub, version)
    first = await operator.stub.ListRollouts(pb.ListRolloutsRequest(page_size=2))
    more = await operator.stub.ListRollouts(pb.ListRolloutsRequest(page_size=2, page_token=first.next_page_token))
    of_others = pb.ListRolloutsRequest(device_class="pi3", page_token=first.next_page_token)

    assert [it.name for it in (*page.devices, *rest.devices)] == ["devices/a", "devices/b", "devices/c"]
    assert [it.version for it in (*first.rollouts, *more.rollouts)] == [4, 3, 2]
    assert (rest.next_page_token, more.next_page_token) == ("", "")
    assert await refused(operator.stub.ListRollouts(of_others)) is grpc.StatusCode.INVALID_ARGUMENT


# the command line


async def test_the_commands(hub: Hub, operator: Operator) -> None:
    """Enrol, look, make classes, steer a roll-out and rotate keys, in words and as JSON."""
    server = ["--server", f"127.0.0.1:{hub.listener.port}"]

    async def run(*arguments: str, code: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *server])
        assert result.exit_code == code, (arguments, result.output, result.exception)
        return result.stdout

    assert "no devices" in await run("devices")
    token = (await run("devices", "enrol-token", "--device-class", "pi4", "--valid", "1h")).split()[0]
    await offer(hub)
    device = await (await Device(operator.channel, "north").enrol(token)).connect()
    operator.devices.append(device)
    await device.say()
    await eventually(lambda: _said(hub))
    listed = json.loads(await run("devices", "--json"))["devices"]
    assert [(it["name"], it["connected"], it["served"][0]["state"]) for it in listed] == [("north", True, "serving")]
    assert "pump" in await run("devices", "show", "north")
    made = json.loads(await run("device-classes", "create", "esp", "--p99", "2ms", "--size", "4KiB", "--json"))
    assert (made["p99_seconds"], made["size_bytes"]) == (0.002, 4096)
    assert "1ms" in await run("device-classes", "update", "esp", "--p99", "1ms")
    assert re.search("esp.*API", await run("device-classes"))
    assert "deleted" in await run("device-classes", "delete", "esp")
    await offer(hub, 2)
    assert "canary" in await run("rollouts")
    assert json.loads(await run("rollouts", "show", "1", "--json"))["version"] == 2
    assert "stopped" in await run("rollouts", "stop", "1", "--reason", "smoke")
    assert json.loads(await run("rollouts", "--json"))["rollouts"][0]["reason"] == "smoke"
    assert len(json.loads(await run("keys", "rotate", "--json"))["keys"]) == 2
    assert "removed" in await run("devices", "remove", "north", "--yes")
    for wrong in (
        ("devices", "show"),
        ("devices", "enrol-token"),
        ("rollouts", "stop"),
        ("device-classes", "update", "pi4"),
    ):
        result = await asyncio.to_thread(CliRunner().invoke, app, [*wrong, *server])
        assert type(result.exception).__name__ == "InvalidInputError"


def test_devices_belong_to_a_server() -> None:
    """Without one the command says what to do."""
    for command in ("devices", "device-classes", "rollouts"):
        result = CliRunner().invoke(app, [command])
        assert "--server 127.0.0.1:8001" in str(result.exception)


def test_keys_of_a_store(tmp_path: Path) -> None:
    """Without a server: none, then one; --retire-older goes with rotate."""
    Catalog(_folder(tmp_path) / "catalog.db").close()
    store = ["--store", str(tmp_path / "store")]

    assert "no keys yet" in CliRunner().invoke(app, ["keys", *store]).stdout
    made = json.loads(CliRunner().invoke(app, ["keys", "rotate", "--json", *store]).stdout)["keys"]
    again = json.loads(CliRunner().invoke(app, ["keys", "--json", *store]).stdout)["keys"]
    assert made == again
    assert made[0]["current"]
    assert "rotate" in str(CliRunner().invoke(app, ["keys", "--retire-older", *store]).exception)


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


# the store


async def test_a_store_with_devices_is_sound(hub: Hub, operator: Operator) -> None:
    """`prunewatch doctor` finds nothing to do."""
    await offer(hub)
    await operator.connected("north")

    assert is_sound(examine(hub.store.root))


def test_a_catalog_of_the_third_schema_is_upgraded(tmp_path: Path) -> None:
    """What was in it stays, and it is then like one that was made new."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    for path in (old, new):
        catalog = Catalog(path)
        catalog.create_detector("pump", {"network": "lstm"}, ["flow"])
        catalog.close()
    with sqlite3.connect(old) as connection:
        for statement in UPGRADES[3]:
            if made := re.search(r"CREATE TABLE (\w+)", statement):
                connection.execute(f"DROP TABLE {made[1]}")
        connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema_version'")
    connection.close()

    catalog = Catalog(old)

    assert catalog.get_detector("pump").features == ["flow"]
    catalog.close()
    assert shape(old) == shape(new)
