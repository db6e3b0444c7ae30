"""librdkafka's mock cluster in a process of its own: real sockets and the Kafka protocol, not Apache Kafka's broker.

Prints its address, and lives until its input ends.
"""

import sys

from confluent_kafka import Producer

cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
print(*(f"{it.host}:{it.port}" for it in cluster.list_topics(timeout=10).brokers.values()), sep=",", flush=True)
sys.stdin.read()
