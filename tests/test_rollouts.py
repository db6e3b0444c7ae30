"""How a new version reaches the devices of a class: some, more, all; and how it stops. The clock is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Hub, eventually
from devices import Device, Operator, event, operating, refused
from fleet_hub import Clock, fleet_hub, offer

from detectors.errors import PreconditionError
from prunewatch.client import Client
from prunewatch.v1 import fleet_pb2 as pb
from server.fleet.in_use import InUse
from server.fleet.judging import Count, judge, wanted_devices
from server.fleet.records import RolloutRow, Served
from server.fleet_settings import Rollout

WINDOW, PATIENCE = 600.0, 3600.0
STAGES = {it.number: it.name.removeprefix("ROLLOUT_STAGE_") for it in pb.RolloutStage.DESCRIPTOR.values}
NAMES = tuple(f"d{number}" for number in range(8))


@pytest.fixture
def clock() -> Clock:
    """The hub's."""
    return Clock()


@pytest.fixture
async def hub(tmp_path: Path, clock: Clock) -> AsyncIterator[Hub]:
    """A hub with `pi4`, whose budget is a p99 of 1 ms; it looks at roll-outs only when a test says so."""
    async with fleet_hub(tmp_path, clock) as running:
        yield running


@pytest.fixture
async def operator(hub: Hub) -> AsyncIterator[Operator]:
    """Its operator."""
    async with operating(hub) as it:
        yield it


class Class:
    """The devices of `pi4` and what they run."""

    def __init__(self, hub: Hub, operator: Operator, devices: list[Device]) -> None:
        self.hub, self.operator, self.devices = hub, operator, devices

    @classmethod
    async def of(cls, hub: Hub, operator: Operator, names: tuple[str, ...] = NAMES) -> Class:
        """Devices that all serve version 1."""
        await offer(hub)
        made = cls(hub, operator, await operator.connected(*names))
        await eventually(lambda: made.run({1: len(names)}))
        for device in made.devices:
            await made.say(device)
        return made

    async def run(self, versions: dict[int, int]) -> bool:
        """Whether so many devices are told to run each version."""
        told = [it.releases["pump"].version if it.releases else 0 for it in self.devices]
        return {version: told.count(version) for version in set(told)} == versions

    async def runs(self, versions: dict[int, int]) -> None:
        """Waits for that."""
        await eventually(lambda: self.run(versions))

    def on(self, version: int) -> list[Device]:
        """Devices that are connected and told to run a version."""
        links = self.hub.fleet.links
        told = [it for it in self.devices if it.releases and it.releases["pump"].version == version]
        return [it for it in told if links.is_connected(it.name)]

    async def say(self, device: Device, state: str = "SERVING", **fields: Any) -> None:
        """A status that the hub has heard."""
        before = self.hub.fleet.presence.of(device.name)
        await device.say(state=state, **fields)

        async def heard() -> bool:
            return self.hub.fleet.presence.of(device.name) is not before

        await eventually(heard)

    async def prove(self, version: int, clock: Clock, seconds: float = WINDOW) -> None:
        """All on a version serve it, for so long; and the hub looks."""
        for device in self.on(version):
            await self.say(device)
        await self.hub.fleet.look()
        clock.now += seconds
        for device in self.on(version):
            await self.say(device)
        await self.hub.fleet.look()

    async def newest(self) -> pb.Rollout:
        """The newest roll-out."""
        return (await self.operator.rollouts())[0]

    async def stage(self) -> str:
        """Its stage."""
        return STAGES[(await self.newest()).stage]


