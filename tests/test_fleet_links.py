"""Devices and the hub: who gets in, what it is told, what it may fetch, and when its link ends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import NOW, Hub, eventually
from devices import Device, Operator, operating, points, refused, signed
from fleet_hub import Clock, fleet_hub, offer

from detectors.bundle import GRAPH, MANIFEST
from prunewatch.client import Client
from prunewatch.v1 import devices_pb2 as pb
from prunewatch.v1 import fleet_pb2
from server.fleet.devices_service import CHUNK_BYTES
from server.fleet.records import Device as Enrolled
from server.fleet.records import Status
from server.fleet.rows import put_device
from server.releases import Probe, ProbeGraph, Signed, SigningKey, UntrustedError, first_trust

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def clock() -> Clock:
    """The hub's."""
    return Clock()


@pytest.fixture
async def hub(tmp_path: Path, clock: Clock) -> AsyncIterator[Hub]:
    """A hub with a device class."""
    async with fleet_hub(tmp_path, clock) as running:
        yield running


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[Operator]:
    """Its operator."""
    async with operating(hub) as it:
        yield it


# enrolment


async def test_a_device_enrols_once_and_is_told_what_to_run(hub: Hub, operator: Operator) -> None:
    """With a token it trusts the hub's key, proves itself, and gets a release that verifies, for its class."""
    bundle = await offer(hub)

    device = await (await operator.enrolled("north-7")).connect()
    await eventually(lambda: _runs(device, bundle))

    release = device.releases["pump"]
    assert (release.device_class, release.version) == ("pi4", 1)
    assert release.settings.false_alarm_rate == hub.roster.config_of("pump").false_alarm_rate
    assert (device.welcomes[0].device_class, device.welcomes[0].field.wanted) == ("pi4", True)
    shown = await operator.stub.GetDevice(fleet_pb2.GetDeviceRequest(name="devices/north-7"))
    assert (shown.connected, shown.key_id, shown.facts.architecture) == (True, device.key.key_id, "aarch64")


async def _runs(device: Device, bundle: str, detector: str = "pump") -> bool:
    release = (device.releases or {}).get(detector)
    return release is not None and release.bundle == bundle


async def test_a_token_is_good_once(operator: Operator) -> None:
    """A second device that has it is refused, and so is whoever makes one up."""
    token = await operator.token()
    await Device(operator.channel, "north").enrol(token)

    assert await refused(Device(operator.channel, "south").enrol(token)) is DENIED
    assert await refused(Device(operator.channel, "south").enrol("made.up")) is DENIED


async def test_a_device_whose_answer_was_lost_asks_again(operator: Operator) -> None:
    """It is told the same until it has been connected; nobody else is, nor is it with another key."""
    token = await operator.token()
    device = Device(operator.channel, "north")
    await device.enrol(token)
    operator.devices.append(device)

    await device.enrol(token)
    assert await refused(Device(operator.channel, "north").enrol(token)) is DENIED
    await device.connect()
    await device.hang_up()
    assert await refused(device.enrol(token)) is DENIED


async def test_a_token_ends(operator: Operator, clock: Clock) -> None:
    """After its time it is refused."""
    token = await operator.token(valid_seconds=60)
    clock.now += 61

    assert await refused(Device(operator.channel, "north").enrol(token)) is DENIED


@pytest.mark.parametrize(("device_class", "made_for"), [("pi3", ""), ("pi4", "south")], ids=["class", "device"])
async def test_a_token_is_for_a_class_and_may_be_for_a_device(
    operator: Operator, device_class: str, made_for: str
) -> None:
    """Another class, or another device than it names, is refused; and the token is not used up by that."""
    token = await operator.token("pi4", made_for)

    assert await refused(Device(operator.channel, "north", device_class).enrol(token)) is DENIED
    await Device(operator.channel, made_for or "north").enrol(token)


async def test_a_name_is_taken_until_somebody_says_that_it_begins_anew(operator: Operator) -> None:
    """A token for any device does not replace one; one for this device does, and the old key is worth nothing."""
    first = await operator.enrolled("north")
    again = Device(operator.channel, "north")

    assert await refused(again.enrol(await operator.token())) is grpc.StatusCode.ALREADY_EXISTS
    await again.enrol(await operator.token(device="north"))
    await again.connect()
    call, _ = await first.introduce()
    assert await call.code() is DENIED
    await again.hang_up()


