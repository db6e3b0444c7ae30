"""examples/mqtt_bridge.py between a real mosquitto and a real hub."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from bridged import NO_READINGS, check, payload, rows, serving
from brokers import MOSQUITTO, Process, bridge, needs_mosquitto, process
from conftest import NOW, eventually
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

pytestmark = [needs_mosquitto, pytest.mark.slow]
TOPICS = ["sensors/north", "sensors/south", "sensors/west"]


@pytest.fixture
def broker(tmp_path: Path, unused_tcp_port_factory: Any) -> Iterator[tuple[str, Process]]:
    """The address of a mosquitto that keeps what it could not deliver, and its process."""
    port = unused_tcp_port_factory()
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
        f"persistence_location {tmp_path}/\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with process([str(MOSQUITTO), "-c", str(settings)], tmp_path / "mosquitto.log", answers) as running:
        yield f"127.0.0.1:{port}", running


class Sensors:
    """Publishes readings and collects what is published about them; with a session, so that nothing is lost either way.

    Args:
        address: Of the broker.
    """

    def __init__(self, address: str) -> None:
        self.outcomes: dict[tuple[str, int], list[dict[str, Any]]] = {}
        """By series and time, everything that was said."""
        self.dead: list[tuple[str, bytes]] = []
        self._ready = False
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "sensors", protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(0)
        self._client.on_connect = lambda client, *_: client.subscribe([("scores/#", 1), ("dead-letters/#", 1)])
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        host, port = address.split(":")
        self._client.connect_async(host, int(port), clean_start=False, properties=session)
        self._client.reconnect_delay_set(1, 1)
        self._client.loop_start()

    def _on_subscribe(self, *_: object) -> None:
        self._ready = True

    def _on_message(self, _: object, __: object, message: mqtt.MQTTMessage) -> None:
        if message.topic.startswith("dead-letters/"):
            self.dead.append((message.topic.removeprefix("dead-letters/"), message.payload))
            return
        said = json.loads(message.payload)
        assert message.topic == f"scores/{said['series']}"
        self.outcomes.setdefault((said["series"], said["time"]), []).append(said)

    async def ready(self) -> bool:
        """Whether outcomes would be heard."""
        return self._ready

    def send(self, topic: str, said: bytes) -> None:
        """Publishes a reading."""
        self._client.publish(topic, said, qos=1)

    async def send_all(self, n: int) -> None:
        """Publishes n readings of every topic, a little faster than one a millisecond."""
        values = {topic: rows(seed, n) for seed, topic in enumerate(TOPICS)}
        for i in range(n):
            for topic in TOPICS:
                self.send(topic, payload(values[topic], i))
            await asyncio.sleep(0.004)
            await self._connected()

    async def _connected(self) -> None:
        """Waits out a broker that is away: paho sends new readings before old ones while it connects again."""
        if self._client.is_connected():
            return

        async def connected() -> bool:
            return self._client.is_connected()

        await eventually(connected)
        await asyncio.sleep(0.3)  # what was not acknowledged goes first

    async def heard(self, n: int) -> None:
        """Waits until something was said of n readings."""

        async def enough() -> bool:
            return len(self.outcomes) >= n

        await eventually(enough, 40)

    def close(self) -> None:
        """Ends the connection."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def sensors(broker: tuple[str, Process]) -> Iterator[Sensors]:
    """Sensors at the broker."""
    it = Sensors(broker[0])
    yield it
    it.close()


@asynccontextmanager
async def bridging(folder: Path, broker: str, port: int) -> AsyncIterator[Process]:
    """A bridge that has subscribed: from then on the broker keeps for it what it misses."""
    log = folder / "bridge.log"

    async def subscribed() -> bool:
        return "Granted QoS 1" in log.read_text()

    with process(bridge("mqtt_bridge", "--broker", broker, "--server", f"127.0.0.1:{port}"), log) as running:
        await eventually(subscribed)
        yield running


