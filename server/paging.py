"""Pages of lists, as AIP-158 has them: so many rows and the token of the next page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

from detectors.errors import InvalidInputError

T = TypeVar("T")
DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


def page_limit(size: int) -> int:
    """Rows of a page that was asked for with `page_size`.

    Raises:
        InvalidInputError: the size is negative.
    """
    if size < 0:
        raise InvalidInputError(f"{size} is negative.", field="page_size", hint="Leave it out for 100.")
    return min(size or DEFAULT_PAGE, LARGEST_PAGE)


def token_of(key: bytes) -> str:
    """The token of the page that begins after the row that `key` names."""
    return base64.urlsafe_b64encode(key).decode()


def key_of(token: str) -> bytes:
    """What `token_of` was given.

    Raises:
        InvalidInputError: the token is none of ours.
    """
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raise bad_token() from None


def bad_token() -> InvalidInputError:
    """A token that no page of this list has had."""
    return InvalidInputError(
        "is not a token of this list, or its row is gone.", field="page_token", hint="Begin at the first page."
    )


def page_of(rows: Sequence[T], size: int, token: str, key: Callable[[T], str]) -> tuple[Sequence[T], str]:
    """One page of rows and the token of the next; `key` names a row for good.

    Raises:
        InvalidInputError: the size is negative, or the token is none of ours.
    """
    size, start = page_limit(size), 0
    if token:
        last = key_of(token)
        try:
            start = next(i for i, row in enumerate(rows) if key(row).encode() == last) + 1
        except StopIteration:
            raise bad_token() from None
    page = rows[start : start + size]
    more = start + size < len(rows)
    return page, token_of(key(page[-1]).encode()) if more else ""
