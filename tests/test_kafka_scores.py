"""examples/kafka_scores.py between librdkafka's mock cluster, over TCP, and a real hub."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridged import NO_READINGS, check, payload, rows, serving
from brokers import bridge, kafka_cluster, process
from confluent_kafka import Consumer, Producer, TopicPartition
from conftest import eventually

pytestmark = pytest.mark.slow
SERIES = ["north", "south", "west", "east", "up"]
N = 600
ALL = len(SERIES) * N
PARTITIONS = 4  # of a topic of the mock cluster
WARM = "warm"  # the series of a reading that tells that a bridge is at work: joining a group takes seconds
QUICK = [f"--set={it}" for it in ("session.timeout.ms=3000", "heartbeat.interval.ms=300")]  # a dead one is missed soon


class Topics:
    """Writes readings, and reads what is written about them.

    Args:
        address: Of the cluster.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.outcomes: dict[tuple[str, int], list[dict[str, Any]]] = {}
        """By series and time, everything that was said."""
        self.dead: list[bytes | None] = []
        self._producer = Producer({"bootstrap.servers": address})
        self._consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "auto.offset.reset": "earliest"})
        for topic in ("sensors", "scores", "dead-letters"):
            self._producer.list_topics(topic, 10)  # makes the topic
        places = [(topic, number) for topic in ("scores", "dead-letters") for number in range(PARTITIONS)]
        self._consumer.assign([TopicPartition(topic, number, 0) for topic, number in places])

    def send(self, series: str, said: bytes) -> None:
        """Writes a reading."""
        self._producer.produce("sensors", said, series)
        self._producer.poll(0)

    async def send_all(self, start: int = 0, stop: int = N) -> None:
        """Writes readings of every series, one of each every few milliseconds."""
        values = {name: rows(seed, N) for seed, name in enumerate(SERIES)}
        for i in range(start, stop):
            for name in SERIES:
                self.send(name, payload(values[name], i))
            await asyncio.sleep(0.004)
        await asyncio.to_thread(self._producer.flush)

    def read(self) -> None:
        """Reads what has been written."""
        for message in self._consumer.consume(1000, 0.05):
            assert not message.error(), message.error()
            if message.topic() == "dead-letters":
                self.dead.append(message.value())
                continue
            said = json.loads(message.value())
            assert message.key().decode() == said["series"]
            self.outcomes.setdefault((said["series"], said["time"]), []).append(said)

    async def heard(self, n: int) -> None:
        """Waits until something was said of n readings."""

        async def enough() -> bool:
            await asyncio.to_thread(self.read)
            return len(self.outcomes) >= n

        await eventually(enough, 60)

    async def warm(self) -> None:
        """Waits until a bridge is at work."""
        before = len(self.outcomes)
        self.send(WARM, payload(rows(0, before + 1), before))
        await self.heard(before + 1)

    def close(self) -> None:
        """Ends the connections."""
        self._producer.flush(5)
        self._consumer.close()


@pytest.fixture
def topics() -> Iterator[Topics]:
    """Topics of a cluster of their own."""
    with kafka_cluster() as address:
        it = Topics(address)
        yield it
        it.close()


def command(topics: Topics, port: int) -> list[str]:
    """The bridge between the topics and a hub."""
    return bridge("kafka_scores", "--brokers", topics.address, "--server", f"127.0.0.1:{port}", *QUICK)


async def test_readings_get_their_scores(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """Each reading has one outcome under the same key; what is no reading is a dead letter; SIGTERM ends it.

    Offsets were committed: the next process begins where this one has ended.
    """
    async with serving(tmp_path, unused_tcp_port) as hub:
        with process(command(topics, unused_tcp_port), tmp_path / "bridge.log") as running:
            for said in NO_READINGS:
                topics.send("north", said)
            await topics.send_all()
            await topics.heard(ALL)
            first = await asyncio.to_thread(running.stop)
            await asyncio.to_thread(running.start)
            await topics.warm()
            second = await asyncio.to_thread(running.stop)
        taken = hub.host.get("pump").accepted

    assert check(topics.outcomes, SERIES, N) == 0
    assert all(len(said) == 1 for said in topics.outcomes.values())
    assert topics.dead == NO_READINGS
    assert (taken, first, second) == (ALL + 1, 0, 0)


async def test_a_killed_bridge_loses_nothing(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """Kill -9 in mid-stream, and again with readings in hand that no hub answers: all are scored at least once."""
    with process(command(topics, unused_tcp_port), tmp_path / "bridge.log") as running:
        async with serving(tmp_path, unused_tcp_port):
            await topics.warm()
            sending = asyncio.create_task(topics.send_all(0, N // 2))
            await topics.heard(300)
            await asyncio.to_thread(running.stop, signal.SIGKILL)
            assert not sending.done()
            await asyncio.to_thread(running.start)
            await topics.heard(1 + ALL // 2)
        await topics.send_all(N // 2, N)
        await asyncio.sleep(1)  # the bridge has taken readings, and can not have them scored
        await asyncio.to_thread(running.stop, signal.SIGKILL)
        async with serving(tmp_path, unused_tcp_port):
            await asyncio.to_thread(running.start)
            await topics.heard(1 + ALL)

    check(topics.outcomes, SERIES, N)


async def test_a_hub_that_restarts_loses_nothing(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """The hub ends and starts again in mid-stream: no reading is lost, scores are those of an undisturbed run."""
    with process(command(topics, unused_tcp_port), tmp_path / "bridge.log"):
        async with serving(tmp_path, unused_tcp_port):
            await topics.warm()
            sending = asyncio.create_task(topics.send_all())
            await topics.heard(500)
        assert not sending.done()
        async with serving(tmp_path, unused_tcp_port):
            await sending
            await topics.heard(1 + ALL)

    check(topics.outcomes, SERIES, N)


async def test_two_bridges_share_the_partitions(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """A second process of the group joins in mid-stream and the first ends: nothing is lost on the way."""
    async with serving(tmp_path, unused_tcp_port) as hub:
        with process(command(topics, unused_tcp_port), tmp_path / "one.log") as first:
            await topics.warm()
            sending = asyncio.create_task(topics.send_all(0, N // 2))
            with process(command(topics, unused_tcp_port), tmp_path / "two.log"):
                await topics.heard(1 + ALL // 2)
                sending = asyncio.create_task(topics.send_all(N // 2, N))
                await topics.heard(1 + ALL * 2 // 3)
                code = await asyncio.to_thread(first.stop)
                await sending
                await topics.heard(1 + ALL)
        taken = hub.host.get("pump").accepted

    check(topics.outcomes, SERIES, N)
    assert (taken, code) == (1 + ALL, 0)
