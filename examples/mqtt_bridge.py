"""Scores what sensors publish over MQTT 5, and publishes what became of it.

    python examples/mqtt_bridge.py pump --topic 'sensors/#' --out scores --dead dead-letters

Readings are JSON (readings.py), and so are outcomes (bridging.py). The topic is the series: the outcome of
`sensors/north` goes to `scores/sensors/north`, a payload that can not be read to `dead-letters/sensors/north`.

At least once: a reading is acknowledged only after the broker has accepted its outcome. Sensors publish with QoS 1; the
broker keeps what is not delivered (mosquitto: `persistence true`, `max_queued_messages 0`).
"""

import argparse
import asyncio
import json

import paho.mqtt.client as mqtt
from bridging import arguments, logger, run, scored, scoring
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


async def bridge(options: argparse.Namespace) -> None:
    """Runs until it is cancelled, the detector can not score, or the broker refuses an outcome."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue = asyncio.Queue()  # bounded: the broker sends `--batch` at most that are not acknowledged
    accepted: dict[int, asyncio.Future] = {}
    lost = 0  # connections; an acknowledgement belongs to the one over which its message came

    def on_connect(broker: mqtt.Client, _, __, reason, ___) -> None:  # runs in the thread of the MQTT client
        logger.info("connection to the broker: %s", reason)
        broker.subscribe(options.topic, qos=1)

    def on_disconnect(*_) -> None:
        nonlocal lost
        lost += 1

    def settle(mid: int, reason) -> None:
        if it := accepted.pop(mid, None):
            it.set_exception(ConnectionError(f"outcome refused: {reason}")) if reason.is_failure else it.set_result(
                None
            )

    broker = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, options.client_id, protocol=mqtt.MQTTv5, manual_ack=True)
    broker.on_connect, broker.on_disconnect = on_connect, on_disconnect
    broker.on_subscribe = lambda *it: logger.info("subscription to %s: %s", options.topic, *it[3])
    broker.on_message = lambda *it: loop.call_soon_threadsafe(arrived.put_nowait, (lost, it[2]))
    broker.on_publish = lambda *it: loop.call_soon_threadsafe(settle, it[2], it[3])
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval, session.ReceiveMaximum = 7 * 86_400, options.batch
    host, _, port = options.broker.rpartition(":")
    broker.connect_async(host, int(port), clean_start=False, properties=session)
    try:
        async with scoring(options) as (features, stream):
            broker.loop_start()
            while True:
                batch = [await arrived.get()]
                batch += [arrived.get_nowait() for _ in range(arrived.qsize())]  # what came while the last was scored
                outcomes = await scored(stream, features, [(it.topic, it.payload) for _, it in batch])
                for (_, it), outcome in zip(batch, outcomes, strict=True):
                    topic, payload = (options.out, json.dumps(outcome)) if outcome else (options.dead, it.payload)
                    accepted[broker.publish(f"{topic}/{it.topic}", payload, qos=1).mid] = loop.create_future()
                await asyncio.gather(*accepted.values())
                for connection, it in batch:
                    if connection == lost:
                        broker.ack(it.mid, it.qos)
    finally:
        broker.disconnect()
        broker.loop_stop()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--broker", default="127.0.0.1:1883", metavar="HOST:PORT", help="MQTT (default: %(default)s)")
    parser.add_argument("--topic", default="sensors/#", help="what to subscribe to (default: %(default)s)")
    parser.add_argument("--client-id", default="prunewatch", metavar="ID", help="of the session (default: %(default)s)")
    asked = parser.parse_args()
    run(lambda: bridge(asked))
