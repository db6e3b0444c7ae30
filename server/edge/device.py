"""Who a device is: name and class, its own key, and whose statements it trusts; all in its store.

<store>/lock         held by the one process that uses the store
<store>/device.key   the private key, made here, never sent (mode 600)
<store>/device.json  name, class, and what the hub has allowed it to send; there once it is enrolled
<store>/trust.json   the newest signed set of the hub's keys
<store>/detectors/   what it runs (`server.edge.slots`)
<store>/downloads/   files on their way (`server.edge.delivery`)
<store>/series/      state of series (`server.series_file`)
<store>/outbox.db    reports that wait (`server.edge.outbox`)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detectors.bundle import make_folder, replaced, write_durably
from detectors.errors import InvalidInputError, NotFoundError, PreconditionError
from detectors.failpoints import failpoint
from server.config import check_device_class
from server.layout import LOCK
from server.lock import acquire
from server.releases import KeySet, Name, Signed, SigningKey, Trust, UntrustedError, first_trust

KEY = "device.key"
IDENTITY = "device.json"
TRUST = "trust.json"
MAX_TOKEN_BYTES = 1024
logger = logging.getLogger("prunewatch.edge.device")


class FieldLimits(BaseModel):
    """How much of its points a device may send. Nothing, until a hub has said that some are wanted."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    wanted: bool = False
    bytes_per_hour: int = Field(default=0, ge=0)
    windows_per_hour: int = Field(default=0, ge=0)


