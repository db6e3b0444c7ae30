"""Signing keys: made on first need, rotated under devices that are connected, away, or long away; kept in backups."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from conftest import Hub, eventually
from devices import Device, Operator, operating, refused
from fleet_hub import Clock, fleet_hub, offer

from detectors.archive import unpack_bundle
from detectors.bundle import read_bundle
from detectors.errors import PreconditionError
from prunewatch.v1 import fleet_pb2 as pb
from server.backup import back_up
from server.fleet.exporting import statements_for
from server.fleet.keys import MOST, Keys
from server.releases import Signed, Trust, UntrustedError, first_trust, require_adoptable
from server.restoring import restore
from server.store import Store


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with a device class."""
    async with fleet_hub(tmp_path) as running:
        yield running


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[Operator]:
    """Its operator."""
    async with operating(hub) as it:
        yield it


async def rotate(operator: Operator, *, retire_older: bool = False) -> str:
    """Makes a new key; returns its fingerprint."""
    request = pb.RotateSigningKeyRequest(retire_older=retire_older)
    return (await operator.stub.RotateSigningKey(request)).key.key_id


async def connect_again(device: Device) -> None:
    """As a device does whose link has ended."""
    await device.hang_up()
    device.releases = None
    await device.connect()
    await device.say()


def test_the_first_key_is_made_on_first_need_for_its_owner_alone(tmp_path: Path) -> None:
    """None before; then one with mode 600, the same after the store was opened again, whose loss is told."""
    keys = Keys(tmp_path, lambda: 7.0)
    assert not len(keys)
    assert not (tmp_path / "keys").exists()

    made = keys.current

    path = tmp_path / "keys" / f"{made.key_id}.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert Keys(tmp_path).current.public == made.public
    path.chmod(0o644)
    with pytest.raises(PreconditionError, match="chmod 600"):
        _ = Keys(tmp_path).current
    (tmp_path / "keys" / "keys.json").write_text("{")
    with pytest.raises(PreconditionError, match="Restore a backup"):
        Keys(tmp_path)


def test_a_reader_follows_from_whatever_it_trusts(tmp_path: Path) -> None:
    """Through many rotations at once, to the set of today; a set has at most 16 keys and its number ascends."""
    keys = Keys(tmp_path, lambda: 7.0)
    first = keys.current
    trust = first_trust(keys.key_set(first.key_id), first.key_id)
    for _ in range(MOST + 3):
        keys.rotate()

    followed = trust.followed(keys.key_set(first.key_id))

    assert len(keys) == len(followed.keys) == MOST
    assert followed.counter == trust.counter + MOST + 3
    assert keys.current.key_id in followed.keys
    assert first.key_id not in followed.keys


def test_a_key_that_is_retired_is_kept_while_it_is_needed(tmp_path: Path) -> None:
    """To vouch for the new set before devices that know no other; then its file goes."""
    keys = Keys(tmp_path)
    first = keys.current.key_id
    second = keys.rotate(retire_older=True).key_id
    path = tmp_path / "keys" / f"{first}.key"

    keys.forget({first, second})
    assert path.exists()
    assert [it.key_id for it in keys.known] == [second]
    keys.forget({second})
    assert not path.exists()


async def test_devices_follow_a_rotation(hub: Hub, operator: Operator) -> None:
    """Links end, devices come back, trust both keys, and what they run is as it was; new releases are signed anew."""
    await offer(hub)
    (device,) = await operator.connected("north")
    (old,) = device.trust.keys

    new = await rotate(operator)

    assert await device.code() is grpc.StatusCode.UNAVAILABLE
    await connect_again(device)
    assert set(device.trust.keys) == {old, new}
    await offer(hub, 2)
    await eventually(lambda: _version(device, 2))
    listed = (await operator.stub.ListSigningKeys(pb.ListSigningKeysRequest())).keys
    assert [(it.key_id, it.current) for it in listed] == [(new, True), (old, False)]


async def _version(device: Device, version: int) -> bool:
    return bool(device.releases) and device.releases["pump"].version == version


async def test_a_device_that_was_away_for_two_rotations_follows(hub: Hub, operator: Operator) -> None:
    """Retired or not: what it trusts vouches for the newest set, and the releases it gets verify with that."""
    await offer(hub)
    away, here = await operator.connected("away", "here")
    await away.hang_up()
    (old,) = away.trust.keys

    await rotate(operator, retire_older=True)
    await connect_again(here)
    newest = await rotate(operator, retire_older=True)
    await connect_again(here)
    await connect_again(away)

    assert set(away.trust.keys) == set(here.trust.keys) == {newest}
    assert await _version(away, 1)
    with pytest.raises(UntrustedError):
        away.trust.payload("keys", hub.fleet.keys.key_set(old))


