"""Reports on their way to the hub: <store>/outbox.db, SQLite, a ring of so many bytes.

What is added waits in memory and is written together with others, for the sake of flash cards. Only what is written is
sent, under a number that is never used again, so that the hub knows what comes twice. Where there is no room, normal
stretches go first, the oldest before others, then flagged windows, then measurements, and what became of releases last.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

ASIDE = ".damaged"
MAX_BYTES = 16 << 20
OVERHEAD_BYTES = 64
"""Of a report in the file, about."""
WAITING_BYTES = 1 << 20
"""Held in memory at most while the disk is full."""
_MAKE = (
    """CREATE TABLE IF NOT EXISTS reports (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS by_kind ON reports (kind, sequence)",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
)
logger = logging.getLogger("prunewatch.edge.outbox")


class Kind(IntEnum):
    """What a report is; lower ones make room for higher ones."""

    NORMAL = 0
    FLAGGED = 1
    PROBE = 2
    RELEASE = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """A report that waits for the hub.

    Attributes:
        sequence: Its number.
        body: Its bytes; what they say is for who sends them.
    """

    sequence: int
    body: bytes


class Outbox:
    """The ring. `add` never blocks; everything else is for a thread.

    Args:
        path: The file.
        max_bytes: That reports may take.
        on_drop: Told the kind of each report that had to go.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_BYTES, on_drop: Callable[[Kind], None] = lambda _: None
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._fresh: list[tuple[Kind, bytes]] = []
        self._fresh_bytes = 0
        self._connection: sqlite3.Connection | None = None
        self._bytes = 0
        self.dropped = 0
        """Reports that had to go since the file was made."""
        try:
            self._opened()
        except OSError:
            logger.exception("%s can not be opened; reports wait in memory", path)

    @property
    def waiting_bytes(self) -> int:
        """Of all that waits."""
        return self._bytes + self._fresh_bytes

    def add(self, kind: Kind, body: bytes) -> None:
        """Takes a report, to be written with the next `flush`."""
        with self._lock:
            self._fresh.append((kind, body))
            self._fresh_bytes += len(body) + OVERHEAD_BYTES
            while self._fresh_bytes > min(WAITING_BYTES, self._max_bytes):  # the disk is full
                self._drop_fresh()

    def flush(self) -> None:
        """Makes what was added durable.

        Raises:
            OSError: it can not be written; it waits for the next time.
        """
        with self._lock:
            if not self._fresh:
                return
            rows = [(kind, len(body) + OVERHEAD_BYTES, body) for kind, body in self._fresh]
            gone: Counter[int] = Counter()
            with self._transaction() as connection:
                total = self._bytes + self._fresh_bytes
                connection.executemany("INSERT INTO reports (kind, size, body) VALUES (?, ?, ?)", rows)
                total -= self._trim(connection, total - self._max_bytes, gone)
                _set(connection, "dropped", self.dropped + gone.total())
            self._fresh, self._fresh_bytes, self._bytes = [], 0, total
            self.dropped += gone.total()
        for kind, count in gone.items():
            for _ in range(count):
                self._on_drop(Kind(kind))

    def next(self, after: int, limit: int) -> list[Waiting]:
        """What is to be sent after a number, of about so many bytes; the first one however long it is."""
        found: list[Waiting] = []
        with self._lock, self._transaction() as connection:
            rows = connection.execute(
                "SELECT sequence, body, size FROM reports WHERE sequence > ? ORDER BY sequence", [after]
            )
            with closing(rows):
                for sequence, body, size in rows:
                    if found and size > limit:
                        break
                    limit -= size
                    found.append(Waiting(sequence, body))
        return found

    def kept(self, sequence: int) -> None:
        """The hub has those up to a number; OSError when that can not be noted."""
        with self._lock, self._transaction() as connection:
            connection.execute("DELETE FROM reports WHERE sequence <= ?", [sequence])
            self._bytes = _sum(connection)

    def begin_after(self, kept: int) -> None:
        """Heeds up to where the hub has reports of this device: a file that was made anew begins after them.

        Raises:
            OSError: that can not be noted.
        """
        with self._lock, self._transaction() as connection:
            if not _fact(connection, "numbered"):
                newest = connection.execute("SELECT coalesce(max(sequence), 0) FROM reports").fetchone()[0]
                connection.execute("UPDATE reports SET sequence = -sequence")  # no two meet on the way
                connection.execute("UPDATE reports SET sequence = ? - sequence", [kept])
                connection.execute("DELETE FROM sqlite_sequence WHERE name = 'reports'")
                connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('reports', ?)", [kept + newest])
                _set(connection, "numbered", 1)

    def close(self) -> None:
        """Writes what waits, where that can be, and closes the file."""
        try:
            self.flush()
        except OSError:
            logger.exception("%s can not be written; %d reports are lost", self._path, len(self._fresh))
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    @staticmethod
    def _trim(connection: sqlite3.Connection, excess: int, gone: Counter[int]) -> int:
        """Lets reports go until so many bytes are free; returns how many are."""
        freed = 0
        while freed < excess:
            oldest = "SELECT sequence, kind, size FROM reports ORDER BY kind, sequence LIMIT 1"
            if (row := connection.execute(oldest).fetchone()) is None:
                break
            connection.execute("DELETE FROM reports WHERE sequence = ?", [row[0]])
            freed += row[2]
            gone[row[1]] += 1
        return freed

    def _drop_fresh(self) -> None:
        at = min(range(len(self._fresh)), key=lambda i: self._fresh[i][0])
        kind, body = self._fresh.pop(at)
        self._fresh_bytes -= len(body) + OVERHEAD_BYTES
        self.dropped += 1
        self._on_drop(kind)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; whoever keeps reports need not know of SQLite."""
        connection = self._opened()
        try:
            with connection:
                yield connection
        except sqlite3.Error as error:
            raise _as_os_error(error, self._path) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                try:
                    opened = _connect(self._path)
                except sqlite3.OperationalError:  # a full disk, say: the file may be sound
                    raise
                except sqlite3.DatabaseError:
                    logger.exception("%s is damaged and put aside; the reports in it are lost", self._path)
                    self._path.replace(Path(f"{self._path}{ASIDE}"))
                    for suffix in ("-wal", "-shm"):
                        Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                    opened = _connect(self._path)
                self._bytes = _sum(opened)
                self.dropped += _fact(opened, "dropped")
            except sqlite3.Error as error:
                raise _as_os_error(error, self._path) from error
            self._connection = opened
        return self._connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        # FULL: what was sent is never forgotten, else its number would be used again.
        for setting in ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 65536", "cache_size = -512"):
            with closing(connection.execute(f"PRAGMA {setting}")):
                pass
        for statement in _MAKE:
            connection.execute(statement)
        _fact(connection, "dropped")
    except BaseException:
        connection.close()
        raise
    return connection


def _sum(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(sum(size), 0) FROM reports").fetchone()[0])


def _fact(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
    return int(row[0]) if row else 0


def _set(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", [name, value]
    )


def _as_os_error(error: sqlite3.Error, path: Path) -> OSError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return OSError(f"{path} can not be written: {error}")
