"""What a hub signs and a device verifies: releases, probes, and the keys to trust. ed25519, JSON, nothing else.

A signature covers the name of the format and the very bytes of the payload, so that a statement of one kind is never
taken for another, and nothing is parsed before it is known whose it is. Expiry and counters are in the payload: what
a device may adopt is decided by the device, offline.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from detectors.bundle import MAX_FILE_BYTES, NAME_PATTERN, replaced, write_durably
from detectors.errors import NotFoundError, PreconditionError

Kind = Literal["release", "probe", "keys"]
MAX_PAYLOAD_BYTES = 1 << 20
KEY_BYTES = 32
SCHEMA_VERSION = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class UntrustedError(PreconditionError):
    """A statement that nobody who is trusted has signed, or that is not meant for whoever reads it."""


@dataclass(frozen=True)
class Signed:
    """A statement.

    Attributes:
        payload: The bytes that were signed.
        key_id: Which key signed.
        signature: 64 bytes.
    """

    payload: bytes
    key_id: str
    signature: bytes

    def to_json(self) -> bytes:
        """As files keep it."""
        return json.dumps(
            {"payload": self.payload.decode(), "key_id": self.key_id, "signature": self.signature.hex()}
        ).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """The inverse; nothing is verified yet.

        Raises:
            UntrustedError: it is none.
        """
        try:
            content = json.loads(raw) if len(raw) <= 2 * MAX_PAYLOAD_BYTES else {}
            return cls(content["payload"].encode(), str(content["key_id"]), bytes.fromhex(content["signature"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UntrustedError("is not a signed statement.", field="statement") from error


class Said(BaseModel):
    """What all payloads have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION

    def to_payload(self) -> bytes:
        """The bytes to sign."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


class ReleaseSettings(BaseModel):
    """How a device alarms and judges stamps: the keys of `DetectorConfig` with the same names, durations in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    false_alarm_rate: float = Field(gt=0, lt=1)
    time: Literal["stamp", "index"] = "stamp"
    duplicate: Literal["reject", "score"] = "reject"
    missing: Literal["reject", "carry"] = "reject"
    max_ahead: float | None = None
    max_gap: float | None = None


class Release(Said):
    """That devices of a class are to score with a bundle from now on."""

    detector: Name
    device_class: Name
    bundle: Sha256
    """Its hash."""
    version: int = Field(ge=1)
    """The version that it belongs to, for people."""
    counter: int = Field(ge=1)
    """Goes up with every release of this detector and class, also with one that goes back to an older bundle."""
    issued: int
    """Seconds since the epoch."""
    expires: int
    """Seconds since the epoch. Blocks adopting, never serving."""
    settings: ReleaseSettings


class ProbeGraph(BaseModel):
    """A graph to measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: Sha256
    bytes: int = Field(ge=1, le=MAX_FILE_BYTES)


class Probe(Said):
    """That devices of a class are to measure graphs and to report what a step costs."""

    id: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    device_class: Name
    batch: int = Field(ge=1, le=65536)
    rounds: int = Field(ge=1, le=100)
    graphs: list[ProbeGraph] = Field(min_length=1, max_length=2048)
    issued: int
    expires: int


class TrustedKey(BaseModel):
    """The public half of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: int


class KeySet(Said):
    """Which keys sign, all of them; a device that trusts one of an older set trusts these from then on."""

    counter: int = Field(ge=1)
    keys: list[TrustedKey] = Field(min_length=1, max_length=16)


Model = TypeVar("Model", bound=Said)


class SigningKey:
    """A private key. Made with `generate`, kept in a file that only its owner reads."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads one.

        Raises:
            NotFoundError: there is no such file.
            PreconditionError: it holds no key, or others may read it.
        """
        try:
            mode, raw = path.stat().st_mode, path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError("there is no such key.", field=str(path)) from error
        if mode & 0o077:
            raise PreconditionError(
                "can be read by others than its owner.", field=str(path), hint=f"Run chmod 600 {path.name}."
            )
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw.decode().strip())))
        except ValueError as error:
            raise PreconditionError("holds no key.", field=str(path)) from error

    def write(self, path: Path) -> None:
        """Writes it durably, for its owner alone."""
        with replaced(path) as partial:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            write_durably(partial, self._key.private_bytes_raw().hex().encode() + b"\n")

    @property
    def key_id(self) -> str:
        """Its fingerprint."""
        return key_id(self.public)

    def sign(self, kind: Kind, said: Said) -> Signed:
        """A statement."""
        payload = said.to_payload()
        return Signed(payload, self.key_id, self._key.sign(_signed_bytes(kind, payload)))

    def sign_bytes(self, purpose: str, content: bytes) -> bytes:
        """Signs what is no statement: a device's answer to a challenge."""
        return self._key.sign(_signed_bytes(purpose, content))


