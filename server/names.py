"""Resource names of the API: `detectors/pump`, `operations/3f2a`."""

from __future__ import annotations

import re

from detectors.bundle import NAME_PATTERN
from detectors.errors import InvalidInputError

_DETECTOR = re.compile(f"detectors/({NAME_PATTERN.strip('^$')})")
_OPERATION = re.compile(r"operations/[0-9a-f]{1,64}")


def detector_id(name: str, field: str = "name") -> str:
    """The name of a detector without its prefix.

    Raises:
        InvalidInputError: it is not one; `field` says where it stood.

    >>> detector_id("detectors/pump")
    'pump'
    """
    match = _DETECTOR.fullmatch(name)
    if match is None:
        raise InvalidInputError(
            f"{name[:80]!r} is not the name of a detector." if name else "the name of a detector is missing.",
            field=field,
            hint="Write it as detectors/pump: lower-case letters, digits, `-` and `_`, a letter first.",
        )
    return match[1]


def detector_name(detector: str) -> str:
    """The resource name of a detector.

    >>> detector_name("pump")
    'detectors/pump'
    """
    return f"detectors/{detector}"


def member_id(name: str, collection: str) -> tuple[str, int]:
    """The detector and the number of what belongs to it; InvalidInputError when `name` is no such name.

    >>> member_id("detectors/pump/feedback/12", "feedback")
    ('pump', 12)
    """
    parent, _, number = name.partition(f"/{collection}/")
    if not re.fullmatch(r"[1-9][0-9]{0,17}", number) or _DETECTOR.fullmatch(parent) is None:
        raise InvalidInputError(
            f"{name[:80]!r} is not the name of one.", field="name", hint=f"Write it as detectors/pump/{collection}/12."
        )
    return detector_id(parent), int(number)


def operation_name(name: str) -> str:
    """The name of an operation as it is; InvalidInputError when it is not one."""
    if _OPERATION.fullmatch(name) is None:
        raise InvalidInputError(
            f"{name[:80]!r} is not the name of an operation.", field="name", hint="Write it as operations/3f2a."
        )
    return name