async def test_only_known_classes_get_tokens(operator: Operator) -> None:
    """Neither the hub's own class, nor one that is not there, nor a name or time that can not be."""
    for request, code in (
        ({"device_class": "hub"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"device_class": "pi9"}, grpc.StatusCode.NOT_FOUND),
        ({"device_class": "pi4", "device": "north"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"device_class": "pi4", "valid_seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        call = operator.stub.CreateEnrolmentToken(fleet_pb2.CreateEnrolmentTokenRequest(**request))
        assert await refused(call) is code


async def test_the_hub_keeps_no_token(hub: Hub, operator: Operator) -> None:
    """What lies in the store is its hash."""
    token = await operator.token()

    store = b"".join(path.read_bytes() for path in hub.store.root.rglob("*") if path.is_file())

    assert token.encode() not in store
    assert token.split(".")[0].encode() not in store
    assert hashlib.sha256(token.encode()).hexdigest().encode() in store


async def test_a_device_does_not_trust_another_hub(operator: Operator) -> None:
    """The token names the key of the hub that made it: whoever answers with another one is not trusted."""
    token = await operator.token()
    secret, stranger = token.split(".")[0], SigningKey.generate().key_id

    assert await refused(Device(operator.channel, "north").enrol(f"{secret}.{stranger}")) is DENIED
    with pytest.raises(UntrustedError):
        first_trust((await _keys_of(operator)), stranger)


async def _keys_of(operator: Operator) -> Signed:
    device = Device(operator.channel, "honest")
    request = pb.EnrolDeviceRequest(
        name="devices/honest", device_class="pi4", token=await operator.token(), public_key=device.key.public
    )
    return signed((await device.stub.EnrolDevice(request)).keys)


# who it is


@pytest.mark.promise("S10")
async def test_a_device_can_not_speak_as_another(hub: Hub, operator: Operator) -> None:
    """With its own key under another name, with a new key, or unknown: refused, and the other's link stays open."""
    north, south = await operator.enrolled("north"), await operator.enrolled("south")
    await south.connect()

    for name, key in (("south", north.key), ("north", SigningKey.generate()), ("nobody", north.key)):
        call, _ = await north.introduce(name, key)
        assert await call.code() is DENIED

    assert hub.fleet.links.connected() == ["south"]


@pytest.mark.promise("S10")
async def test_an_answer_is_good_for_one_challenge(operator: Operator) -> None:
    """Challenges differ, and the signature over an earlier one is refused."""
    device = await operator.enrolled("north")
    call, first = await device.introduce()
    call.cancel()

    replayed, second = await device.introduce(nonce=first)

    assert await replayed.code() is DENIED
    assert first != second
    assert len(first) == 32


@pytest.mark.promise("S10")
async def test_a_device_touches_only_what_is_its_own(hub: Hub, operator: Operator) -> None:
    """What it reports is kept under its own name, whatever the report says; points for others' detectors are not."""
    await offer(hub)
    other = await (await operator.enrolled("old", "pi3")).connect()
    north = (await operator.connected("north"))[0]
    await other.report(points(1, NOW + np.arange(10), np.full(10, 9.0), flagged=True))
    await north.report(points(1, NOW + np.arange(10), np.full(10, 9.0), flagged=True, series="old/a"))
    await eventually(lambda: _kept(north, 1))
    await eventually(lambda: _kept(other, 1))

    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        found = [it.series async for it in client.anomalies("pump")]

    assert set(found) == {"north/old/a"}


async def _kept(device: Device, sequence: int) -> bool:
    return device.kept >= sequence


async def test_nothing_is_said_to_whoever_does_not_begin_as_one_must(hub: Hub, operator: Operator) -> None:
    """Another protocol, a name that can be none, a status first, or a message that is no protobuf."""
    device = await operator.enrolled("north")
    for hello in (pb.DeviceHello(name="devices/north", protocol=2), pb.DeviceHello(name="../north", protocol=1)):
        call = device.stub.Connect()
        await call.write(pb.ConnectRequest(hello=hello))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    call = device.stub.Connect()
    await call.write(pb.ConnectRequest(status=pb.DeviceStatus()))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    raw = operator.channel.stream_stream("/prunewatch.v1.DeviceService/Connect")()
    await raw.write(b"\xff\xff\xff")
    assert await raw.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(hub.fleet.links) == 0


# links


async def test_a_newer_link_replaces_the_older(hub: Hub, operator: Operator) -> None:
    """The older ends and its token is worth nothing; nothing else of the device changes."""
    bundle = await offer(hub)
    first = (await operator.connected("north"))[0]
    token = first.welcomes[0].download_token
    second = Device(operator.channel, "north")
    second.key, second.trust = first.key, first.trust
    operator.devices.append(second)

    await second.connect()

    assert await first.code() is grpc.StatusCode.ABORTED
    assert hub.fleet.links.connected("pi4") == ["north"]
    assert await refused(second.download(bundle, token=token)) is DENIED
    assert await second.download(bundle)


async def test_a_device_that_is_removed_is_out_at_once(hub: Hub, operator: Operator) -> None:
    """Its link ends, it is not let in again, and nobody finds it."""
    device = (await operator.connected("north"))[0]

    await operator.stub.DeleteDevice(fleet_pb2.DeleteDeviceRequest(name="devices/north"))

    assert await device.code() is DENIED
    call, _ = await device.introduce()
    assert await call.code() is DENIED
    get = operator.stub.GetDevice(fleet_pb2.GetDeviceRequest(name="devices/north"))
    assert await refused(get) is grpc.StatusCode.NOT_FOUND


async def test_a_silent_link_ends(tmp_path: Path) -> None:
    """Whoever says nothing for three times as long as it was told is away; who speaks stays."""
    async with fleet_hub(tmp_path, fleet={"status_every": 0.15}) as hub, operating(hub) as operator:
        await offer(hub)
        silent, talking = await operator.connected("silent", "talking")
        await eventually(talking.was_told)

        for _ in range(12):
            await talking.say()
            await asyncio.sleep(0.08)

        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert hub.fleet.links.connected() == ["talking"]
        assert talking.welcomes[0].status_seconds == 0.15


async def test_the_last_word_counts(hub: Hub, operator: Operator) -> None:
    """Of what changes faster than a device reads only the newest is sent; what was sent is not repeated."""
    await offer(hub)
    device = (await operator.connected("north"))[0]
    await eventually(lambda: _settled(device))
    told = device.told

    for _ in range(5):
        await hub.fleet.settle()

    await asyncio.sleep(0.1)
    assert device.told == told


async def _settled(device: Device) -> bool:
    return bool(device.releases)


async def test_links_take_nobodys_place(tmp_path: Path) -> None:
    """With `max_streams` used up devices still connect; with all devices connected clients still score."""
    async with fleet_hub(tmp_path, max_streams=1, fleet={"max_devices": 1}) as hub, operating(hub) as operator:
        await offer(hub)
        async with Client(f"127.0.0.1:{hub.listener.port}") as client:
            watching = asyncio.ensure_future(_first(client.watch("pump")))
            await eventually(lambda: _streams(hub, 1))
            await operator.connected("north")
            more = await operator.token()
            too_many = await refused(Device(operator.channel, "south").enrol(more))
            scores = await client.score("pump", series=["a"], stamps=NOW + np.arange(5), values=np.zeros((5, 2)))
            watching.cancel()

    assert too_many is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(scores.statuses) == 5


async def _first(stream: AsyncIterator[object]) -> object:
    async for it in stream:
        return it
    return None


async def _streams(hub: Hub, count: int) -> bool:
    return hub.listener.gate.streams == count


async def test_a_hub_that_ends_says_so(tmp_path: Path) -> None:
    """Open links end with UNAVAILABLE, at once."""
    async with fleet_hub(tmp_path) as hub, operating(hub) as operator:
        await offer(hub)
        device = (await operator.connected("north"))[0]
        hub.fleet.links.close()
        assert await device.code() is grpc.StatusCode.UNAVAILABLE


# files


async def test_a_download_goes_on_at_any_offset(hub: Hub, operator: Operator) -> None:
    """Both files of a bundle come whole and as they are, in chunks; whatever was had before, the rest follows."""
    bundle = await offer(hub, wasted=3)
    device = (await operator.connected("north"))[0]
    folder = hub.store.bundle_folder(bundle)
    graph = (folder / GRAPH).read_bytes()
    assert len(graph) > CHUNK_BYTES

    for content in ((folder / MANIFEST).read_bytes(), graph):
        sha256 = hashlib.sha256(content).hexdigest()
        offsets = {0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(content) - 1, len(content)}
        for offset in sorted(it for it in offsets if it <= len(content)):
            assert await device.download(sha256, offset) == content[offset:]
        some = await device.download(sha256, chunks=1)
        assert some + await device.download(sha256, len(some)) == content


async def test_only_what_is_released_to_the_class_can_be_fetched(hub: Hub, operator: Operator) -> None:
    """Not another class's bundle, not the weights, not the catalog; a token that was made up is refused."""
    bundle = await offer(hub)
    north, old = (await operator.connected("north"))[0], await (await operator.enrolled("old", "pi3")).connect()
    catalog = hashlib.sha256((hub.store.root / "catalog.db").read_bytes()).hexdigest()

    assert await refused(old.download(bundle)) is grpc.StatusCode.NOT_FOUND
    for sha256 in (catalog, "00" * 32):
        assert await refused(north.download(sha256)) is grpc.StatusCode.NOT_FOUND
    for sha256 in ("../catalog.db", "", "AB" * 32, bundle[:-1]):
        assert await refused(north.download(sha256)) is grpc.StatusCode.INVALID_ARGUMENT
    for offset in (-1, 10**9):
        assert await refused(north.download(bundle, offset)) is grpc.StatusCode.INVALID_ARGUMENT
    for token in ("", "made up", old.welcomes[0].download_token[:-1]):
        assert await refused(north.download(bundle, token=token)) is DENIED


async def test_downloads_are_held_back(tmp_path: Path) -> None:
    """All together send `download_rate` bytes a second, after the first second's worth."""
    rate = CHUNK_BYTES
    async with fleet_hub(tmp_path, fleet={"download_rate": rate}) as hub, operating(hub) as operator:
        device = (await operator.connected("north"))[0]
        hub.fleet.files.add("ab" * 32, bytes(2 * CHUNK_BYTES + 10))
        loop = asyncio.get_running_loop()
        began = loop.time()
        content = await device.download("ab" * 32)
        seconds = loop.time() - began

    assert len(content) == 2 * CHUNK_BYTES + 10
    assert seconds > 0.9  # the third chunk waits until two have been paid for


async def test_a_probe_reaches_the_devices_that_are_asked(hub: Hub, operator: Operator) -> None:
    """Those of the class that are connected get it, signed, and can fetch its graphs; they are counted."""
    graph, devices = b"a graph", await operator.connected("north", "south")
    other = await (await operator.enrolled("old", "pi3")).connect()
    sha256 = hashlib.sha256(graph).hexdigest()
    hub.fleet.files.add(sha256, graph)
    now = int(NOW / 1e9)
    probe = Probe(
        id="12" * 8,
        device_class="pi4",
        batch=64,
        rounds=3,
        graphs=[ProbeGraph(sha256=sha256, bytes=len(graph))],
        issued=now,
        expires=now + 60,
    )

    asked = hub.fleet.links.send_probe("pi4", hub.fleet.keys.current.sign("probe", probe), ["north", "old", "gone"])

    await eventually(lambda: _probed(devices[0]))
    assert asked == 1
    assert devices[0].probes == [probe]
    assert devices[1].probes == other.probes == []
    assert await devices[0].download(sha256) == graph


async def _probed(device: Device) -> bool:
    return bool(device.probes)


# many


async def test_a_thousand_devices_change_no_number_of_time_series(hub: Hub, operator: Operator) -> None:
    """Two devices or a thousand: Prometheus sees as many time series, and how many there are."""
    await offer(hub)
    devices = await operator.connected("d0", "d1")
    await hub.fleet.show()
    before = _time_series(hub)

    with hub.store.catalog.writing() as connection:
        for number in range(1000):
            key = f"{number:064x}"
            put_device(connection, Enrolled(f"many-{number}", "pi4", key, "", {}, None, None, 0.0, 0))
    for number in range(1000):
        hub.fleet.presence.hear(f"many-{number}", Status())
    await hub.fleet.show()

    assert _time_series(hub) == before
    value = hub.metrics.registry.get_sample_value
    assert value("prunewatch_devices", {"device_class": "pi4", "state": "connected"}) == len(devices)
    assert value("prunewatch_devices", {"device_class": "pi4", "state": "away"}) == 1000
    page = await operator.stub.ListDevices(fleet_pb2.ListDevicesRequest(page_size=700))
    rest = await operator.stub.ListDevices(fleet_pb2.ListDevicesRequest(page_size=700, page_token=page.next_page_token))
    names = [it.name for it in (*page.devices, *rest.devices)]
    assert names == sorted(set(names))
    assert len(names) == 1002


def _time_series(hub: Hub) -> int:
    return sum(len(family.samples) for family in hub.metrics.registry.collect())