async def test_readings_get_their_scores(
    tmp_path: Path, unused_tcp_port: int, broker: tuple[str, Process], sensors: Sensors
) -> None:
    """Each reading has one outcome, its topic is the series; what is no reading is a dead letter; SIGTERM ends it."""
    address, _ = broker
    async with serving(tmp_path, unused_tcp_port) as hub:
        async with bridging(tmp_path, address, unused_tcp_port) as running:
            await eventually(sensors.ready)
            for said in NO_READINGS:
                sensors.send("sensors/north", said)
            await sensors.send_all(60)
            sensors.send("sensors/iso", b'{"time": "2023-11-14T22:13:20Z", "values": [1.0, null]}')
            await sensors.heard(181)

            async def buried() -> bool:
                return len(sensors.dead) == len(NO_READINGS)

            await eventually(buried)
            code = await asyncio.to_thread(running.stop)
        taken = hub.host.get("pump").accepted

    assert check(sensors.outcomes, TOPICS, 60) == 0
    assert all(len(said) == 1 for said in sensors.outcomes.values())
    assert sensors.outcomes["sensors/iso", NOW][0]["status"] == "INVALID"
    assert sensors.dead == [("sensors/north", said) for said in NO_READINGS]
    assert (taken, code) == (180, 0)


async def test_a_killed_bridge_loses_nothing(
    tmp_path: Path, unused_tcp_port: int, broker: tuple[str, Process], sensors: Sensors
) -> None:
    """Kill -9 in mid-stream, and again with readings in hand that no hub answers: all are scored at least once."""
    address, _ = broker
    async with AsyncExitStack() as later:
        async with serving(tmp_path, unused_tcp_port):
            running = await later.enter_async_context(bridging(tmp_path, address, unused_tcp_port))
            await eventually(sensors.ready)
            sending = asyncio.create_task(sensors.send_all(500))
            await sensors.heard(300)
            await asyncio.to_thread(running.stop, signal.SIGKILL)
            await asyncio.to_thread(running.start)
            await sensors.heard(600)
        await sending
        await asyncio.sleep(0.5)  # the bridge has taken readings, and can not have them scored
        await asyncio.to_thread(running.stop, signal.SIGKILL)
        async with serving(tmp_path, unused_tcp_port):
            await asyncio.to_thread(running.start)
            await sensors.heard(1500)

    check(sensors.outcomes, TOPICS, 500)


async def test_a_hub_that_restarts_loses_nothing(
    tmp_path: Path, unused_tcp_port: int, broker: tuple[str, Process], sensors: Sensors
) -> None:
    """The hub ends and starts again in mid-stream: no reading is lost, scores are those of an undisturbed run."""
    address, _ = broker
    async with AsyncExitStack() as later:
        async with serving(tmp_path, unused_tcp_port):
            running = await later.enter_async_context(bridging(tmp_path, address, unused_tcp_port))
            await eventually(sensors.ready)
            sending = asyncio.create_task(sensors.send_all(500))
            await sensors.heard(400)
        async with serving(tmp_path, unused_tcp_port):
            await sending
            await sensors.heard(1500)
            assert await asyncio.to_thread(running.stop) == 0

    check(sensors.outcomes, TOPICS, 500)


async def test_a_broker_that_restarts_loses_nothing(
    tmp_path: Path, unused_tcp_port: int, broker: tuple[str, Process], sensors: Sensors
) -> None:
    """The broker ends and starts again in mid-stream: every reading is scored at least once."""
    address, mosquitto = broker
    async with serving(tmp_path, unused_tcp_port), bridging(tmp_path, address, unused_tcp_port):
        await eventually(sensors.ready)
        sending = asyncio.create_task(sensors.send_all(500))
        await sensors.heard(400)
        await asyncio.to_thread(mosquitto.stop)
        await asyncio.to_thread(mosquitto.start)
        await sending
        await sensors.heard(1500)

    check(sensors.outcomes, TOPICS, 500)
