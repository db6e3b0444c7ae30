"""CSV files of points: what is understood, and that everything else is refused with its line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detectors.errors import InvalidInputError, NotFoundError
from server.csv_input import Table, read_csv


@pytest.fixture
def table_of(tmp_path: Path):
    """Reads a CSV text."""

    def read(text: str | bytes) -> Table:
        path = tmp_path / "points.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv(path)

    return read


def test_iso_stamps_are_nanoseconds_since_the_epoch(table_of) -> None:
    """Without an offset a time is UTC; nine digits of a second are kept; the text stays as it was written."""
    stamps = ["1970-01-01", "1970-01-01 00:00:01", "1970-01-01T01:00:02+01:00", "1970-01-01T00:00:03.000000004Z"]
    table = table_of("timestamp,flow\n" + "".join(f"{stamp},1\n" for stamp in stamps))

    assert table.stamps.tolist() == [0, 1_000_000_000, 2_000_000_000, 3_000_000_004]
    assert table.stamp_text == stamps


def test_integer_stamps_are_taken_as_they_are(table_of) -> None:
    """Row numbers and nanoseconds look the same."""
    assert table_of("t,a\n-1,0\n7,0\n1714564800000000000,0\n").stamps.tolist() == [-1, 7, 1714564800000000000]


def test_the_label_column_is_left_out_wherever_it_stands(table_of) -> None:
    """Labels are for judging."""
    table = table_of("t,a,Label,b\n0,1,1,2\n")

    assert table.features == ["a", "b"]
    assert table.values.tolist() == [[1.0, 2.0]]


def test_an_empty_cell_is_a_missing_value(table_of) -> None:
    """Missing is NaN, also when pandas wrote `nan`."""
    table = table_of("t,a,b\n0,,1\n1, nan ,2\n")

    assert np.isnan(table.values[:, 0]).all()
    assert table.values[:, 1].tolist() == [1.0, 2.0]


def test_spreadsheet_marks_and_blank_lines_do_no_harm(table_of) -> None:
    """A byte order mark, CRLF, blank lines and spaces around names are passed over."""
    table = table_of(b"\xef\xbb\xbft, flow \r\n\r\n0,1\r\n\r\n1,2\r\n")

    assert table.features == ["flow"]
    assert table.lines.tolist() == [3, 5]


def test_numeric_column_names_are_names(table_of) -> None:
    """A header that pandas made up from column numbers is still a header."""
    assert table_of(",0,1\n0,5,6\n").features == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("t,a\n", "no rows"),
        ("t\n1\n", "no feature columns"),
        ("t,label\n1,0\n", "no feature columns"),
        ("0,1.5\n1,2.5\n", "no header"),
        ("2024-01-01,1.5\n", "no header"),
        ("t;a\n0;1\n", "commas"),
        ("t,a,a\n0,1,2\n", "two columns are called 'a'"),
        ("t,a,\n0,1,2\n", "column 3 has no name"),
        ("t,a\n0,1\n1,2,3\n", "line 3 has 3 cells, the header has 2"),
        ("t,a\n0,1\n1\n", "line 3 has 1 cells"),
        ("t,a\n0,one\n", "line 2, column 'a': 'one' is not a number"),
        ("t,a\n0,inf\n", "line 2, column 'a': 'inf' is infinite"),
        ("t,a\n0,1e308\n", "too large for float32"),
        ("t,a\nyesterday,1\n", "line 2, column 't': 'yesterday' is neither"),
        ("t,a\n1,1\n2024-01-01,1\n", "line 3, column 't': '2024-01-01' is not an integer"),
        ("t,a\n2024-01-01,1\n5,1\n", "line 3, column 't': '5' is neither"),
        ("t,a\n3000-01-01,1\n", "64 bits"),
        (b"t,a\n0,\xff\n", "UTF-8"),
        ('t,a\n0,"' + "x" * 200_000 + '"\n', "not CSV"),
    ],
)
def test_bad_files_are_refused_with_line_and_column(table_of, text: str | bytes, says: str) -> None:
    """The file, the place and what is wrong are in the error."""
    with pytest.raises(InvalidInputError) as caught:
        table_of(text)

    assert caught.value.field.endswith("points.csv")
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Not found is not malformed."""
    with pytest.raises(NotFoundError, match=r"no\.csv"):
        read_csv(tmp_path / "no.csv")
    with pytest.raises(InvalidInputError, match="can not be read"):
        read_csv(tmp_path)


def test_columns_are_matched_by_name(table_of) -> None:
    """The detector's order counts, not the file's."""
    table = table_of("t,b,a\n0,1,2\n").in_order_of(["a", "b"])

    assert table.features == ["a", "b"]
    assert table.values.tolist() == [[2.0, 1.0]]


def test_other_columns_than_the_detectors_are_refused(table_of) -> None:
    """What lacks and what is too much are both named."""
    with pytest.raises(InvalidInputError, match=r"lacks a and has the unknown c\. The detector takes 2: a, b\."):
        table_of("t,b,c\n0,1,2\n").in_order_of(["a", "b"])


def test_rows_whose_stamp_is_not_later_are_left_out(table_of) -> None:
    """As a stream would: late ones always, repeated ones unless they are wanted; how many is told."""
    rows = [0, 1, 1, 2, 5, 3, 4, 5, 6, *range(7, 60)]
    table = table_of("t,a\n" + "".join(f"{stamp},{line}\n" for line, stamp in enumerate(rows)))

    strict, left_out = table.in_time_order()
    loose, fewer = table.in_time_order(keep_repeated=True)

    assert strict.stamps.tolist() == [0, 1, 2, 5, *range(6, 60)]
    assert (left_out, fewer) == (4, 2)
    assert strict.values[:, 0].tolist() == [0, 1, 3, 4, *range(8, 62)]
    assert loose.stamps.tolist() == [0, 1, 1, 2, 5, 5, *range(6, 60)]
    assert len(strict.stamp_text) == len(strict.lines) == len(strict)


def test_a_file_in_no_order_is_refused(table_of) -> None:
    """More than a tenth of the rows go back: that is no clock that was set, but a file that was not sorted."""
    with pytest.raises(InvalidInputError, match="line 4: '1' is not after '2', and so on: 1 of 3 rows") as error:
        table_of("t,a\n0,0\n2,0\n1,0\n").in_time_order()

    assert "Sort the file" in error.value.hint
