"""Points from a CSV file: first column the stamp, then one column for each feature. numpy only.

Stamps are ISO-8601 (without an offset they are UTC) or integers; all rows alike. An empty cell or `nan` is a missing
value. A column called `label` is no feature: labels are for judging, not for learning.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError, NotFoundError

LABEL = "label"
NORMAL = {"false", "no", "normal"}
"""Labels of normal rows, beside 0 and nothing."""
LARGEST = float(np.finfo(np.float32).max)
_EPOCH = datetime.fromtimestamp(0, UTC)
_INTEGER = re.compile(r"[+-]?\d+")
_NANOSECONDS = re.compile(r"[.,]\d{6}(\d{1,3})")
_INT64 = range(-(2**63) + 1, 2**63)  # the lowest one means "no stamp"


@dataclass(frozen=True)
class Table:
    """The points of a file in its order.

    Attributes:
        path: Where they came from, for errors.
        features: [F] column names.
        stamps: [N] nanoseconds since the epoch, or the integers of the file.
        stamp_text: [N] stamps as they were written.
        values: [N, F]; NaN where a value is missing.
        lines: [N] line numbers in the file.
        labels: [N], true where the column `label` says something else than 0, `false`, `no`, `normal` or nothing; None
            where there is no such column.
    """

    path: Path
    features: list[str]
    stamps: NDArray[np.int64]
    stamp_text: list[str]
    values: NDArray[np.float32]
    lines: NDArray[np.int64]
    labels: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.stamps)

    def in_order_of(self, features: Sequence[str]) -> Table:
        """The same with its columns in the order a detector takes them.

        Raises:
            InvalidInputError: the file has other columns.
        """
        missing = [name for name in features if name not in self.features]
        unknown = [name for name in self.features if name not in features]
        if missing or unknown:
            complaints = [
                f"{what} {_listed(names)}"
                for what, names in (("lacks", missing), ("has the unknown", unknown))
                if names
            ]
            raise InvalidInputError(
                f"has {len(self.features)} feature columns and {' and '.join(complaints)}.",
                field=str(self.path),
                hint=f"The detector takes {len(features)}: {_listed(features)}.",
            )
        columns = [self.features.index(name) for name in features]
        return replace(self, features=list(features), values=self.values[:, columns])

    def in_time_order(self, *, keep_repeated: bool = False) -> tuple[Table, int]:
        """Without the rows whose stamp is not later than all before, as a stream takes them; and how many those are.

        Args:
            keep_repeated: Take rows whose stamp equals the last one.

        Raises:
            InvalidInputError: they are more than a tenth: the file is not in the order of time. Names the first.
        """
        before = np.maximum.accumulate(self.stamps)[:-1]
        later = self.stamps[1:] >= before if keep_repeated else self.stamps[1:] > before
        taken = np.r_[True, later]
        gone = int(np.count_nonzero(~taken))
        if gone * 10 > len(self):
            row = int(np.flatnonzero(~taken)[0])
            raise InvalidInputError(
                f"line {self.lines[row]}: {self.stamp_text[row]!r} is not after {self.stamp_text[row - 1]!r}, and so "
                f"on: {gone} of {len(self)} rows go back or repeat.",
                field=str(self.path),
                hint="Sort the file by its first column, each time once.",
            )
        return self.of_rows(np.flatnonzero(taken)), gone

    def of_rows(self, rows: NDArray[np.int64]) -> Table:
        """Some of its rows."""
        return replace(
            self,
            stamps=self.stamps[rows],
            stamp_text=[self.stamp_text[row] for row in rows],
            values=self.values[rows],
            lines=self.lines[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


def read_csv(path: Path) -> Table:
    """Reads a whole file.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is no CSV of points; names line and column and says what to do.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(csv.reader(file), path)
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file.", field=str(path)) from error
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInputError("can not be read as a file.", field=str(path)) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("is not UTF-8 text.", field=str(path), hint="Save it as a UTF-8 CSV.") from error
    except csv.Error as error:
        raise InvalidInputError(f"is not CSV: {error}.", field=str(path)) from error


def stamp_of(text: str) -> int:
    """A stamp as the first column has it, ISO-8601 or an integer.

    Raises:
        ValueError: it is neither.

    >>> stamp_of("1970-01-01T00:00:01Z"), stamp_of("42")
    (1000000000, 42)
    """
    return _integer_stamp(text) if _INTEGER.fullmatch(text) else _iso_stamp(text)


def is_integer(text: str) -> bool:
    """Whether a stamp is written as an integer."""
    return bool(_INTEGER.fullmatch(text))