async def test_some_more_all(hub: Hub, operator: Operator, clock: Clock) -> None:
    """One canary, then a quarter, then all: a stage begins when every device of the one before has served so long."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    assert await fleet.stage() == "CANARY"

    await fleet.prove(2, clock, WINDOW - 1)
    assert await fleet.stage() == "CANARY"
    clock.now += 1
    await hub.fleet.look()
    await fleet.runs({1: 6, 2: 2})
    assert await fleet.stage() == "PARTIAL"

    await fleet.prove(2, clock)
    await fleet.runs({2: 8})
    done = await fleet.newest()
    assert (STAGES[done.stage], done.asked, done.serving, done.failed) == ("COMPLETE", 2, 2, 0)
    assert done.HasField("end_time")
    value = hub.metrics.registry.get_sample_value
    assert value("prunewatch_rollouts_ended_total", {"device_class": "pi4", "outcome": "complete"}) == 1


async def test_the_first_version_of_a_class_needs_no_roll_out(hub: Hub, operator: Operator) -> None:
    """There is nothing to compare it with and nothing to go back to: all get it."""
    await Class.of(hub, operator)

    assert await operator.rollouts() == []


@pytest.mark.parametrize("state", ["FELL_BACK", "REFUSED"])
async def test_a_device_that_goes_back_stops_it(hub: Hub, operator: Operator, state: str) -> None:
    """The canary gets the old bundle under a newer number, the class serves the old version, and so it stays."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    (canary,) = fleet.on(2)
    taken = canary.releases["pump"].counter

    await fleet.say(canary, state, reason="p99 of 9 ms")
    await hub.fleet.look()

    await fleet.runs({1: 8})
    assert canary.releases["pump"].counter > taken
    stopped = await fleet.newest()
    assert (STAGES[stopped.stage], stopped.failed) == ("STOPPED", 1)
    assert "p99 of 9 ms" in stopped.reason
    assert canary.name in stopped.reason
    assert hub.store.catalog.serving("pump", "pi4").version == 1
    assert [it.state for it in hub.store.catalog.adoptions("pump") if it.device_class == "pi4"] in ([], ["rolled_back"])
    await hub.fleet.settle()
    assert len(await operator.rollouts()) == 1


async def test_a_report_of_a_fall_counts_without_a_status(hub: Hub, operator: Operator) -> None:
    """What came as a report (a link that broke, a device that started anew) stops it too, and is counted."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    (canary,) = fleet.on(2)

    await canary.report(event(1, "FELL_BACK", canary.releases["pump"].counter))
    await eventually(lambda: _kept(canary))
    await hub.fleet.look()

    await fleet.runs({1: 8})
    value = hub.metrics.registry.get_sample_value
    assert value("prunewatch_bundle_rejections_total", {"device_class": "pi4", "reason": "fell_back"}) == 1


async def _kept(device: Device) -> bool:
    return device.kept == 1


async def test_over_budget_stops_it(hub: Hub, operator: Operator) -> None:
    """A canary that serves, but takes more than 1.5 times the budget of its class."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})

    (canary,) = fleet.on(2)
    for _ in range(2):
        await fleet.say(canary, step_p99_seconds=1.6e-3)
        await hub.fleet.look()
    await fleet.runs({1: 7, 2: 1})  # so little says nothing
    await fleet.say(canary, step_p99_seconds=1.7e-3)
    await hub.fleet.look()

    await fleet.runs({1: 8})
    assert "budget 1 ms" in (await fleet.newest()).reason


async def test_what_is_no_slower_than_before_is_not_stopped_for_the_budget(hub: Hub, operator: Operator) -> None:
    """A busy device is slow with either: going back from 2 ms to 3 ms would make nothing better."""
    fleet = await Class.of(hub, operator)
    for device in fleet.devices:
        for _ in range(3):
            await fleet.say(device, step_p99_seconds=3e-3)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})

    (canary,) = fleet.on(2)
    for _ in range(3):
        await fleet.say(canary, step_p99_seconds=2e-3)
        await hub.fleet.look()
    await fleet.runs({1: 7, 2: 1})
    for _ in range(5):
        await fleet.say(canary, step_p99_seconds=4.6e-3)
        await hub.fleet.look()

    await fleet.runs({1: 8})
    assert "before 3 ms" in (await fleet.newest()).reason


async def test_a_flood_of_alarms_stops_it(hub: Hub, operator: Operator) -> None:
    """A canary that flags a tenth of its points where its class mates flag one in a hundred."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    for device in fleet.devices:
        await fleet.say(device, points=1000, flagged=10)
    await hub.fleet.look()

    for device in fleet.on(1):
        await fleet.say(device, points=2000, flagged=20)
    await fleet.say(fleet.on(2)[0], points=2000, flagged=110)
    await hub.fleet.look()

    await fleet.runs({1: 8})
    assert "flags 10.0%" in (await fleet.newest()).reason


async def test_what_all_flag_is_no_flood(hub: Hub, operator: Operator, clock: Clock) -> None:
    """An incident that every device sees does not stop it."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    for points, flagged in ((1000, 10), (2000, 400)):
        for device in fleet.devices:
            await fleet.say(device, points=points, flagged=flagged)
        await hub.fleet.look()

    assert await fleet.stage() == "CANARY"


