"""How a device becomes known: once, with a token that an operator has made and the hub knows by its hash alone."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from detectors.errors import AlreadyExistsError, DeniedError, ExhaustedError, InvalidInputError
from server.catalog import Catalog
from server.fleet import rows
from server.fleet.keys import Keys
from server.fleet.records import Device
from server.releases import KEY_BYTES, Signed

VALID_SECONDS = 86400.0
LONGEST_SECONDS = 30 * 86400.0
SECRET_BYTES = 24


@dataclass(frozen=True)
class Token:
    """A token: `SECRET.FINGERPRINT`, the fingerprint being that of the key that the hub signs with.

    Attributes:
        text: To be given to the device.
        expires: Seconds since the epoch.
    """

    text: str
    expires: float


class Enrolment:
    """Makes tokens, and takes devices that have one.

    Args:
        catalog: Where both are kept.
        keys: What devices are to trust.
        max_devices: More can not be enrolled.
        clock: Seconds since the epoch.
    """

    def __init__(self, catalog: Catalog, keys: Keys, max_devices: int, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._keys = keys
        self._max_devices = max_devices
        self._clock = clock

    def make_token(self, device_class: str, device: str = "", valid_seconds: float = 0.0) -> Token:
        """A token for one device of a class; `device` names it, or any one may use it.

        Raises:
            InvalidInputError: the time can not be.
        """
        valid = valid_seconds or VALID_SECONDS
        if not 0 < valid <= LONGEST_SECONDS:
            raise InvalidInputError(
                f"{valid_seconds:g} seconds can not be.",
                field="valid_seconds",
                hint="Give more than 0, at most 30 days.",
            )
        secret, now = secrets.token_urlsafe(SECRET_BYTES), self._clock()
        token = Token(f"{secret}.{self._keys.current.key_id}", now + valid)
        with self._catalog.writing() as connection:
            rows.add_token(connection, digest(token.text), device_class, device, created=now, expires=token.expires)
        return token

    def enrol(self, name: str, device_class: str, token: str, public_key: bytes) -> Signed:
        """Makes a device known; returns the keys that it is to trust, signed by the one that its token names.

        A device that is known already begins anew where the token was made for it by name. One that never heard that
        it was let in asks again with the same token and key, and is told the same: nothing changes.

        Raises:
            InvalidInputError: this is no key.
            DeniedError: the token is unknown, used, over, or for another device or class.
            AlreadyExistsError: there is a device of this name.
            ExhaustedError: there are too many.
        """
        if len(public_key) != KEY_BYTES:
            raise InvalidInputError(
                f"it has {len(public_key)} bytes.", field="public_key", hint="An ed25519 key has 32 bytes."
            )
        now, fingerprint = self._clock(), token.rpartition(".")[2]
        with self._catalog.writing() as connection:
            known = rows.find_token(connection, digest(token))
            if known is None:
                raise _denied("it is not known")
            if known["used"] is not None:
                if self._is_asked_again(rows.find_device(connection, name), device_class, public_key, fingerprint):
                    return self._keys.key_set(fingerprint)
                raise _denied("it was used already")
            if now > known["expires"]:
                raise _denied("its time is over")
            if known["device_class"] != device_class:
                raise _denied(f"it is not for the class {device_class[:63]!r}")
            if known["device"] not in {"", name}:
                raise _denied("it is for another device")
            if not self._keys.is_trusted(fingerprint):
                raise _denied("it was made for a signing key that is not trusted any more")
            if rows.find_device(connection, name) is not None and not known["device"]:
                raise AlreadyExistsError(
                    f"there is a device {name!r} already.",
                    field="name",
                    hint="Choose another name, or make a token for this one by name, with which it begins anew.",
                )
            if sum(rows.count_devices(connection).values()) >= self._max_devices:
                raise ExhaustedError(
                    f"{self._max_devices} devices are enrolled.",
                    field="fleet.max_devices",
                    hint="Remove some, or raise it.",
                )
            rows.use_token(connection, digest(token), now)
            device = Device(name, device_class, public_key.hex(), fingerprint, {}, None, None, now, 0)
            rows.put_device(connection, device)
        return self._keys.key_set(fingerprint)

    def _is_asked_again(self, device: Device | None, device_class: str, public_key: bytes, fingerprint: str) -> bool:
        """Whether this is the device that has used a token, whose answer was lost: it has never been connected."""
        return (
            device is not None
            and not device.facts
            and device.device_class == device_class
            and device.public_key == public_key.hex()
            and self._keys.is_trusted(fingerprint)
        )


def digest(token: str) -> str:
    """What is kept of a token. It has 192 random bits, so nobody finds it by trying."""
    return hashlib.sha256(token.encode()).hexdigest()


def _denied(why: str) -> DeniedError:
    return DeniedError(
        f"the token can not be used: {why}.", field="token", hint="Ask for a new one: `prunewatch devices enrol-token`."
    )
