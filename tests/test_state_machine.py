"""The whole service against a small model: fit, score, prune, roll back, pin, delete and restart, in any order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK_TRAINER, hub_settings
from graphs import ewma_scores
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from prunewatch.client import Client, ServiceError
from server.app import Hub

GOLDEN = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
PARENT_GAIN, CHILD_GAIN = 1.0, 2.0
"""Of what the quick trainer makes: scores tell which of the two serves."""
UPLOAD = {"features": ["f1", "f2"], "stamps": range(100), "values": np.zeros((100, 2), np.float32)}


class Service(RuleBasedStateMachine):
    """One detector on a hub that restarts. The model: gain by version, what serves, whether it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.gains: dict[int, float] = {}
        self.serving: int | None = None
        self.pinned = False
        self.run(self.begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What comes of some calls; None where the service refuses."""
        return self.runner.run(work)

    async def begin(self) -> None:
        """A hub on the store, and a client."""
        self.hub = Hub(hub_settings(Path(self.folder.name), drain_seconds=0.1), trainer=QUICK_TRAINER)
        await self.hub.start()
        self.client = Client(f"127.0.0.1:{self.hub.listener.port}")

    async def end(self) -> None:
        """No client, no hub."""
        await self.client.close()
        await self.hub.stop()

    def asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What the service answers; None where its state does not allow it, and then nothing may have changed."""
        try:
            return self.run(work)
        except ServiceError as error:
            if error.code not in {"FAILED_PRECONDITION", "NOT_FOUND"}:
                raise
            return None

    async def _done(self, begin: Coroutine[Any, Any, str]) -> dict[str, Any]:
        return await self.client.wait_operation(await begin)

    @rule()
    def fit(self) -> None:
        """A new parent, which serves at once; the detector is made where there is none."""
        if self.asked(self._done(self.client.fit_upload("pump", **UPLOAD))) is not None:
            (served,) = self.run(self.client.show("pump"))["served"]
            self.follow(served["version"], PARENT_GAIN)
        else:
            assert self.pinned

    @precondition(lambda self: self.serving is not None)
    @rule()
    def prune(self) -> None:
        """A child, which serves."""
        if (result := self.asked(self._done(self.client.prune("pump", speedup=2.0)))) is not None:
            assert result["outcome"] == "adopted"
            assert not self.pinned
            self.follow(result["version"], CHILD_GAIN)

    def follow(self, version: int, gain: float) -> None:
        """The model after a new version."""
        assert version not in self.gains
        self.gains[version] = gain
        self.serving = version

    @precondition(lambda self: self.serving is not None)
    @rule()
    def roll_back(self) -> None:
        """An earlier version serves, or there is none."""
        if (shown := self.asked(self.client.roll_back("pump"))) is not None:
            (served,) = shown["served"]
            assert served["version"] in self.gains
            assert served["version"] < self.serving
            self.serving = served["version"]

    @precondition(lambda self: self.serving is not None)
    @rule()
    def pin(self) -> None:
        """What serves stays, or may go again."""
        self.pinned = not self.pinned
        shown = self.asked((self.client.pin if self.pinned else self.client.unpin)("pump"))
        assert shown["served"][0]["pinned"] is self.pinned

    @rule()
    def delete(self) -> None:
        """Everything of it is gone."""
        known = self.serving is not None
        gone = self.asked(self._deleted())
        assert bool(gone) is known
        self.gains, self.serving, self.pinned = {}, None, False

    async def _deleted(self) -> bool:
        await self.client.delete("pump")
        return True

    @rule()
    def restart(self) -> None:
        """Changes nothing."""
        self.run(self.end())
        self.run(self.begin())

    @invariant()
    def what_serves_is_what_the_model_says(self) -> None:
        """Scores and versions of golden points, and what is told of the detector."""
        scores = self.asked(self.client.score("pump", values=GOLDEN, ephemeral=True))
        if self.serving is None:
            assert scores is None
            return
        wanted = ewma_scores(GOLDEN, gain=self.gains[self.serving])
        np.testing.assert_allclose(scores.scores, wanted, rtol=1e-5)
        (served,) = self.run(self.client.show("pump"))["served"]
        assert (served["version"], served["pinned"]) == (self.serving, self.pinned)

    def teardown(self) -> None:
        """Ends what runs."""
        self.run(self.end())
        self.runner.close()
        self.folder.cleanup()


def histories(examples: int, steps: int) -> settings:
    """How many orders are drawn, and how long they are."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=examples < 20,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@pytest.mark.promise("R1")
def test_any_order_of_calls_and_restarts_ends_as_the_model_says() -> None:
    """A few short histories."""
    run_state_machine_as_test(Service, settings=histories(3, 8))


@pytest.mark.long
@pytest.mark.promise("R1")
@pytest.mark.timeout(3600)
def test_many_long_orders_end_as_the_model_says() -> None:
    """The same for minutes."""
    run_state_machine_as_test(Service, settings=histories(100, 40))