async def test_one_of_many_may_fail(hub: Hub, operator: Operator, clock: Clock) -> None:
    """Below the share `failures` a device that lies, or is broken, does not stop it; it keeps what it has."""
    fleet = await Class.of(hub, operator, tuple(f"d{number}" for number in range(12)))
    hub.fleet.rollouts._settings = Rollout(canaries=11, failures=0.1)
    await offer(hub, 2)
    await fleet.runs({1: 1, 2: 11})
    liar = fleet.on(2)[0]

    for device in fleet.on(2):
        await fleet.say(device, "REFUSED" if device is liar else "SERVING")
    await hub.fleet.look()
    clock.now += WINDOW
    await hub.fleet.look()

    await fleet.runs({2: 12})
    assert (await fleet.newest()).failed == 1


async def test_a_device_that_is_away_does_not_hold_it_up(hub: Hub, operator: Operator, clock: Clock) -> None:
    """Another takes the place of a canary that was not heard of for longer than `patience`."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    (gone,) = fleet.on(2)
    await gone.hang_up()
    await eventually(lambda: _away(hub, gone))

    clock.now += PATIENCE
    await hub.fleet.look()
    assert (await fleet.newest()).asked == 1
    clock.now += 1
    await hub.fleet.look()
    await fleet.runs({1: 6, 2: 2})

    await fleet.prove(2, clock)
    assert await fleet.stage() == "COMPLETE"


async def _away(hub: Hub, device: Device) -> bool:
    return not hub.fleet.links.is_connected(device.name)


async def test_a_device_that_comes_later_gets_what_is_meant_for_it(hub: Hub, operator: Operator) -> None:
    """During a roll-out that of the class; what was decided while it was away when it is back."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})

    (late,) = await operator.connected("late")
    assert late.releases["pump"].version == 1

    await late.hang_up()
    rollout = await fleet.newest()
    for _ in range(2):
        await operator.stub.AdvanceRollout(pb.AdvanceRolloutRequest(name=rollout.name))
    await late.connect()
    await eventually(lambda: _version(late, 2))


async def _version(device: Device, version: int) -> bool:
    return bool(device.releases) and device.releases["pump"].version == version


async def test_an_operator_advances_and_stops(hub: Hub, operator: Operator) -> None:
    """A stage further at once; then back, with the reason kept; what has ended can be neither."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    name = (await fleet.newest()).name

    advanced = await operator.stub.AdvanceRollout(pb.AdvanceRolloutRequest(name=name))
    await fleet.runs({1: 6, 2: 2})
    stopped = await operator.stub.StopRollout(pb.StopRolloutRequest(name=name, reason="smells of smoke"))

    await fleet.runs({1: 8})
    assert STAGES[advanced.stage] == "PARTIAL"
    assert (STAGES[stopped.stage], stopped.reason) == ("STOPPED", "smells of smoke")
    assert hub.store.catalog.serving("pump", "pi4").version == 1
    for call in (operator.stub.AdvanceRollout, operator.stub.StopRollout):
        request = pb.AdvanceRolloutRequest if call is operator.stub.AdvanceRollout else pb.StopRolloutRequest
        assert await refused(call(request(name=name))) is grpc.StatusCode.FAILED_PRECONDITION
    assert (
        await refused(operator.stub.GetRollout(pb.GetRolloutRequest(name="rollouts/99"))) is grpc.StatusCode.NOT_FOUND
    )


async def test_a_pinned_class_does_not_roll(hub: Hub, operator: Operator, clock: Clock) -> None:
    """What is pinned in the middle of a roll-out stays where it is, however well it goes, until it is unpinned."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.pin("pump", "pi4")
        await fleet.prove(2, clock)
        waiting = await fleet.newest()
        with pytest.raises(PreconditionError, match="pinned"):
            hub.fleet.rollouts.stop(1, "by hand")
        await client.unpin("pump", "pi4")
    await hub.fleet.look()

    assert (STAGES[waiting.stage], "pinned" in waiting.reason) == ("CANARY", True)
    await fleet.runs({1: 6, 2: 2})