def iso_text(stamp: int) -> str:
    """A stamp of nanoseconds since the epoch as ISO-8601, with as many digits as it needs.

    >>> iso_text(1_000_000_002), iso_text(1_500_000_000), iso_text(-1_000_000_000)
    ('1970-01-01T00:00:01.000000002Z', '1970-01-01T00:00:01.5Z', '1969-12-31T23:59:59Z')
    """
    seconds, nanoseconds = divmod(stamp, 10**9)
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def joined(
    table: Table, warmer: Table | None, features: Sequence[str], *, index: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Stamps and values to score one after another, and how many of them only warm up.

    Args:
        table: The points to score.
        warmer: Points that came just before.
        features: Columns as the detector takes them.
        index: Whether it counts rows, whatever the stamps in the files.

    Raises:
        InvalidInputError: other columns than the detector's, or the points to score begin before `warmer` ends.
    """
    parts = [part.in_order_of(features) for part in (warmer, table) if part is not None]
    stamps = np.concatenate([part.stamps for part in parts])
    values = np.concatenate([part.values for part in parts])
    warm_rows = len(stamps) - len(table)
    if index:
        stamps = np.arange(len(stamps))
    elif warm_rows and stamps[warm_rows] <= stamps[:warm_rows].max():
        raise InvalidInputError(
            f"{table.path} begins at {table.stamp_text[0]}, which is not after the last of these points.",
            field="--warm",
            hint="Give the points that came just before.",
        )
    return stamps, values, warm_rows


def _read(rows: Iterator[list[str]], path: Path) -> Table:
    header = [cell.strip() for cell in next(rows, [])]
    columns = _feature_columns(header, path)
    label = next((column for column, name in enumerate(header) if column and name.lower() == LABEL), None)
    stamps: list[int] = []
    texts: list[str] = []
    lines: list[int] = []
    values: list[list[float]] = []
    labels: list[bool] = []
    stamp_of: Callable[[str], int] | None = None
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InvalidInputError(
                f"line {line} has {len(row)} cells, the header has {len(header)}.",
                field=str(path),
                hint="Give every line one cell for each column; leave a cell empty for a missing value.",
            )
        text = row[0].strip()
        stamp_of = stamp_of or (_integer_stamp if _INTEGER.fullmatch(text) else _iso_stamp)
        try:
            stamps.append(stamp_of(text))
        except ValueError as error:
            raise InvalidInputError(
                f"line {line}, column {header[0]!r}: {error}.",
                field=str(path),
                hint="Write every stamp as ISO-8601 (2024-05-01T12:00:00Z), or every one as an integer.",
            ) from error
        values.append([_number(row[column], line, header[column], path) for column in columns])
        texts.append(text)
        lines.append(line)
        if label is not None:
            labels.append(_is_labelled(row[label]))
    if not stamps:
        raise InvalidInputError("has no rows after its header.", field=str(path))
    return Table(
        path,
        [header[column] for column in columns],
        np.array(stamps, np.int64),
        texts,
        np.array(values, np.float32),
        np.array(lines, np.int64),
        None if label is None else np.array(labels, np.bool_),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"


def _feature_columns(header: list[str], path: Path) -> list[int]:
    """Where the features are, after a look at whether the header can be one."""
    problem = hint = ""
    names = [name for name in header[1:] if name.lower() != LABEL]
    if not any(header):
        problem, hint = "is empty.", "The first line names the columns: timestamp,flow,pressure."
    elif len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        problem, hint = "has one column.", "Separate the columns by commas."
    elif _is_stamp(header[0]) and all(_is_number(cell) for cell in header[1:]):
        problem, hint = "has no header.", "The first line names the columns: timestamp,flow,pressure."
    elif not names:
        problem, hint = "has no feature columns.", "Put the stamp first and then one column for each feature."
    elif "" in names:
        problem, hint = f"column {header.index('', 1) + 1} has no name.", "Name every column in the first line."
    elif len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problem, hint = f"two columns are called {twice!r}.", "Give each feature its own name."
    if problem:
        raise InvalidInputError(problem, field=str(path), hint=hint)
    return [column for column, name in enumerate(header) if column and name.lower() != LABEL]


def _number(cell: str, line: int, column: str, path: Path) -> float:
    """One value; NaN if it is missing."""
    try:
        value = float(cell)
    except ValueError:
        if not cell.strip():
            return math.nan
        raise InvalidInputError(
            f"line {line}, column {column!r}: {cell[:40]!r} is not a number.",
            field=str(path),
            hint="Leave the cell empty if the value is missing.",
        ) from None
    if abs(value) > LARGEST:
        raise InvalidInputError(
            f"line {line}, column {column!r}: {cell[:40]!r} is infinite or too large for float32.",
            field=str(path),
            hint="Leave the cell empty if the value is missing.",
        )
    return value


def _is_labelled(cell: str) -> bool:
    """Whether a label marks its row.

    >>> [_is_labelled(cell) for cell in ("1", "0.0", " ", "nan", "False", "leak")]
    [True, False, False, False, False, True]
    """
    text = cell.strip().lower()
    if not _is_number(text):
        return bool(text) and text not in NORMAL
    return float(text) != 0 and not math.isnan(float(text))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_stamp(cell: str) -> bool:
    try:
        _iso_stamp(cell)
    except ValueError:
        return bool(_INTEGER.fullmatch(cell))
    return True


def _integer_stamp(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not an integer like the stamps before it")
    return _in_range(int(text), text)


def _iso_stamp(text: str) -> int:
    """Nanoseconds since the epoch.

    >>> _iso_stamp("1970-01-01 00:00:01.000000002")
    1000000002
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is neither an ISO-8601 time nor an integer") from None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    beyond = _NANOSECONDS.search(text)  # digits that datetime drops
    nanoseconds = int(beyond[1].ljust(3, "0")) if beyond else 0
    return _in_range(((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000 + nanoseconds, text)


def _in_range(stamp: int, text: str) -> int:
    if stamp not in _INT64:
        raise ValueError(f"{text[:40]!r} does not fit 64 bits of nanoseconds (1677 to 2262)")
    return stamp
