"""Tokens: made once, shown once, kept as hashes in one file of the store; what is taken away there counts at once.

A token is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess. The file is JSON for its owner
alone, and replaced as a whole; a server that uses it sees a change within a second.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from detectors.bundle import make_folder, replaced, write_durably
from detectors.errors import AlreadyExistsError, InvalidInputError, NotFoundError, PreconditionError
from server.security.principals import SCOPES, Principal, Scope

PREFIX = "pw_"
TOKEN_BYTES = 32
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
LOOK_SECONDS = 1.0
MAX_FILE_BYTES = 4 << 20
logger = logging.getLogger("prunewatch.security.tokens")


class Token(BaseModel):
    """What is kept of a token."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(min_length=1)
    created: float
    """Seconds since the epoch."""
    expires: float | None = None
    """The same; None: never."""

    def counts(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.expires is None or now < self.expires


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = 1
    tokens: list[Token] = []


class Tokens:
    """The tokens of one file.

    Args:
        path: The file; none is no token.
        clock: Seconds since the epoch.
        monotonic: Seconds that only ever pass, for how often the file is looked at.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._monotonic = monotonic
        self._looked = -LOOK_SECONDS
        self._seen: tuple[int, int, int] | None = None
        self._by_hash: dict[str, Token] = {}

    def principal(self, token: str) -> Principal | None:
        """Whose token this is; None where it is nobody's, or has expired."""
        self._look()
        found = self._by_hash.get(_hash(token))
        if found is None or not found.counts(self._clock()):
            return None
        return Principal(found.name, frozenset(found.scopes))

    def _look(self) -> None:
        """Follows the file; one that can not be read changes nothing but the log."""
        now = self._monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._by_hash = {token.sha256: token for token in read_tokens(self._path)}
                self._seen = seen
        except FileNotFoundError:
            self._by_hash, self._seen = {}, None
        except (OSError, PreconditionError):
            logger.exception("the tokens can not be read; those known before count on")


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file, by name; none where there is no file.

    Raises:
        PreconditionError: it is no such file, or others than its owner can read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise PreconditionError(
                "can be read by others than its owner.", field=str(path), hint=f"Run chmod 600 {path.name}."
            )
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return []
    try:
        found = _File.model_validate_json(raw)
    except ValidationError as error:
        raise PreconditionError("is no file of tokens.", field=str(path)) from error
    return sorted(found.tokens, key=lambda token: token.name)


def make_token(
    path: Path, name: str, scopes: Collection[str], *, now: float, valid_seconds: float | None = None
) -> str:
    """Makes a token, keeps its hash, and returns it: it can not be shown again.

    Raises:
        InvalidInputError: name or scopes can not be.
        AlreadyExistsError: there is one of this name.
        PreconditionError: the file is none.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInputError(
            f"{name[:80]!r} is not a name for a token.", field="name", hint="Write letters, digits, `.`, `_`, `@`, `-`."
        )
    granted: list[Scope] = [scope for scope in SCOPES if scope in scopes]
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise InvalidInputError(
            f"{unknown[0][:80]!r} is not a scope.", field="scope", hint=f"Choose of {', '.join(SCOPES)}."
        )
    if not granted:
        raise InvalidInputError("it may do nothing.", field="scope", hint=f"Choose of {', '.join(SCOPES)}.")
    if valid_seconds is not None and valid_seconds <= 0:
        raise InvalidInputError("it would have expired already.", field="expires", hint="Write e.g. 90d.")
    kept = read_tokens(path)
    if any(token.name == name for token in kept):
        raise AlreadyExistsError(f"there is a token {name!r} already.", field="name", hint="Remove it first.")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires = None if valid_seconds is None else now + valid_seconds
    made = Token(name=name, sha256=_hash(token), scopes=granted, created=now, expires=expires)
    _write(path, [*kept, made])
    return token


def remove_token(path: Path, name: str) -> None:
    """Takes a token away.

    Raises:
        NotFoundError: there is none of this name.
        PreconditionError: the file is none.
    """
    kept = read_tokens(path)
    left = [token for token in kept if token.name != name]
    if len(left) == len(kept):
        raise NotFoundError(f"there is no token {name[:80]!r}.", field="name")
    _write(path, left)


def read_token_file(path: Path) -> str:
    """A token from a file that holds nothing else.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it holds no token.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file.", field=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("can not be read as a token.", field=str(path)) from error
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", text):
        raise InvalidInputError("holds no token.", field=str(path), hint="It is one line, and nothing else.")
    return text


def _write(path: Path, tokens: list[Token]) -> None:
    make_folder(path.parent)
    with replaced(path) as partial:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        write_durably(partial, _File(tokens=tokens).model_dump_json(indent=1).encode() + b"\n")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