class Identity(BaseModel):
    """Who it is, as `device.json` has it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    schema_version: int = 1
    name: Name | None = None
    """None: it was never enrolled; it takes what a trusted key has signed for its class, from files."""
    device_class: Name
    enrolled: bool = False
    """Whether a hub knows it."""
    field: FieldLimits = FieldLimits()


class Device:
    """The device of a store. Use `open`; `close` lets others use the store."""

    def __init__(self, root: Path, lock: BinaryIO, key: SigningKey, identity: Identity | None) -> None:
        self.root = root
        self.key = key
        self._lock = lock
        self._identity = identity
        self._trust: Trust | None = None
        self.asked: Identity | None = None
        """What the command line says that it is to be enrolled as."""

    @classmethod
    def open(cls, root: Path, *, name: str | None = None, device_class: str | None = None) -> Self:
        """Opens the store of a device, or makes one.

        Args:
            root: The folder; the only one that is written to.
            name: What it is to be called; may be left out once it is enrolled.
            device_class: Its class; the same.

        Raises:
            StoreInUseError: another process holds it.
            PreconditionError: it is enrolled as another one, or a file of it is damaged.
            InvalidInputError: name or class can not be.
        """
        make_folder(root)
        lock = acquire(root / LOCK)
        try:
            device = cls(root, lock, _key(root / KEY), _identity(root / IDENTITY))
            device._load_trust()
            device._take_names(name, device_class)
        except BaseException:
            lock.close()
            raise
        return device

    def close(self) -> None:
        """Lets others use the store."""
        self._lock.close()

    @property
    def identity(self) -> Identity:
        """Who it is, or is to be.

        Raises:
            PreconditionError: nobody has said it yet.
        """
        if (identity := self.asked or self._identity) is None:
            raise PreconditionError(
                "this device has no class yet.", field="--device-class", hint="Say which: --device-class pi4"
            )
        return identity

    @property
    def is_enrolled(self) -> bool:
        """Whether a hub knows it."""
        return self._identity is not None and self._identity.enrolled and self._trust is not None

    @property
    def trust(self) -> Trust:
        """Whose statements count.

        Raises:
            UntrustedError: nobody's, yet.
        """
        if self._trust is None:
            raise UntrustedError(
                "no key is trusted here yet.", field="release", hint="Enrol the device, or give --trust."
            )
        return self._trust

    def enrolled(self, keys: Signed, fingerprint: str) -> None:
        """Notes durably that a hub knows it now.

        Raises:
            UntrustedError: the keys are not those of the hub that made the token.
        """
        trust = first_trust(keys, fingerprint)
        identity = self.identity.model_copy(update={"enrolled": True})
        self._keep_trust(keys, trust)
        self._keep_identity(identity)
        self.asked = None

    def follow(self, keys: Signed) -> bool:
        """Trusts a newer set of keys that one of this set has signed; whether it was newer.

        Raises:
            UntrustedError: no trusted key has signed it; nothing changes.
        """
        trust = self.trust.followed(keys)
        if trust is self._trust:
            return False
        self._keep_trust(keys, trust)
        logger.info("trusting set %d of the hub's keys: %s", trust.counter, ", ".join(trust.keys))
        return True

    def trust_file(self, path: Path) -> None:
        """Trusts a set of keys that somebody has brought; one that is trusted already decides by itself.

        Raises:
            NotFoundError: there is no such file.
            UntrustedError: it is no such set, or not one of the hub that is trusted already.
        """
        keys = read_keys(path)
        if self._trust is not None:
            self.follow(keys)
            return
        self._keep_trust(keys, first_trust(keys, keys.key_id))
        self._keep_identity(self.identity)

    def limit_field(self, limits: FieldLimits) -> None:
        """Notes durably what it may send, where that is something new."""
        if self._identity is not None and self._identity.field != limits:
            self._keep_identity(self._identity.model_copy(update={"field": limits}))

    def _take_names(self, name: str | None, device_class: str | None) -> None:
        if device_class is not None:
            check_device_class(device_class)
        known = self._identity
        if known is not None:
            for option, asked, has in (
                ("--device", name, known.name),
                ("--device-class", device_class, known.device_class),
            ):
                if asked is not None and has is not None and asked != has:
                    raise PreconditionError(
                        f"this store is that of {has!r}, not {asked!r}.",
                        field=option,
                        hint="Leave it out, or use another store: a device is enrolled once.",
                    )
            if known.name is None and name is not None:
                self.asked = _asked(name, known.device_class)
        elif device_class is not None:
            self.asked = _asked(name, device_class)

    def _load_trust(self) -> None:
        try:
            signed = Signed.from_json((self.root / TRUST).read_bytes())
            # It was verified before it was written, by a key that may be gone since.
            self._trust = Trust.of(KeySet.model_validate_json(signed.payload))
        except FileNotFoundError:
            return
        except (UntrustedError, ValidationError) as error:
            raise PreconditionError(
                "is damaged.", field=str(self.root / TRUST), hint="Remove the store and enrol the device anew."
            ) from error

    def _keep_trust(self, keys: Signed, trust: Trust) -> None:
        _write(self.root / TRUST, keys.to_json())
        failpoint("trust.renamed")
        self._trust = trust

    def _keep_identity(self, identity: Identity) -> None:
        _write(self.root / IDENTITY, identity.model_dump_json().encode())
        self._identity = identity


def read_keys(path: Path) -> Signed:
    """A signed set of keys from a file.

    Raises:
        NotFoundError: there is no such file.
        UntrustedError: it is none.
    """
    try:
        return Signed.from_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file.", field=str(path)) from error


def read_token(path: Path) -> tuple[str, str]:
    """A token, and the fingerprint of the hub's key that it ends with.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it holds no token.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN_BYTES).decode(errors="replace").strip()
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file.", field=str(path)) from error
    secret, _, fingerprint = text.rpartition(".")
    if not secret or len(fingerprint) != 16:
        raise InvalidInputError(
            "holds no token.", field=str(path), hint="Ask the hub for one; it looks like SECRET.FINGERPRINT."
        )
    return text, fingerprint


def _asked(name: str | None, device_class: str) -> Identity:
    try:
        return Identity(name=name, device_class=device_class)
    except ValidationError as error:
        raise InvalidInputError(
            f"{(name or '')[:80]!r} is not the name of a device.",
            field="--device",
            hint="Write up to 63 lower-case letters, digits, `-` and `_`, a letter first.",
        ) from error


def _key(path: Path) -> SigningKey:
    try:
        return SigningKey.read(path)
    except NotFoundError:
        key = SigningKey.generate()
        key.write(path)
        return key


def _identity(path: Path) -> Identity | None:
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PreconditionError(
            "is damaged.", field=str(path), hint="Remove the store and enrol the device anew."
        ) from error


def _write(path: Path, content: bytes) -> None:
    with replaced(path) as partial:
        write_durably(partial, content)