async def test_a_token_of_a_retired_key_is_refused(operator: Operator) -> None:
    """It names a key that nobody is to trust; one of a key that is merely older still works."""
    retired = await operator.token()
    await rotate(operator, retire_older=True)
    older = await operator.token()
    await rotate(operator)

    assert await refused(Device(operator.channel, "north").enrol(retired)) is grpc.StatusCode.PERMISSION_DENIED
    device = await Device(operator.channel, "south").enrol(older)
    assert len(device.trust.keys) == 2


async def test_a_key_that_can_not_be_used_stops_releases_and_not_scoring(tmp_path: Path) -> None:
    """The hub starts and scores; once the key is its owner's alone again, devices get what serves."""
    async with fleet_hub(tmp_path) as hub, operating(hub) as operator:
        await offer(hub)
        (device,) = await operator.connected("north")
        folder = hub.store.root / "keys"
    for path in folder.glob("*.key"):
        path.chmod(0o644)
    async with fleet_hub(tmp_path) as hub, operating(hub) as operator:
        await offer(hub, 2)
        assert hub.host.get("pump").served.version == 2
        for path in folder.glob("*.key"):
            path.chmod(0o600)
        await hub.fleet.settle()
        again = Device(operator.channel, "north")
        again.key, again.trust = device.key, device.trust
        operator.devices.append(again)
        await again.connect()
        await eventually(lambda: _version(again, 2))


# beside the hub


async def test_a_restored_hub_is_known_to_its_devices(tmp_path: Path) -> None:
    """Keys and devices are in a backup, which only its owner may read; numbers of releases do not go back."""
    clock = Clock()
    async with fleet_hub(tmp_path / "one", clock) as hub, operating(hub) as operator:
        await offer(hub)
        (device,) = await operator.connected("north")
        back_up(hub.store.root, tmp_path / "backup.tar")
        clock.now += 5
        await offer(hub, 2)
        await eventually(lambda: _version(device, 2))
        seen = device.releases["pump"].counter
    assert (tmp_path / "backup.tar").stat().st_mode & 0o777 == 0o600
    restore(tmp_path / "backup.tar", tmp_path / "two" / "store")
    clock.now += 60

    async with fleet_hub(tmp_path / "two", clock) as hub, operating(hub) as operator:
        again = Device(operator.channel, "north")
        again.key, again.trust = device.key, device.trust
        operator.devices.append(again)
        await again.connect()
        await offer(hub, 2)
        await eventually(lambda: _version(again, 2))
        assert again.releases["pump"].counter > seen


async def test_an_exported_file_says_whose_it_is(tmp_path: Path) -> None:
    """Where the store has keys: a release that verifies from the fingerprint of the key, of the bundle beside it."""
    async with fleet_hub(tmp_path) as hub:
        bundle = await offer(hub)
        root = hub.store.root
    with Store.open(root) as store:
        serving = store.catalog.serving("pump", "pi4")
        assert statements_for(store, serving) == {}
        fingerprint = Keys(root).rotate().key_id
    out = tmp_path / "pump.tar"
    from typer.testing import CliRunner

    from server.cli import app

    for _ in range(2):
        told = CliRunner().invoke(
            app, ["export", "pump", "--device-class", "pi4", "--out", str(out), "--store", str(root)]
        )
        assert "signed" in told.stdout, told.output

    (tmp_path / "there").mkdir()
    unpack_bundle(out, tmp_path / "there")
    with tarfile.open(out) as archive:
        keys, signed = (Signed.from_json(archive.extractfile(it).read()) for it in ("keys.json", "release.json"))
    trust = first_trust(keys, fingerprint)
    release = trust.release(signed)
    require_adoptable(release, device_class="pi4", counter=release.counter - 1, now=release.issued + 86400)
    assert release.bundle == read_bundle(tmp_path / "there").hash == bundle
    assert isinstance(trust, Trust)
    with Store.open(root) as store, store.catalog.reading() as connection:
        from server.fleet import release_rows

        assert release_rows.live(connection) == []  # what lies in a file is meant for no device that is connected
