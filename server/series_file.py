"""The shelf of a detector's series: <store>/series/NAME.db, SQLite.

What is written is safe from the end of the process at once, from a power loss after `settle`. A file that is damaged is
put aside: its series go on from the history, or warm up.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from detectors.shelf import Label, Shelved
from server.layout import SERIES

NAMES_AT_ONCE = 500  # SQLite takes 999 variables everywhere
ASIDE = ".damaged"
GONE_SECONDS = 90 * 86400.0
"""After so long nobody remembers what was let go."""
COLUMNS = "name, last_stamp, seen, heard, bundle_hash, state, ring, turn"
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
logger = logging.getLogger(__name__)


class SeriesFile:
    """A `detectors.shelf.Shelf` in one file; opened when it is first used, closed for good by `close`.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @classmethod
    def of(cls, root: Path, name: str) -> SeriesFile:
        """That of a detector in the store at `root`."""
        return cls(root / SERIES / f"{name}.db")

    def put(self, rows: Sequence[Shelved]) -> None:
        """Keeps series, all or none; OSError when they can not be written."""
        content = [
            (it.name, it.last_stamp, it.seen, it.heard, it.bundle_hash, it.state, it.ring, it.turn) for it in rows
        ]
        with self._lock:
            try:
                self._write(_PUT, content)
            except sqlite3.Error as error:
                raise OSError(f"{self._path} can not be written: {error}") from error

    def get(self, names: Sequence[str]) -> list[Shelved]:
        """Those of the series that are there and can be read."""
        found: list[Shelved] = []
        with self._lock:
            try:
                for first in range(0, len(names), NAMES_AT_ONCE):
                    some = names[first : first + NAMES_AT_ONCE]
                    query = f"SELECT {COLUMNS} FROM series WHERE name IN ({','.join('?' * len(some))}) AND seen >= 0"  # noqa: S608
                    found += [Shelved(*row) for row in self._opened().execute(query, some)]
            except (sqlite3.Error, OSError):
                logger.exception("%s can not be read; %d series begin anew", self._path, len(names) - len(found))
        return found

    def let_go(self, labels: Sequence[Label]) -> None:
        """Forgets series but for these labels; OSError when that can not be written."""
        self.put([Shelved(it.name, it.last_stamp, it.seen, it.heard, "", b"", b"", it.turn) for it in labels])

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
                self._write("DELETE FROM series WHERE seen < 0 AND heard < ?", [(time.time() - GONE_SECONDS,)])
                rows = self._opened().execute(query).fetchall()
            except (sqlite3.Error, OSError):
                logger.exception("%s is damaged; its series go on from the history", self._path)
                self._put_aside(keep=True)
                return
        yield from (Label(*row) for row in rows)

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

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        connection = self._opened()
        with connection:  # one transaction
            connection.executemany(statement, rows)

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise OSError(f"{self._path} is closed")
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, check_same_thread=False)
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 0"):
                with closing(self._connection.execute(f"PRAGMA {setting}")):
                    pass
            self._connection.execute(_MAKE)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _put_aside(self, *, keep: bool) -> None:
        self._disconnect()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            if keep and not suffix and path.exists():
                path.replace(Path(f"{self._path}{ASIDE}"))
            path.unlink(missing_ok=True)