async def test_rolling_back_reaches_all_at_once(hub: Hub, operator: Operator, clock: Clock) -> None:
    """An operator's roll back of a class is a new release of the old bundle with a newer number, for everybody."""
    fleet = await Class.of(hub, operator)
    first = fleet.devices[0].releases["pump"]
    await offer(hub, 2)
    for _ in range(2):
        await operator.stub.AdvanceRollout(pb.AdvanceRolloutRequest(name="rollouts/1"))
    await fleet.runs({2: 8})
    second = fleet.devices[0].releases["pump"]

    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.roll_back("pump", device_class="pi4")
    await fleet.runs({1: 8})

    third = fleet.devices[0].releases["pump"]
    assert third.bundle == first.bundle
    assert first.counter < second.counter < third.counter
    assert len(await operator.rollouts()) == 1


async def test_a_newer_version_takes_the_place_of_one_that_rolls_out(hub: Hub, operator: Operator) -> None:
    """The older roll-out ends, its canary goes back or on, and every number that a device sees ascends."""
    fleet = await Class.of(hub, operator)
    await offer(hub, 2)
    await fleet.runs({1: 7, 2: 1})
    counters = {it.name: it.releases["pump"].counter for it in fleet.devices}

    await offer(hub, 3)

    await fleet.runs({1: 7, 3: 1})
    stages = [STAGES[it.stage] for it in await operator.rollouts()]
    assert stages == ["CANARY", "STOPPED"]
    assert all(it.releases["pump"].counter >= counters[it.name] for it in fleet.devices)
    assert hub.store.catalog.serving("pump", "pi4").version == 3


async def test_what_is_to_be_measured_waits(hub: Hub, operator: Operator) -> None:
    """Nothing changes on any device until it was measured; what measures badly is stopped, the class serves the old."""
    fleet = await Class.of(hub, operator)
    hub.fleet.rollouts.needs_measuring = lambda *_: True
    connected = frozenset(hub.fleet.links.connected())
    await offer(hub, 2)
    await hub.fleet.look()
    assert await fleet.stage() == "MEASURING"
    assert await fleet.run({1: 8})

    await hub.fleet.steer(hub.fleet.rollouts.measured, 1, connected)
    await fleet.runs({1: 7, 2: 1})
    assert await fleet.stage() == "CANARY"

    await offer(hub, 3)
    told = fleet.devices[0].told
    await hub.fleet.steer(lambda: hub.fleet.rollouts.measured(2, connected, problem="p99 of 3 ms measured"))
    await hub.fleet.settle()
    assert (await fleet.newest()).reason == "p99 of 3 ms measured"
    assert hub.store.catalog.serving("pump", "pi4").version == 1
    await fleet.runs({1: 8})
    assert fleet.devices[0].told - told <= 1


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, clock: Clock) -> None:
    """Roll-outs, who was asked, since when it serves, and every number come back; nothing goes to anybody else."""
    async with fleet_hub(tmp_path, clock) as hub, operating(hub) as operator:
        fleet = await Class.of(hub, operator)
        await offer(hub, 2)
        await fleet.runs({1: 7, 2: 1})
        (canary,) = fleet.on(2)
        await fleet.say(canary)
        await hub.fleet.look()
    clock.now += WINDOW
    async with fleet_hub(tmp_path, clock) as hub, operating(hub) as operator:
        again = Device(operator.channel, canary.name)
        again.key, again.trust = canary.key, canary.trust
        operator.devices.append(again)
        await again.connect()
        assert again.releases == canary.releases
        await hub.fleet.look()
        assert STAGES[(await operator.rollouts())[0].stage] == "PARTIAL"


# releases


async def test_a_release_is_issued_again_before_it_ends(hub: Hub, operator: Operator, clock: Clock) -> None:
    """When half of its time is over: the same bundle, a newer number; a device never holds one that has expired."""
    fleet = await Class.of(hub, operator, ("north",))
    (device,) = fleet.devices
    first = device.releases["pump"]
    valid = first.expires - first.issued

    clock.now += valid / 2 - 1
    await hub.fleet.settle()
    assert device.releases["pump"] == first
    clock.now += 2
    await hub.fleet.settle()
    await eventually(lambda: _newer(device, first.counter))

    second = device.releases["pump"]
    assert second.bundle == first.bundle
    assert second.expires - clock.now > valid / 2


async def _newer(device: Device, counter: int) -> bool:
    return device.releases["pump"].counter > counter


