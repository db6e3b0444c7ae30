"""What proves itself on a device stays; what misbehaves goes back, and is not tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from agents import Points, agent
from device_hub import CLASS, DeviceHub, pump
from graphs import ewma_graph
from onnx import TensorProto, helper, numpy_helper

from detectors.bundle import GRAPH, Bundle, Lineage, NetworkInfo, make_bundle
from prunewatch.client import ServiceError
from server.edge.deployment import Window
from server.edge.reports import ReleaseState
from server.edge.slots import STARTS_WITH_A_WAY_BACK, STARTS_WITHOUT, Slots

PATIENT = Window(points=300, seconds=600.0, look_seconds=0.1)


def broken_scores(version: int) -> Bundle:
    """Scores that are no numbers."""
    return pump(version, gain=float("nan"))


def failing_steps(version: int, above: float) -> Bundle:
    """Fails at every step of points with a value above some number: a shape that does not fit."""
    wide = [None, 2]
    nodes = [
        helper.make_node("ReduceMax", ["values"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["odd"], to=TensorProto.INT64),
        helper.make_node("Mul", ["odd", "five"], ["more"]),
        helper.make_node("Add", ["more", "two"], ["width"]),
        helper.make_node("Concat", ["rest", "width"], ["shape"], axis=0),
        helper.make_node("Reshape", ["values", "shape"], ["shaped"]),
        helper.make_node("ReduceSum", ["shaped", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "little"], ["score"]),
        helper.make_node("Identity", ["values"], ["contribution"]),
    ]
    numbers = {"five": [5], "two": [2], "rest": [-1], "axis": [1]}
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, wide)],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("contribution", TensorProto.FLOAT, wide),
        ],
        [
            *(numpy_helper.from_array(np.array(it, np.int64), name) for name, it in numbers.items()),
            numpy_helper.from_array(np.array(above, np.float32), "limit"),
            numpy_helper.from_array(np.array(0.1, np.float32), "little"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return make_bundle(
        {GRAPH: model.SerializeToString()},
        detector="pump",
        version=version,
        device_class=CLASS,
        network=NetworkInfo(kind="lstm", units={"lstm0": 2}, parameters=3, macs=2),
        features=["f1", "f2"],
        warm_up_points=3,
        lineage=Lineage(cause="fit", seed=0, data_rows=100),
    )


BAD = {
    "alarm flood": lambda: pump(2, gain=1000.0),
    "no numbers": lambda: broken_scores(2),
    "times as long": lambda: pump(2, wasted=6),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", BAD)
async def test_what_misbehaves_goes_back_and_is_not_tried_again(tmp_path: Path, reason: str) -> None:
    """The old slot serves, the hub is told why, and the same counter changes nothing; a newer one is tried."""
    async with DeviceHub() as hub:
        good = hub.offer(pump(gain=0.5), tmp_path)
        await hub.desire(hub.release(good))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path), window=PATIENT) as running:
            await hub.state("TRYING")
            points, done = Points(), asyncio.Event()
            flowing = asyncio.create_task(points.flow(running, done.is_set))
            await hub.state("SERVING")
            await hub.desire(hub.release(hub.offer(BAD[reason](), tmp_path), version=2))
            fell = await hub.state("FELL_BACK", counter=2, seconds=40)
            downloads = len(hub.downloads)
            await hub.desire(*hub.releases)
            await asyncio.sleep(0.3)
            assert running.host.get("pump").served.version == 1
            await hub.desire(hub.release(hub.offer(pump(3, gain=0.5, alpha=0.12), tmp_path), version=3))
            await hub.state("TRYING", "SERVING", counter=3)
            done.set()
            replies = await flowing

    assert reason in fell.reason
    assert fell.bundle_hash == good
    assert (fell.counter, fell.asked_counter) == (1, 2)
    assert hub.downloads[downloads:]
    assert BAD[reason]().hash not in dict(hub.downloads[downloads:])
    assert (np.concatenate([it.statuses for it in replies])[3:] == 1).all()
    assert [it for it in hub.events() if it[0] == 2] == [(2, "TRYING"), (2, "FELL_BACK")]


@pytest.mark.parametrize(("above", "state"), [(-1.0, "REFUSED"), (0.5, "REFUSED"), (20.0, "FELL_BACK")])
async def test_steps_that_fail_are_misconduct(tmp_path: Path, above: float, state: str) -> None:
    """At all, or on the points of the live series: it never serves. On points to come: scores again in a moment."""
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path), window=PATIENT) as running:
            await hub.state("TRYING")
            points, failures = Points(), 0
            await points.send(running, 310)
            await hub.state("SERVING")
            await hub.desire(hub.release(hub.offer(failing_steps(2, above), tmp_path), version=2))
            waiting = asyncio.create_task(hub.state(state, counter=2))
            while not waiting.done():
                try:
                    on_trial = running.host.get("pump").served.version == 2
                    await points.send(running, 1, lambda values, high=30 * on_trial: values + high)
                except ServiceError as error:
                    failures += error.code == "INTERNAL"
                await asyncio.sleep(0.02)
            reply = await points.send(running, 1)

    assert "fail" in waiting.result().reason
    assert reply.version == 1
    assert (failures > 0) == (state == "FELL_BACK")


async def test_a_first_bundle_that_misbehaves_leaves_word(tmp_path: Path) -> None:
    """With nothing to go back to, callers are told why nothing scores; the next release does."""
    async with DeviceHub() as hub:
        await hub.desire(hub.release(hub.offer(broken_scores(1), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path), window=PATIENT) as running:
            await hub.state("TRYING")
            points = Points()
            await points.send(running, 30)
            await hub.state("FELL_BACK")
            with pytest.raises(ServiceError, match="no numbers"):
                await points.send(running, 1)
            await hub.desire(hub.release(hub.offer(pump(2), tmp_path), version=2))
            await hub.state("TRYING", counter=2)
            reply = await points.send(running, 10)

    assert reply.version == 2


def staged(folder: Path, hub: DeviceHub, version: int) -> tuple[Slots, int]:
    """Slots into which one more bundle has been put, on trial."""
    slots = Slots(folder / "slots")
    slots.recover()
    bundle = pump(version, alpha=0.1 + version / 100)
    release = hub.release(hub.offer(bundle, folder), version=version)
    parts = []
    for name in ("manifest.json", GRAPH):
        path = folder / f"{version}-{name}"
        path.write_bytes((folder / bundle.hash / name).read_bytes())
        parts.append(path)
    slots.put(release, hub_trust(hub).release(release), *parts)
    return slots, hub.counter


def hub_trust(hub: DeviceHub):
    """What a device of the hub trusts."""
    from server.releases import first_trust

    return first_trust(hub.key_set, hub.key.key_id)


@pytest.mark.parametrize("with_a_way_back", [False, True])
def test_starts_on_trial_are_bounded(tmp_path: Path, with_a_way_back: bool) -> None:
    """Whoever takes the process down with it is started so often and no more; starts that end in order do not count."""
    hub = DeviceHub()
    if with_a_way_back:
        slots, _ = staged(tmp_path, hub, 1)
        slots.prove()
    slots, counter = staged(tmp_path, hub, 2)
    bound = STARTS_WITH_A_WAY_BACK if with_a_way_back else STARTS_WITHOUT
    for _ in range(5):
        slots.count_start()
        slots.end_in_order()
    starts = 0
    while True:  # each turn is a process that dies
        slots = Slots(tmp_path / "slots")
        slots.recover()
        if not slots.starts_left:
            break
        slots.count_start()
        starts += 1
    given_up = slots.give_up(ReleaseState.FELL_BACK, "crashed")

    assert starts == bound
    assert given_up.counter == counter
    assert (slots.serving is not None) == with_a_way_back
    again = Slots(tmp_path / "slots")
    again.recover()
    assert again.state == slots.state
    assert again.state.given_up is not None


def test_a_damaged_slot_leaves_the_other_one(tmp_path: Path) -> None:
    """What served before it serves; with the state gone the slots say what they hold."""
    hub = DeviceHub()
    for version in (1, 2):
        slots, _ = staged(tmp_path, hub, version)
        slots.prove()
    assert slots.state.active == "b"
    slots.lose("b")
    assert slots.read(slots.serving)[0].version == 1
    (tmp_path / "slots/state.json").write_bytes(b"{")
    again = Slots(tmp_path / "slots")
    again.recover()

    assert again.serving == "a"
    assert again.state.trial == "a"
    assert again.state.counter == 1


def test_a_graph_that_is_ewma_is_what_is_served(tmp_path: Path) -> None:
    """The bytes in the slot are those that the manifest names, to the last one."""
    hub = DeviceHub()
    slots, _ = staged(tmp_path, hub, 2)
    release, bundle = slots.read("a")

    assert bundle.graph == ewma_graph(2, 0.12)
    assert bundle.hash == release.bundle
