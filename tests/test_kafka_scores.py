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
from confluent_kafka import Consumer, Producer
from conftest import eventually

pytestmark = pytest.mark.slow
SERIES = ["north", "south", "west", "east", "up"]
N = 400
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
            self._producer.list_topics(topic, 10)  # makes the topic, with four partitions
        self._consumer.subscribe(["scores", "dead-letters"])

    def send(self, series: str, said: bytes) -> None:
        """Writes a reading."""
        self._producer.produce("sensors", said, series)
        self._producer.poll(0)

    async def send_all(self) -> None:
        """Writes N readings of every series, a few a millisecond."""
        values = {name: rows(seed, N) for seed, name in enumerate(SERIES)}
        for i in range(N):
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

    def close(self) -> None:
        """Ends the connections."""
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
            await topics.heard(len(SERIES) * N)
            first = await asyncio.to_thread(running.stop)
            await asyncio.to_thread(running.start)
            topics.send("other", payload(rows(0, 1), 0))
            await topics.heard(len(SERIES) * N + 1)
            second = await asyncio.to_thread(running.stop)
        taken = hub.host.get("pump").accepted

    assert check(topics.outcomes, SERIES, N) == 0
    assert all(len(said) == 1 for said in topics.outcomes.values())
    assert topics.dead == NO_READINGS
    assert (taken, first, second) == (len(SERIES) * N + 1, 0, 0)


async def test_a_killed_bridge_loses_nothing(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """Kill -9 in mid-stream and start again: every reading is scored at least once, all anomalies are said."""
    async with serving(tmp_path, unused_tcp_port) as hub:
        with process(command(topics, unused_tcp_port), tmp_path / "bridge.log") as running:
            sending = asyncio.create_task(topics.send_all())
            await topics.heard(500)
            await asyncio.to_thread(running.stop, signal.SIGKILL)
            await asyncio.to_thread(running.start)
            await sending
            await topics.heard(len(SERIES) * N)
        taken = hub.host.get("pump").accepted

    check(topics.outcomes, SERIES, N)
    assert taken == len(SERIES) * N


async def test_a_hub_that_restarts_loses_nothing(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """The hub ends and starts again in mid-stream: no reading is lost, scores are those of an undisturbed run."""
    with process(command(topics, unused_tcp_port), tmp_path / "bridge.log"):
        async with serving(tmp_path, unused_tcp_port):
            sending = asyncio.create_task(topics.send_all())
            await topics.heard(500)
        async with serving(tmp_path, unused_tcp_port):
            await sending
            await topics.heard(len(SERIES) * N)

    check(topics.outcomes, SERIES, N)


async def test_two_bridges_share_the_partitions(tmp_path: Path, unused_tcp_port: int, topics: Topics) -> None:
    """A second process of the group joins in mid-stream and the first ends: nothing is lost on the way."""
    async with serving(tmp_path, unused_tcp_port) as hub:
        with process(command(topics, unused_tcp_port), tmp_path / "one.log") as first:
            sending = asyncio.create_task(topics.send_all())
            await topics.heard(200)
            with process(command(topics, unused_tcp_port), tmp_path / "two.log"):
                await topics.heard(800)
                code = await asyncio.to_thread(first.stop)
                await sending
                await topics.heard(len(SERIES) * N)
        taken = hub.host.get("pump").accepted

    check(topics.outcomes, SERIES, N)
    assert (taken, code) == (len(SERIES) * N, 0)
