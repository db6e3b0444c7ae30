"""Tokens: kept as hashes, with scopes and an end; the file is followed while a server runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.errors import AlreadyExistsError, InvalidInputError, NotFoundError, PreconditionError
from server.security.principals import SCOPES, Principal
from server.security.tokens import LOOK_SECONDS, Tokens, make_token, read_token_file, read_tokens, remove_token

NOW = 1_700_000_000.0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Now."""
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where tokens will be."""
    return tmp_path / "store" / "tokens.json"


def test_a_token_is_known_by_itself_alone(path: Path) -> None:
    """Its owner has name and scopes; any other text is nobody's; the file holds no token."""
    token = make_token(path, "ci", ["score", "operate"], now=NOW)
    tokens = Tokens(path, clock=Clock(NOW))

    assert tokens.principal(token) == Principal("ci", frozenset({"score", "operate"}))
    assert all(
        tokens.principal(other) is None for other in ("", token[:-1], token + "x", token.upper(), "pw_", "\ud800")
    )
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_ends(path: Path) -> None:
    """From its end on it is nobody's."""
    clock = Clock(NOW)
    token = make_token(path, "ci", ["score"], now=NOW, valid_seconds=60)
    tokens = Tokens(path, clock=clock)

    clock.now = NOW + 59
    assert tokens.principal(token) is not None
    clock.now = NOW + 60
    assert tokens.principal(token) is None


def test_what_is_removed_counts_at_once_and_what_is_made_too(path: Path) -> None:
    """A running server looks at the file once a second."""
    monotonic = Clock()
    tokens = Tokens(path, clock=Clock(NOW), monotonic=monotonic)
    assert tokens.principal("pw_nothing-yet") is None

    token = make_token(path, "ci", ["score"], now=NOW)
    monotonic.now += LOOK_SECONDS
    assert tokens.principal(token) is not None
    remove_token(path, "ci")
    monotonic.now += LOOK_SECONDS
    assert tokens.principal(token) is None


def test_a_damaged_file_leaves_those_that_were_known(path: Path) -> None:
    """Nobody is locked out, and nobody is let in."""
    monotonic = Clock()
    token = make_token(path, "ci", ["score"], now=NOW)
    tokens = Tokens(path, clock=Clock(NOW), monotonic=monotonic)
    assert tokens.principal(token) is not None

    path.write_text("{")
    monotonic.now += LOOK_SECONDS

    assert tokens.principal(token) is not None
    with pytest.raises(PreconditionError, match="no file of tokens"):
        read_tokens(path)


def test_a_file_that_others_can_read_is_not_used(path: Path) -> None:
    """It says what to do."""
    token = make_token(path, "ci", ["score"], now=NOW)
    path.chmod(0o640)

    assert Tokens(path, clock=Clock(NOW)).principal(token) is None
    with pytest.raises(PreconditionError, match="chmod 600"):
        read_tokens(path)


@pytest.mark.parametrize(
    ("name", "scopes", "valid"),
    [
        ("", ["score"], None),
        ("a b", ["score"], None),
        ("x" * 64, ["score"], None),
        ("ci", [], None),
        ("ci", ["root"], None),
        ("ci", ["score", "root"], None),
        ("ci", ["score"], 0.0),
    ],
)
def test_what_can_not_be_a_token_is_refused(path: Path, name: str, scopes: list[str], valid: float | None) -> None:
    """And nothing is written."""
    with pytest.raises(InvalidInputError):
        make_token(path, name, scopes, now=NOW, valid_seconds=valid)
    assert not path.exists()


def test_names_are_taken_once(path: Path) -> None:
    """A second one of the name is refused, and one that is not there can not be removed."""
    make_token(path, "ci", ["score"], now=NOW)

    with pytest.raises(AlreadyExistsError):
        make_token(path, "ci", ["admin"], now=NOW)
    with pytest.raises(NotFoundError):
        remove_token(path, "other")
    assert [token.scopes for token in read_tokens(path)] == [["score"]]


@pytest.mark.promise("S10")
def test_scopes_are_apart() -> None:
    """Each allows what stands below it, and a device nothing of what people do."""
    allowed = {scope: {it for it in SCOPES if Principal("x", frozenset({scope})).may(it)} for scope in SCOPES}

    assert allowed == {
        "score": {"score"},
        "operate": {"score", "operate"},
        "admin": {"score", "operate", "admin"},
        "device": {"device"},
    }


def test_a_client_reads_its_token_from_a_file(tmp_path: Path) -> None:
    """One line; anything else is refused with the name of the file."""
    file = tmp_path / "token"
    file.write_text("pw_abcdefgh\n")
    assert read_token_file(file) == "pw_abcdefgh"

    for content in (b"", b"two words", b"\xff\xfe", b"a\nb"):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError):
            read_token_file(file)
    with pytest.raises(NotFoundError):
        read_token_file(tmp_path / "none")
