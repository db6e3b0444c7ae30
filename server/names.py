"""Resource names of the API: `detectors/pump`, `operations/3f2a`."""

from __future__ import annotations

import re

from detectors.bundle import NAME_PATTERN
from detectors.errors import InvalidInputError

_DETECTOR = re.compile(f"detectors/({NAME_PATTERN.strip('^$')})")
_DEVICE = re.compile(f"devices/({NAME_PATTERN.strip('^$')})")
_CLASS = re.compile(f"deviceClasses/({NAME_PATTERN.strip('^$')})")
_ROLLOUT = re.compile(r"rollouts/([1-9][0-9]{0,17})")
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


def device_id(name: str, field: str = "name") -> str:
    """The name of a device without its prefix; InvalidInputError when it is not one.

    >>> device_id("devices/north-7")
    'north-7'
    """
    return _matched(_DEVICE, name, field, "a device", "devices/north-7")


def device_name(device: str) -> str:
    """The resource name of a device.

    >>> device_name("north-7")
    'devices/north-7'
    """
    return f"devices/{device}"


def device_class_id(name: str, field: str = "name") -> str:
    """The name of a device class without its prefix; InvalidInputError when it is not one."""
    return _matched(_CLASS, name, field, "a device class", "deviceClasses/pi4")


def device_class_name(device_class: str) -> str:
    """The resource name of a device class."""
    return f"deviceClasses/{device_class}"


def rollout_id(name: str) -> int:
    """The number of a roll-out; InvalidInputError when it is not one."""
    return int(_matched(_ROLLOUT, name, "name", "a roll-out", "rollouts/12"))


def _matched(pattern: re.Pattern[str], name: str, field: str, what: str, example: str) -> str:
    match = pattern.fullmatch(name)
    if match is None:
        raise InvalidInputError(
            f"{name[:80]!r} is not the name of {what}." if name else f"the name of {what} is missing.",
            field=field,
            hint=f"Write it as {example}.",
        )
    return match[1]