async def test_other_settings_are_another_release(tmp_path: Path, clock: Clock) -> None:
    """A threshold that was changed in the configuration reaches devices without a new bundle or roll-out."""
    detector = {"features": ["f1", "f2"], "device_classes": ["hub", "pi4"], "false_alarm_rate": 0.001}
    async with fleet_hub(tmp_path, clock, detectors={"pump": detector}) as hub, operating(hub) as operator:
        await offer(hub)
        (device,) = await operator.connected("north")
        first = device.releases["pump"]
    stricter = {**detector, "false_alarm_rate": 0.0001}
    async with fleet_hub(tmp_path, clock, detectors={"pump": stricter}) as hub, operating(hub) as operator:
        again = Device(operator.channel, "north")
        again.key, again.trust = device.key, device.trust
        operator.devices.append(again)
        await again.connect()
        second = again.releases["pump"]
        assert await operator.rollouts() == []

    assert (second.bundle, second.settings.false_alarm_rate) == (first.bundle, 0.0001)
    assert second.counter > first.counter


async def test_a_detector_that_is_deleted_is_stopped_on_devices(hub: Hub, operator: Operator) -> None:
    """It is in no list any more; one that is made under its name has newer numbers than any that devices have seen."""
    fleet = await Class.of(hub, operator, ("north",))
    (device,) = fleet.devices
    counter = device.releases["pump"].counter
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.delete("pump")
    await hub.fleet.settle()
    await eventually(lambda: _nothing(device))

    hub.fleet._clock.now += 1
    await offer(hub)
    await eventually(lambda: _version(device, 1))
    assert device.releases["pump"].counter > counter


async def _nothing(device: Device) -> bool:
    return device.releases == {}


async def test_versions_that_devices_run_are_kept(hub: Hub, operator: Operator) -> None:
    """However many newer ones the hub has: the files of what a class runs can be fetched."""
    fleet = await Class.of(hub, operator, ("north",))
    async with Client(f"127.0.0.1:{hub.listener.port}") as client:
        await client.pin("pump", "pi4")
    for version in range(2, 16):
        await offer(hub, version)
    await fleet.runs({1: 1})
    assert await fleet.devices[0].fetch()


# judging


ROW = RolloutRow(1, "pump", "pi4", 2, "new", 1, "old", 10, "canary", "", 0.0, None)
GOOD = Served("pump", "new", 10, "serving", "", 10, 500, 0, 1e-4, 2e-4, 1)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "serving"),
        ({"state": "trying"}, "asked"),
        ({"bundle": "old", "state": "fetching"}, "asked"),
        ({"bundle": "old", "state": "refused", "asked_counter": 9}, "asked"),
        ({"bundle": "old", "state": "refused"}, "failed"),
    ],
)
def test_what_is_believed_of_a_device(hub_budget: Any, fields: dict[str, Any], state: str) -> None:
    """An older refusal says nothing of this release."""
    served = Served(**{**vars(GOOD), **fields})
    verdict = judge(ROW, served, hub_budget, Rollout(), count=Count(500, 0), usual_share=0.001)

    assert verdict.state == state


@pytest.mark.parametrize(
    ("p99", "usual"), [(1.6e-3, (1e-4, 1.6e-3)), (0.0, None), (3600.0, None), (5e-5, None), (None, None)]
)
def test_what_is_believed_of_steps_in_use(p99: float | None, usual: Any) -> None:
    """Times that can not be say nothing at all; a median of statuses is taken, with what the device ran before."""
    in_use = InUse("old", ((1e-4, 3e-4), (1e-4, 2e-4), (1e-4, 9e-4)))
    for _ in range(3):
        in_use = in_use.heard(replace(GOOD, step_p99=p99))

    assert (in_use.usual, in_use.before) == (usual, (1e-4, 3e-4))


@pytest.fixture
def hub_budget() -> Any:
    """A p99 of 1 ms."""
    from server.config import Budget

    return Budget(p99=1e-3)


def test_counts_that_begin_anew() -> None:
    """A device that has restarted is not taken for one that flags less than nothing."""
    assert Count(10, 1).since(Count(1000, 500)) == Count(10, 1)
    assert Count(1200, 502).since(Count(1000, 500)).share == 0.01
    assert Count(1100, 600).since(Count(1000, 500)).share is None


@pytest.mark.parametrize(("canaries", "total", "wanted"), [(1, 0, 0), (1, 1, 1), (0.5, 9, 5), (0.001, 9, 1), (4, 3, 3)])
def test_how_many_canaries(canaries: float, total: int, wanted: int) -> None:
    """A number or a share; at least one, at most all."""
    assert wanted_devices(canaries, total) == wanted
