"""The ring of reports: bounded, in order, each number used once, whatever ends."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.edge.outbox import OVERHEAD_BYTES, Kind, Outbox

LARGE = 1 << 30


def everything(outbox: Outbox, after: int = 0) -> list[tuple[int, bytes]]:
    """All that waits."""
    return [(it.sequence, it.body) for it in outbox.next(after, LARGE)]


def test_numbers_go_on_over_restarts_and_deletions(tmp_path: Path) -> None:
    """A number that was used is never used again, also when nothing waits any more."""
    path = tmp_path / "outbox.db"
    first = Outbox(path)
    for body in (b"a", b"b"):
        first.add(Kind.NORMAL, body)
    first.flush()
    first.kept(2)
    first.close()
    second = Outbox(path)
    second.add(Kind.NORMAL, b"c")
    second.close()
    third = Outbox(path)

    assert everything(third) == [(3, b"c")]
    third.close()


def test_what_is_not_written_is_not_sent(tmp_path: Path) -> None:
    """Nothing gets a number before it is durable; `flush` writes all at once, in order."""
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.add(Kind.FLAGGED, b"a")
    assert everything(outbox) == []
    assert outbox.waiting_bytes == 1 + OVERHEAD_BYTES
    outbox.flush()

    assert everything(outbox) == [(1, b"a")]
    outbox.close()


@settings(deadline=None, max_examples=30)  # each writes a file
@given(
    added=st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 400)), max_size=60),
    every=st.integers(3, 20),
)
def test_the_bound_holds_and_what_matters_stays(tmp_path_factory, added, every) -> None:
    """Never more than the bound; what goes is of the lowest kind there is, and counted; the rest is in order."""
    dropped: list[Kind] = []
    outbox = Outbox(tmp_path_factory.mktemp("ring") / "outbox.db", max_bytes=2000, on_drop=dropped.append)
    for i, (kind, size) in enumerate(added):
        outbox.add(kind, bytes([kind]) + i.to_bytes(2, "big") + bytes(size))
        if i % every == 0:
            outbox.flush()
            assert outbox.waiting_bytes <= 2000
    outbox.flush()
    left = everything(outbox)
    outbox.close()

    sizes = sum(len(body) + OVERHEAD_BYTES for _, body in left)
    assert sizes == outbox.waiting_bytes <= 2000
    assert [number for number, _ in left] == sorted(number for number, _ in left)
    assert Counter(kind for kind, _ in added) == Counter(dropped) + Counter(Kind(body[0]) for _, body in left)
    assert outbox.dropped == len(dropped)
    total = sum(size + 3 + OVERHEAD_BYTES for kind, size in added)
    assert dropped or total == sizes


def test_normal_stretches_go_before_flagged_windows_and_events_last(tmp_path: Path) -> None:
    """Room is made in that order, the oldest first."""
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=3 * (100 + OVERHEAD_BYTES))
    for kind, name in ((Kind.RELEASE, b"r"), (Kind.FLAGGED, b"f"), (Kind.NORMAL, b"n"), (Kind.NORMAL, b"m")):
        outbox.add(kind, name * 100)
        outbox.flush()
    assert [body[:1] for _, body in everything(outbox)] == [b"r", b"f", b"m"]
    for name in (b"g", b"h"):
        outbox.add(Kind.FLAGGED, name * 100)
        outbox.flush()

    assert [body[:1] for _, body in everything(outbox)] == [b"r", b"g", b"h"]
    outbox.close()


def test_a_new_file_begins_after_what_the_hub_has(tmp_path: Path) -> None:
    """Where the file was lost, reports get numbers that the hub has not seen, and none counts as kept."""
    outbox = Outbox(tmp_path / "outbox.db")
    for body in (b"a", b"b"):
        outbox.add(Kind.NORMAL, body)
    outbox.flush()
    outbox.begin_after(900)
    outbox.kept(900)
    outbox.add(Kind.NORMAL, b"c")
    outbox.flush()
    outbox.begin_after(5)  # only the first time

    assert everything(outbox) == [(901, b"a"), (902, b"b"), (903, b"c")]
    outbox.close()


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    """Reports in it are lost, not those to come."""
    path = tmp_path / "outbox.db"
    path.write_bytes(b"damaged" * 1000)
    outbox = Outbox(path)
    outbox.add(Kind.NORMAL, b"a")
    outbox.flush()

    assert everything(outbox) == [(1, b"a")]
    assert (tmp_path / "outbox.db.damaged").exists()
    outbox.close()


def test_where_nothing_can_be_written_reports_wait_in_memory_within_bounds(tmp_path: Path) -> None:
    """A store that can not be written costs the oldest of the lowest kind, and is written later."""
    (tmp_path / "no").write_text("a file in place of the folder")
    dropped: list[Kind] = []
    outbox = Outbox(tmp_path / "no" / "outbox.db", max_bytes=1000, on_drop=dropped.append)
    for i in range(20):
        outbox.add(Kind.NORMAL if i % 2 else Kind.RELEASE, bytes(100))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        outbox.flush()
    assert outbox.waiting_bytes <= 1000
    assert dropped[0] == Kind.NORMAL
    assert Counter(dropped)[Kind.NORMAL] == 10  # all of them, before the last event had to go
    (tmp_path / "no").unlink()
    (tmp_path / "no").mkdir()
    outbox.flush()

    assert caught.value.errno != errno.ENOSPC
    assert len(everything(outbox)) == 20 - len(dropped)
    assert outbox.dropped == len(dropped)
    outbox.close()
