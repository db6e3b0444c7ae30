"""The shelf of a detector's series: <store>/series/NAME.db, SQLite.

What is written is safe from the end of the process at once, from a power loss after `settle`. A file that is damaged is
put aside: its series go on from the history, or warm up.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from detectors.shelf import Label, Shelved
from server.layout import SERIES

NAMES_AT_ONCE = 500  # SQLite takes 999 variables everywhere
ASIDE = ".damaged"
GONE_SECONDS = 90 * 86400.0
"""After so long nobody remembers what was let go."""
COLUMNS = "name, last_stamp, seen, heard, bundle_hash, state, ring, turn - ?"
_MAKE = """
CREATE TABLE IF NOT EXISTS series (
    name TEXT PRIMARY KEY, last_stamp INTEGER NOT NULL, seen INTEGER NOT NULL, heard REAL NOT NULL,
    bundle_hash TEXT NOT NULL, state BLOB NOT NULL, ring BLOB NOT NULL, turn INTEGER NOT NULL
) WITHOUT ROWID
"""
_PUT = """
INSERT INTO series (name, last_stamp, seen, heard, bundle_hash, state, ring, turn) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET
    last_stamp = excluded.last_stamp, seen = excluded.seen, heard = excluded.heard, bundle_hash = excluded.bundle_hash,
    state = excluded.state, ring = excluded.ring, turn = excluded.turn
WHERE excluded.turn >= series.turn
"""
logger = logging.getLogger("prunewatch.series_file")


class SeriesFile:
    """A `detectors.shelf.Shelf` in one file; opened when it is first used, closed for good by `close`.

    Turns count from when it was opened: whatever is written now is newer than what an earlier process has written.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._first_turn: int | None = None
        """The newest of those there were; None: not looked at yet."""

    @classmethod
    def of(cls, root: Path, name: str) -> SeriesFile:
        """That of a detector in the store at `root`."""
        return cls(root / SERIES / f"{name}.db")

    def put(self, rows: Sequence[Shelved]) -> None:
        """Keeps series, all or none; OSError when they can not be written (of a full disk ENOSPC)."""
        with self._lock, _as_os_errors(self._path):
            connection = self._opened()
            first = self._first(connection)
            with connection:  # one transaction
                connection.executemany(
                    _PUT,
                    [
                        (it.name, it.last_stamp, it.seen, it.heard, it.bundle_hash, it.state, it.ring, first + it.turn)
                        for it in rows
                    ],
                )

    def get(self, names: Sequence[str]) -> list[Shelved]:
        """Those of the series that are there and can be read."""
        found: list[Shelved] = []
        with self._lock:
            try:
                connection = self._opened()
                first = self._first(connection)
                for start in range(0, len(names), NAMES_AT_ONCE):
                    some = names[start : start + NAMES_AT_ONCE]
                    query = f"SELECT {COLUMNS} FROM series WHERE name IN ({','.join('?' * len(some))}) AND seen >= 0"  # noqa: S608  # nosec B608
                    found += [Shelved(*row) for row in connection.execute(query, [first, *some])]
            except (sqlite3.Error, OSError):
                logger.exception("%s can not be read; %d series begin anew", self._path, len(names) - len(found))
        return found

    def let_go(self, labels: Sequence[Label]) -> None:
        """Forgets series but for these labels, which count as heard of now; OSError as of `put`."""
        now = time.time()  # a label must outlast the points that others have of it, however long they were silent
        self.put([Shelved(it.name, it.last_stamp, it.seen, now, "", b"", b"", it.turn) for it in labels])

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._put_aside(keep=False)

    def labels(self) -> Iterator[Label]:
        """Of everything that is there or was let go, the one heard of last first; of a damaged file nothing."""
        query = "SELECT name, last_stamp, seen, heard, turn FROM series ORDER BY heard DESC"
        with self._lock:
            if not self._path.exists():
                return
            try:
                connection = self._opened()
                self._tidy(connection)
                rows = connection.execute(query).fetchall()
            except (sqlite3.OperationalError, OSError):  # a disk that is full, say: the file may be sound
                logger.exception("%s can not be read now; its series go on from the history", self._path)
                return
            except sqlite3.Error:
                logger.exception("%s is damaged; its series go on from the history", self._path)
                self._put_aside(keep=True)
                return
            if self._first_turn is None:
                self._first_turn = max((row[-1] for row in rows), default=0)
            first = self._first_turn
        yield from (Label(name, stamp, seen, heard, turn - first) for name, stamp, seen, heard, turn in rows)

    def settle(self) -> None:
        """Makes what was written safe from a power loss, and the log beside the file short."""
        with self._lock:
            if self._connection is not None:
                try:
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                except sqlite3.Error:
                    logger.exception("%s can not be settled; it will be tried again", self._path)

    def close(self) -> None:
        """Closes the file; whoever uses it afterwards gets an OSError, and finds nothing."""
        self.settle()
        with self._lock:
            self._closed = True
            self._disconnect()

    def _tidy(self, connection: sqlite3.Connection) -> None:
        try:
            with connection:
                connection.execute("DELETE FROM series WHERE seen < 0 AND heard < ?", [time.time() - GONE_SECONDS])
        except sqlite3.OperationalError:  # a full disk
            logger.exception("%s can not be tidied; it will be tried again", self._path)

    def _first(self, connection: sqlite3.Connection) -> int:
        if self._first_turn is None:
            ((self._first_turn,),) = connection.execute("SELECT coalesce(max(turn), 0) FROM series")
        return self._first_turn

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise OSError(f"{self._path} is closed")
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, check_same_thread=False)
            try:
                for setting in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 0"):
                    with closing(connection.execute(f"PRAGMA {setting}")):
                        pass
                connection.execute(_MAKE)
            except BaseException:
                connection.close()  # the next one tries again from the start
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._first_turn = None

    def _put_aside(self, *, keep: bool) -> None:
        self._disconnect()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            if keep and not suffix and path.exists():
                path.replace(Path(f"{self._path}{ASIDE}"))
            path.unlink(missing_ok=True)


@contextmanager
def _as_os_errors(path: Path) -> Iterator[None]:
    """Whoever keeps series need not know of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise OSError(f"{path} can not be written: {error}") from error
