"""Scores what stands in a Kafka topic, and writes what became of it to another.

    python examples/kafka_scores.py pump --topic sensors --out scores --dead dead-letters

Values are JSON (readings.py), and so are outcomes (bridging.py). The key of a message is its series, and that of its
outcome; a value that can not be read goes to the topic `--dead`. All partitions that were assigned are scored together,
many series in one message; start more processes with the same `--group` to share them.

At least once: offsets are committed only after the outcomes were delivered. Whatever librdkafka can be told stands in
`--set`, for example `--set security.protocol=SSL --set ssl.ca.location=ca.pem`.
"""

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bridging import arguments, logger, run, scored, scoring
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

POLL_SECONDS = 0.2


async def bridge(options: argparse.Namespace) -> None:
    """Runs until it is cancelled, or the detector can not score."""
    common: dict[str, Any] = {"bootstrap.servers": options.brokers, **dict(it.split("=", 1) for it in options.set)}
    consumer = Consumer(
        {"group.id": options.group, "auto.offset.reset": "earliest", **common, "enable.auto.commit": False}
    )
    producer = Producer({"enable.idempotence": True, **common})
    consumer.subscribe([options.topic])
    # One thread, so that nothing is called while the consumer is being closed.
    apart = partial(asyncio.get_running_loop().run_in_executor, ThreadPoolExecutor(1))
    undelivered: list[Any] = []
    try:
        async with scoring(options) as (features, stream):
            while True:
                arrived = await apart(consumer.consume, options.batch, POLL_SECONDS)
                for error in filter(None, (it.error() for it in arrived)):
                    logger.warning("%s", error)
                batch = [it for it in arrived if not it.error()]
                outcomes = await scored(stream, features, [(_series(it), it.value()) for it in batch])
                for it, outcome in zip(batch, outcomes, strict=True):
                    topic, value = (options.out, json.dumps(outcome)) if outcome else (options.dead, it.value())
                    producer.produce(topic, value, it.key(), on_delivery=lambda e, _: e and undelivered.append(e))
                while await apart(producer.flush, POLL_SECONDS):
                    pass  # SIGTERM need not wait for a broker that is away
                if undelivered:
                    raise KafkaException(undelivered[0])
                if batch:
                    await apart(_commit, consumer, batch)
    finally:
        await apart(consumer.close)


def _series(message: Message) -> str:
    return (message.key() or b"").decode(errors="replace")


def _commit(consumer: Consumer, batch: list[Message]) -> None:
    ends = {(it.topic(), it.partition()): it.offset() + 1 for it in batch}
    try:
        consumer.commit(offsets=[TopicPartition(*place, end) for place, end in ends.items()], asynchronous=False)
    except KafkaException as error:  # the partitions have been given to another, who will score them again
        logger.warning("offsets were not committed: %s", error)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--brokers", default="127.0.0.1:9092", metavar="HOST:PORT,...", help="(default: %(default)s)")
    parser.add_argument("--topic", default="sensors", help="what to read (default: %(default)s)")
    parser.add_argument("--group", default="prunewatch", help="of consumers (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of librdkafka")
    asked = parser.parse_args()
    run(lambda: bridge(asked))