@dataclass(frozen=True)
class Trust:
    """Whose statements count.

    Attributes:
        keys: Public keys by their ids.
        counter: Of the set that they came in.
    """

    keys: Mapping[str, bytes]
    counter: int

    @classmethod
    def of(cls, keys: KeySet) -> Self:
        """Those of a set."""
        public = [bytes.fromhex(key.public_key) for key in keys.keys]
        return cls({key_id(it): it for it in public}, keys.counter)

    def payload(self, kind: Kind, signed: Signed) -> bytes:
        """What a statement says, once it is known whose it is.

        Raises:
            UntrustedError: it is of no trusted key, or was changed.
        """
        public = self.keys.get(signed.key_id)
        if public is None:
            raise UntrustedError(f"is signed by the key {signed.key_id[:16]!r}, which is not trusted.", field=kind)
        if len(signed.payload) > MAX_PAYLOAD_BYTES or not verifies(public, kind, signed.payload, signed.signature):
            raise UntrustedError("is not what was signed.", field=kind)
        return signed.payload

    def release(self, signed: Signed) -> Release:
        """A verified release. Whether it may be adopted now is for `require_adoptable`."""
        return _read(Release, self.payload("release", signed))

    def probe(self, signed: Signed) -> Probe:
        """A verified probe."""
        return _read(Probe, self.payload("probe", signed))

    def followed(self, signed: Signed) -> Trust:
        """Whom to trust from now on: a newer set that a key of this one has signed; an older one changes nothing.

        Raises:
            UntrustedError: no key of this set has signed it.
        """
        keys = _read(KeySet, self.payload("keys", signed))
        return Trust.of(keys) if keys.counter > self.counter else self


def first_trust(signed: Signed, fingerprint: str) -> Trust:
    """Whom a device trusts that knows only the fingerprint of the hub's key, from its token.

    Raises:
        UntrustedError: the set is not signed by that key.
    """
    keys = _read(KeySet, signed.payload)
    trust = Trust.of(keys)
    if signed.key_id != fingerprint:
        raise UntrustedError("is not signed by the hub that made the token.", field="keys")
    trust.payload("keys", signed)
    return trust


def require_adoptable(release: Release, *, device_class: str, counter: int, now: float) -> None:
    """Refuses what a device must not begin to serve.

    Args:
        release: Verified.
        device_class: Of the device.
        counter: Of the newest release of the detector that the device has taken or refused; 0: of none.
        now: Seconds since the epoch.

    Raises:
        UntrustedError: it is meant for others, too old, or has expired.
    """
    if release.device_class != device_class:
        raise UntrustedError(f"is for the class {release.device_class!r}, not {device_class!r}.", field="release")
    if release.counter < counter:
        raise UntrustedError(f"is number {release.counter}; number {counter} has been seen already.", field="release")
    if now > release.expires:
        raise UntrustedError("has expired.", field="release", hint="The hub issues a new one; is the clock right?")


def key_id(public: bytes) -> str:
    """Fingerprint of a public key.

    >>> key_id(bytes(32))
    '66687aadf862bd77'
    """
    return hashlib.sha256(public).hexdigest()[:16]


def verifies(public: bytes, purpose: str, content: bytes, signature: bytes) -> bool:
    """Whether the owner of a key has signed this for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed_bytes(purpose, content))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed_bytes(purpose: str, content: bytes) -> bytes:
    if not re.fullmatch(r"[a-z]+", purpose):
        raise ValueError(purpose)
    return b"prunewatch " + purpose.encode() + b" 1\n" + content


def _read(model: type[Model], payload: bytes) -> Model:
    """Parses a payload.

    Raises:
        UntrustedError: it is not of this format.
    """
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise UntrustedError(f"is no {model.__name__} that this version understands.", field="statement") from error
