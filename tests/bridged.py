"""Readings that go through a bridge, the hub behind it, and what must have become of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from conftest import NOW, QUICK_TRAINER, hub_settings, publish
from graphs import ewma_bundle, ewma_scores

from server.app import Hub

SECOND = 1_000_000_000
NO_READINGS = [
    b"",
    b"{",
    b"[1]",
    b"\xff",
    b'{"time": 1}',
    b'{"time": 1, "values": [1]}',
    b'{"time": 1, "values": {"f1": 1, "x": 2}}',
    b'{"time": 1, "values": ["a", 2]}',
    b'{"time": 1, "values": [true, 2]}',
    b'{"time": 1.5, "values": [1, 2]}',
    b'{"time": "noon", "values": [1, 2]}',
    b'{"time": 99999999999999999999, "values": [1, 2]}',
]
Outcomes = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]


def rows(seed: int, n: int) -> np.ndarray:
    """[n, 2] of readings of a series, some of them anomalies."""
    values = np.random.default_rng(seed).normal(size=(n, 2))
    values[20::31] += 8
    return values.astype(np.float32)


def payload(values: np.ndarray, i: int) -> bytes:
    """Reading i of a series."""
    said = {"time": NOW + i * SECOND, "values": {"f2": float(values[i, 1]), "f1": float(values[i, 0])}}
    return json.dumps(said).encode()


@asynccontextmanager
async def serving(folder: Path, port: int) -> AsyncIterator[Hub]:
    """A hub with a detector, on a port that it comes back to."""
    hub = Hub(hub_settings(folder, listen=f"127.0.0.1:{port}", drain_seconds=0.3), trainer=QUICK_TRAINER)
    await hub.start()
    try:
        if "pump" not in hub.host:
            await publish(hub, ewma_bundle("pump"))
        yield hub
    finally:
        await hub.stop()


def check(outcomes: Outcomes, series: Sequence[str], n: int) -> int:
    """Every reading was scored at least once, with the score of an undisturbed run; returns how many have no score.

    Those were scored before something crashed, and their outcome got lost with it; they were no anomalies.
    """
    without = 0
    for seed, name in enumerate(series):
        expected = ewma_scores(rows(seed, n))
        for i in range(n):
            said = outcomes[name, NOW + i * SECOND]
            scores = [it["score"] for it in said if it["score"] is not None]
            np.testing.assert_allclose(scores, expected[i], rtol=1e-4)
            assert {it["anomaly"] for it in said if it["score"] is not None} <= {bool(expected[i] >= 3)}
            if expected[i] >= 3:
                assert scores, (name, i, said)
            elif i >= 3 and not scores:
                assert {it["status"] for it in said} <= {"LATE", "DUPLICATE"}
                without += 1
    return without
