"""What a device sends of its points: windows around what it flagged, and normal stretches, never more than wanted."""

from __future__ import annotations

import numpy as np
import pytest
from agents import Points, agent
from device_hub import DeviceHub, pump
from hypothesis import given, settings
from hypothesis import strategies as st

from prunewatch.v1 import devices_pb2 as pb
from server.edge.device import FieldLimits
from server.edge.field import AFTER_POINTS, LEARNED_POINTS, FieldSink, Limits
from server.edge.reports import FieldPoints

WARM_UP = 10
GENEROUS = FieldLimits(wanted=True, bytes_per_hour=1 << 40, windows_per_hour=1_000_000)


class Field:
    """A sink, its clock, and what it has sent."""

    def __init__(self, limits: FieldLimits = GENEROUS, max_gap: int | None = None) -> None:
        self.now, self.sent = 0.0, list[FieldPoints]()
        self.limits = Limits(lambda: self.now)
        self.limits.set(limits)
        self.sink = FieldSink(
            "pump",
            ("f1", "f2"),
            warm_up_points=WARM_UP,
            max_gap=max_gap,
            limits=self.limits,
            send=self.sent.append,
            context=lambda: (3.0, 7),
        )
        self.at: dict[str, int] = {}

    def take(self, count: int, flagged: tuple[int, ...] = (), series: str = "a", skip: int = 0) -> None:
        """The next points of a series; each value is its stamp."""
        first = self.at.get(series, 0) + skip
        self.at[series] = first + count
        stamps = np.arange(first, first + count)
        marks = np.isin(np.arange(count), flagged)
        values = np.stack([stamps, stamps], axis=1).astype(np.float32)
        self.sink.append([series] * count, stamps, values, np.where(marks, 9, 0).astype(np.float32), marks)


def test_a_window_has_what_a_detector_warms_up_on_and_what_came_after() -> None:
    """From `warm_up_points` before the first flagged point to some after the last; with scores, threshold, counter."""
    field = Field()
    field.take(60, flagged=(30, 35))
    (window,) = field.sent

    assert window.flagged
    np.testing.assert_array_equal(window.stamps, np.arange(20, 35 + AFTER_POINTS + 1))
    np.testing.assert_array_equal(window.values[:, 0], window.stamps)
    assert np.flatnonzero(window.scores > 3).tolist() == [10, 15]
    assert (window.threshold, window.counter, window.features) == (3.0, 7, ("f1", "f2"))


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    flagged=st.sets(st.integers(0, 1500), max_size=12),
)
def test_however_points_come_every_flagged_one_is_in_a_window(cuts, flagged) -> None:
    """The same windows whether points come one by one or many at once; all are runs without a gap."""
    field, at = Field(), 0
    for count in cuts:
        field.take(count, tuple(it - at for it in flagged if at <= it < at + count))
        at += count
    field.take(AFTER_POINTS + 1)
    seen = {int(it) for window in field.sent if window.flagged for it in window.stamps[window.scores > 3]}

    assert seen == {it for it in flagged if it < at}
    for sent in field.sent:
        assert (np.diff(sent.stamps) == 1).all()
        if not sent.flagged:
            assert len(sent.stamps) == WARM_UP + LEARNED_POINTS >= WARM_UP + 64
            assert (sent.scores < 3).all()


def test_stretches_do_not_overlap_and_series_take_turns() -> None:
    """Each normal point is sent once at most; whose turn was longest ago comes first."""
    field = Field()
    for _ in range(10):
        for series in ("a", "b"):
            field.take(100, series=series)
    for series in ("a", "b"):
        stamps = np.concatenate([it.stamps for it in field.sent if it.series == series])
        assert len(np.unique(stamps)) == len(stamps) > 500

    assert [it.series for it in field.sent] == ["a", "b"] * (len(field.sent) // 2)


def test_a_silence_ends_a_run() -> None:
    """Where a series begins anew after a gap, nothing sent reaches over it."""
    field = Field(max_gap=5)
    field.take(150, flagged=(140,))
    field.take(300, skip=1000)

    assert len(field.sent) >= 2
    assert all((np.diff(it.stamps) == 1).all() for it in field.sent)
    assert field.sent[0].flagged


def test_limits_hold_over_hours() -> None:
    """No more than what may be sent in an hour, and a burst, however much is flagged."""
    limits = FieldLimits(wanted=True, bytes_per_hour=60_000, windows_per_hour=12)
    field = Field(limits)
    for _ in range(10 * 60):
        field.now += 60
        field.take(50, flagged=(20,))
    windows = [it for it in field.sent if it.flagged]
    size = sum(len(it.stamps) * 21 for it in field.sent)

    assert 60 <= len(windows) <= 10 * 12 + 12
    assert size <= 10 * 60_000 * 1.2


def test_nothing_is_sent_that_nobody_wants() -> None:
    """Without a word of the hub, or after it has changed its mind, points go nowhere."""
    field = Field(FieldLimits())
    field.take(500, flagged=(30,))
    field.limits.set(GENEROUS)
    field.limits.set(FieldLimits(wanted=False, bytes_per_hour=1 << 40, windows_per_hour=1000))
    field.take(500, flagged=(30,))

    assert field.sent == []


@pytest.mark.parametrize("opted_out", [False, True])
async def test_the_device_has_the_last_word(tmp_path, opted_out) -> None:
    """With `--no-field` the hub's wish changes nothing; else its limits outlive a restart."""
    wanted = pb.FieldLimits(wanted=True, bytes_per_hour=1 << 20, windows_per_hour=60)
    given = {"field": not opted_out}
    async with DeviceHub(limits=wanted) as hub:
        await hub.desire(hub.release(hub.offer(pump(), tmp_path)))
        async with agent(tmp_path, hub.address, token=hub.token(tmp_path), given=given) as running:
            await hub.state("TRYING")
            points = Points()

            def shaken(values: np.ndarray) -> np.ndarray:
                values[30] = 50
                return values

            await points.send(running, 100, shaken)
            await running.flush()
            await running.write_reports()
            kinds = [it.WhichOneof("report") for it in reports(running)] + [
                it.WhichOneof("report") for it in hub.kept.values()
            ]
        async with agent(tmp_path, given=given) as again:
            limits = again.device.identity.field

    assert ("points" in kinds) == (not opted_out)
    assert limits.wanted == (not opted_out)


def reports(running) -> list[pb.DeviceReport]:
    """What waits for the hub."""
    return [pb.DeviceReport.FromString(it.body) for it in running.outbox.next(0, 1 << 30)]
