"""Reads protobuf's wire format without protobuf: enough to look at a file before anything heavier does.

A message is a row of fields, each a tag (number and wire type) and a value; a nested message is the bytes of a field.
Nothing is copied or decoded that is not asked for, so a reader costs neither memory nor, with `Budget`, time without
bound: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | memoryview
"""Of a field: a number, or the bytes of a string, a message, packed or fixed numbers."""
MAX_TAG = 0xFFFFFFFF


class WireError(ValueError):
    """The bytes are no message, or one with too many fields."""


@dataclass
class Budget:
    """How many more fields, or runs of them, may be read, over all messages of a file."""

    fields: int

    def spend(self) -> None:
        """Takes one; WireError where none is left."""
        self.fields -= 1
        if self.fields < 0:
            raise WireError("too many fields")


@dataclass(frozen=True)
class Run:
    """A repeated field of numbers that are not packed: passed over at once, since there may be a million of them.

    Attributes:
        pattern: Matches one or more of them with their tags, without going back.
    """

    pattern: re.Pattern[bytes]


def floats_of(number: int) -> Run:
    """A run of fixed 32-bit numbers."""
    return Run(re.compile(b"(?:" + re.escape(_tag(number, FIXED32)) + b".{4})++", re.DOTALL))


def integers_of(number: int) -> Run:
    """A run of varints."""
    return Run(re.compile(b"(?:" + re.escape(_tag(number, VARINT)) + b"[\x80-\xff]{0,9}[\x00-\x7f])++", re.DOTALL))


def words_of(number: int, words: tuple[bytes, ...]) -> Run:
    """A run of strings that are all among these."""
    each = b"|".join(re.escape(bytes([len(word)]) + word) for word in words)
    return Run(re.compile(b"(?:" + re.escape(_tag(number, BYTES)) + b"(?:" + each + b"))++", re.DOTALL))


def fields(message: memoryview, budget: Budget, runs: tuple[Run, ...] = ()) -> Iterator[tuple[int, Value]]:
    """Number and value of each field, in their order; those of `runs` are passed over.

    Raises:
        WireError: these bytes are no message, or the budget is spent.
    """
    at, end = 0, len(message)
    while at < end:
        budget.spend()
        passed = next((match.end() for run in runs if (match := run.pattern.match(message, at))), None)
        if passed is not None:
            at = passed
            continue
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not number or tag > MAX_TAG:
            raise WireError("a tag that is none")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:  # groups, which nothing in use writes
            raise WireError("a wire type that is not in use")
        if size > end - at:
            raise WireError("a field that is longer than its message")
        yield number, message[at : at + size]
        at += size


def signed(value: int) -> int:
    """A varint as the int64 that it stands for.

    >>> signed((1 << 64) - 1)
    -1
    """
    return value - (1 << 64) if value >> 63 else value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise WireError("a number that does not end")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise WireError("a number of more than 64 bits")
            return value, at
        shift += 7


def _tag(number: int, kind: int) -> bytes:
    assert number < 16, "one byte"
    return bytes([number << 3 | kind])
