"""Ports for what is started on a known address, perhaps again and again.

The system hands out the ports of its ephemeral range to whoever asks for any, and to both ends of connections: one
that was found free there may be somebody else's a moment later, above all while a server that is killed and started
again is down. Those below that range are given to nobody who does not ask for them by number.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
SPAN = 12_000
"""Ports below the ephemeral range that are ours to take."""


def ours() -> range:
    """Ports for this process: processes of one run of pytest-xdist share none."""
    low = int(RANGE.read_text().split()[0]) if RANGE.is_file() else 32_768
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return range(max(low - SPAN, 1024) + index, low, processes)


_turn = count(os.getpid() * 7)  # two runs at once begin at different places


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; the same one is not given again for thousands of calls."""
    ports = ours()
    for _ in ports:
        port = ports[next(_turn) % len(ports)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has just closed is free
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")


def free_address() -> str:
    """`127.0.0.1` with such a port."""
    return f"127.0.0.1:{free_port()}"
