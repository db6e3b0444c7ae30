"""Errors and logs hold no secrets: every call, every class of error, with tokens, keys, values and paths planted."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import io
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import sqlalchemy.exc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry
from test_robustness import good_request, methods

import detectors.errors
from detectors.errors import PrunewatchError
from server import logs
from server.admission import Gate
from server.discretion import redacted, without_folders
from server.fleet.enrolment import SECRET_BYTES
from server.interceptors import Guard
from server.metrics import Metrics
from server.schema import open_database
from server.security.gatekeeper import Gatekeeper
from server.security.tokens import Tokens, make_token
from server.statuses import UNEXPECTED

FOLDER = "/var/lib/hidden-place"
VALUE = 31415.9265
KEY = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)
ENROL = "enrolEnrol-enrol_enrolEnrol-enro." + "0123456789abcdef" * 2
"""As `server.fleet.enrolment` makes them."""


def planted(token: str) -> str:
    """The text of an error that has taken everything along."""
    return f"{FOLDER}/catalog.db and {FOLDER}/keys/ of Bearer {token}, {token}, {ENROL}: {VALUE} {KEY}"


def classes() -> list[type[Exception]]:
    """Every class of error that Python, SQLite, SQLAlchemy, gRPC and we have."""
    found = [
        it
        for module in (builtins, sqlite3, sqlalchemy.exc, detectors.errors, asyncio)
        for it in vars(module).values()
        if inspect.isclass(it) and issubclass(it, Exception) and not issubclass(it, Warning | asyncio.CancelledError)
    ]
    return sorted(set(found), key=lambda it: it.__name__)


def made(kind: type[Exception], text: str) -> Exception:
    """An error of a class, with a text in it wherever it takes one."""
    if issubclass(kind, PrunewatchError):
        return kind(f"it lies in {FOLDER}/bundles.", field=f"{FOLDER}/catalog.db", hint=f"Look into {FOLDER}/x.")
    if issubclass(kind, OSError):
        return kind(5, text, f"{FOLDER}/catalog.db")
    for arguments in (
        (text,),
        (text, text, RuntimeError(text)),
        (text, [RuntimeError(text)]),
        ("utf-8", text.encode(), 0, 1, text),
        ("utf-8", text, 0, 1, text),
        (text, 0, 1, text),
        (b"", None),
        (),
    ):
        try:
            return kind(*arguments)
        except TypeError:
            continue
    pytest.fail(f"{kind.__name__} can not be made")


class Faulty(grpc.GenericRpcHandler):
    """Every method of the API; each raises what it is told to after it has read its message."""

    def __init__(self) -> None:
        self.error: Exception = RuntimeError()
        self._kinds = dict(methods())

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """A handler of the kind that the method is."""
        method = self._kinds[handler_call_details.method]
        sides = ["stream" if it else "unary" for it in (method.client_streaming, method.server_streaming)]
        behaviour = self._stream if method.server_streaming else self._unary
        wrap = getattr(grpc, f"{'_'.join(sides)}_rpc_method_handler")
        return wrap(behaviour, request_deserializer=GetMessageClass(method.input_type).FromString)

    async def _unary(self, request: object, _context: object) -> None:
        if hasattr(request, "__aiter__"):
            async for _ in request:
                break
        raise self.error

    async def _stream(self, request: object, context: object) -> AsyncIterator[bytes]:
        await self._unary(request, context)
        yield b""


@pytest.fixture
def log() -> Iterator[Callable[[], str]]:
    """Everything that is logged from now on, as JSON and for people."""
    root, own = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = root.handlers, root.level, own.level
    streams = io.StringIO(), io.StringIO()
    handlers = []
    for form, stream in zip(("json", "console"), streams, strict=True):
        logs.set_up(form, "debug", stream)
        handlers += root.handlers
    root.handlers = handlers
    yield lambda: "".join(it.getvalue() for it in streams)
    root.handlers = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


@asynccontextmanager
async def faulty(tmp_path: Path) -> AsyncIterator[tuple[Faulty, grpc.aio.Channel, str]]:
    """A server whose every method fails behind the guard of the product, with a token that it asks for."""
    token = make_token(tmp_path / "tokens.json", "ann", ["admin"], now=time.time())
    gate = Gate(10_000, 10_000)
    guard = Guard(Metrics(CollectorRegistry()), gate, gate, Gatekeeper(Tokens(tmp_path / "tokens.json")))
    server, service = grpc.aio.server(interceptors=[guard]), Faulty()
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, channel, token
    await server.stop(0)


async def answer(channel: grpc.aio.Channel, path: str, method: object, token: str) -> str:
    """All that a caller learns from a call that fails."""
    sides = ["stream" if it else "unary" for it in (method.client_streaming, method.server_streaming)]
    raw = good_request(GetMessageClass(method.input_type)).SerializeToString()
    start = getattr(channel, "_".join(sides))(path)
    metadata = (("authorization", f"Bearer {token}"),)
    call = start(iter([raw]) if method.client_streaming else raw, metadata=metadata, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (anext(aiter(call)) if method.server_streaming else call)
    error = caught.value
    assert error.code() is not grpc.StatusCode.UNKNOWN
    told = [
        error.details() or "",
        *map(repr, error.trailing_metadata() or ()),
        *map(repr, error.initial_metadata() or ()),
    ]
    return " ".join(told)


@pytest.mark.promise("S9")
async def test_no_error_of_any_class_on_any_call_tells_a_secret(tmp_path: Path, log: Callable[[], str]) -> None:
    """Replies have no token, key, value, path or text of an exception; the log has no token and no key."""
    every = classes()
    assert len(every) > 80
    async with faulty(tmp_path) as (service, channel, token):
        for kind in every:
            service.error = made(kind, planted(token))
            answers = await asyncio.gather(*(answer(channel, *it, token) for it in methods()[::7]))
            for told in answers:
                assert UNEXPECTED in told or issubclass(kind, PrunewatchError) or "disk" in told
                assert not [it for it in (token, KEY, ENROL, str(VALUE), FOLDER, "hidden-place") if it in told], kind
        for path, method in methods():
            told = await answer(channel, path, method, token)
            assert "hidden-place" not in told
    logged = log()

    assert logged.count("unexpected error") > 100
    body = KEY.splitlines()[1]
    assert not [it for it in (token, ENROL, body) if it in logged]


@pytest.mark.promise("S9")
def test_no_error_of_the_catalog_tells_what_was_to_be_written(tmp_path: Path) -> None:
    """SQLAlchemy puts parameters into its errors unless it is told not to."""
    from sqlalchemy import text

    engine = open_database(tmp_path / "catalog.db")
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.SQLAlchemyError) as caught:
        connection.execute(text("INSERT INTO nowhere VALUES (:token)"), {"token": ENROL})
    engine.dispose()

    assert ENROL not in str(caught.value)


def test_tokens_and_keys_are_known_when_they_are_seen(tmp_path: Path) -> None:
    """Those that the product makes, wherever in a text they stand; words beside them stay."""
    token = make_token(tmp_path / "tokens.json", "ann", ["admin"], now=0.0)
    assert len(ENROL.partition(".")[0]) == SECRET_BYTES * 4 // 3

    for secret in (token, ENROL, KEY):
        said = redacted(f"before {secret} after")
        assert secret not in said
        assert said.startswith("before [hidden]")
        assert said.rstrip().endswith("after")


@pytest.mark.parametrize(
    "innocent",
    [
        "detectors/pump is pinned.",
        "Ask GET /metrics.",
        "prunewatch.v1.ScoringService/Score",
        "https://prunewatch.example/docs/a/b",
        "0.5 points/s",
        "Write it as rollouts/12.",
    ],
)
def test_what_is_no_path_stays(innocent: str) -> None:
    """Names of resources, addresses and units look a little like paths."""
    assert without_folders(innocent) == innocent
    assert redacted(innocent) == innocent


@pytest.mark.parametrize(
    "text", ["/srv/a/b.db: gone", "in '/srv/a/b.db'", "--store /srv/a/b.db", "x=/srv/a/b.db", "~/a/b.db"]
)
def test_paths_are_told_by_their_last_part(text: str) -> None:
    """Wherever in a sentence they stand."""
    assert "b.db" in without_folders(text)
    assert "/" not in without_folders(text)
