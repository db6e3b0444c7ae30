"""The keys that sign releases: made on first need, kept in the store, rotated.

    <store>/keys/keys.json      which there are, which are trusted, and the number of the set
    <store>/keys/<id>.key       the private half of each, for its owner alone

The last one made signs. A set of keys names all that devices are to trust; the hub signs it for each device with a key
that this device is known to trust, so that a device that was away for several rotations can follow. Therefore a key
that is no longer trusted by the set is kept as long as a device may know no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detectors.bundle import fsync_folder, replaced, write_durably
from detectors.errors import PreconditionError
from server.layout import KEYS
from server.releases import KeySet, Signed, SigningKey, TrustedKey, key_id

LIST = "keys.json"
MOST = 16
"""Keys of a set; of more the oldest is let go."""


class KeyFacts(BaseModel):
    """A key, public half."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: int
    trusted: bool = True
    """Whether it is in the set."""


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    counter: int = 0
    keys: list[KeyFacts] = []
    """Oldest first."""


class Keys:
    """The signing keys of a store.

    Args:
        root: The store's folder.
        clock: Seconds since the epoch.

    Raises:
        PreconditionError: they can not be read.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = root / KEYS
        self._clock = clock
        self._lock = threading.RLock()
        self._private: dict[str, SigningKey] = {}
        self._listed = self._read()

    def __len__(self) -> int:
        return sum(it.trusted for it in self._listed.keys)

    @property
    def known(self) -> list[KeyFacts]:
        """Those of the set, newest first: the first one signs."""
        return [it for it in reversed(self._listed.keys) if it.trusted]

    @property
    def current(self) -> SigningKey:
        """What signs; made where there is none yet.

        Raises:
            PreconditionError: its file is gone, or others may read it.
        """
        with self._lock:
            if not self._listed.keys:
                self.rotate()
            return self._key(self._listed.keys[-1].key_id)

    def is_trusted(self, key: str) -> bool:
        """Whether a key is in the set."""
        return any(it.key_id == key and it.trusted for it in self._listed.keys)

    def key_set(self, trusted_by_reader: str = "") -> Signed:
        """The set, signed by the key of this fingerprint, which its reader trusts; by the current one without it."""
        current = self.current
        keys = [TrustedKey(public_key=it.public_key, created=it.created) for it in self.known]
        known = any(it.key_id == trusted_by_reader for it in self._listed.keys)
        signer = self._key(trusted_by_reader) if known else current
        return signer.sign("keys", KeySet(counter=self._listed.counter, keys=keys))

    def rotate(self, *, retire_older: bool = False) -> KeyFacts:
        """Makes a new key, which signs from now on.

        Args:
            retire_older: Whether the set names no other.
        """
        with self._lock:
            return self._rotate(retire_older=retire_older)

    def _rotate(self, *, retire_older: bool) -> KeyFacts:
        key, now = SigningKey.generate(), int(self._clock())
        facts = KeyFacts(key_id=key.key_id, public_key=key.public.hex(), created=now)
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700)
            fsync_folder(self._folder.parent)
        key.write(self._path(facts.key_id))
        older = [it.model_copy(update={"trusted": it.trusted and not retire_older}) for it in self._listed.keys]
        trusted = [it.key_id for it in older if it.trusted][-(MOST - 1) :]
        older = [it.model_copy(update={"trusted": it.key_id in trusted}) for it in older]
        self._save(_Listed(counter=max(self._listed.counter + 1, now), keys=[*older, facts]))
        return facts

    def forget(self, needed: Collection[str]) -> None:
        """Removes keys that are in no set and that no device in `needed` (fingerprints) depends on."""
        with self._lock:
            gone = [it.key_id for it in self._listed.keys if not it.trusted and it.key_id not in needed]
            if not gone:
                return
            kept = [it for it in self._listed.keys if it.key_id not in gone]
            self._save(_Listed(counter=self._listed.counter, keys=kept))
            for each in gone:
                self._private.pop(each, None)
                self._path(each).unlink(missing_ok=True)

    def _key(self, each: str) -> SigningKey:
        if each not in self._private:
            key = SigningKey.read(self._path(each))
            if key.key_id != each:
                raise PreconditionError("is another key than its name says.", field=str(self._path(each)))
            self._private[each] = key
        return self._private[each]

    def _path(self, each: str) -> Path:
        return self._folder / f"{each}.key"

    def _save(self, listed: _Listed) -> None:
        with replaced(self._folder / LIST) as partial:
            write_durably(partial, listed.model_dump_json(indent=1).encode())
        self._listed = listed

    def _read(self) -> _Listed:
        path = self._folder / LIST
        try:
            listed = _Listed.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _Listed()
        except (OSError, ValidationError) as error:
            raise PreconditionError("is not a list of keys.", field=str(path), hint="Restore a backup.") from error
        if any(key_id(bytes.fromhex(it.public_key)) != it.key_id for it in listed.keys):
            raise PreconditionError("names a key wrongly.", field=str(path), hint="Restore a backup.")
        return listed
