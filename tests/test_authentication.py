"""Who may call: every RPC is enumerated by reflection and asked without, with a bad, an ended and a weak token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from authority import Authority, put
from conftest import QUICK_TRAINER, hub_settings, publish
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from graphs import ewma_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from detectors.errors import InvalidInputError
from prunewatch.client import Batch, Client, Credentials, ServiceError
from server.app import Hub
from server.config import load_settings
from server.security.policy import OPEN, required
from server.security.principals import IMPLIED, SCOPES
from server.security.tokens import make_token, remove_token

AUTHORITY = Authority.new()
TOKENS: dict[str, str] = {}
"""By scope, of the hub of `guarded`."""


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub that asks for tokens over plain text on loopback, with one token for each scope."""
    hub = Hub(hub_settings(tmp_path, auth={"max_calls": 3, "max_streams": 2}), trainer=QUICK_TRAINER)
    path = hub.settings.store / "tokens.json"
    for scope in SCOPES:
        TOKENS[scope] = make_token(path, scope, [scope], now=time.time())
    TOKENS["ended"] = make_token(path, "ended", ["admin"], now=0.0, valid_seconds=1.0)
    await hub.start()
    yield hub
    await hub.stop()


def client(hub: Hub, scope: str) -> Client:
    """A client with the token of a scope."""
    return Client(f"127.0.0.1:{hub.listener.port}", credentials=Credentials(TOKENS[scope]))


async def methods(channel: grpc.aio.Channel, token: str) -> dict[str, bool]:
    """Every method that reflection tells of, and whether its requests are a stream."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    found: dict[str, bool] = {}

    async def asked(**request: str) -> reflection_pb2.ServerReflectionResponse:
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**request)]), metadata=(("authorization", f"Bearer {token}"),)
        )
        return await anext(aiter(call))

    for service in (await asked(list_services="")).list_services_response.service:
        answer = await asked(file_containing_symbol=service.name)
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(raw)
            for it in file.service:
                if f"{file.package}.{it.name}" == service.name:
                    found |= {f"/{service.name}/{method.name}": method.client_streaming for method in it.method}
    return found


async def code_of(channel: grpc.aio.Channel, method: str, streamed: bool, token: str | None) -> grpc.StatusCode:
    """What an empty request comes to; OK where an answer comes, or none within a moment."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    kind = channel.stream_stream if streamed else channel.unary_stream
    call = kind(method)(iter([b""]) if streamed else b"", metadata=metadata, timeout=2)
    try:
        async for _ in call:
            break
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()
    return grpc.StatusCode.OK


@pytest.mark.promise("S1")
@pytest.mark.promise("S10")
async def test_every_call_is_closed_to_whoever_may_not_make_it(guarded: Hub) -> None:
    """No token, a wrong one, one that has ended: UNAUTHENTICATED. One without the scope: PERMISSION_DENIED."""
    unauthenticated, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.listener.port}") as channel:
        every = await methods(channel, TOKENS["score"])
        assert len(every) > 40
        for method, streamed in every.items():
            scope = required(method)
            for token in (None, "pw_wrong", TOKENS["ended"], ""):
                code = await code_of(channel, method, streamed, token)
                assert (code is unauthenticated) is (scope is not OPEN), (method, token, code)
            for granted in SCOPES:
                if scope is OPEN:
                    continue
                allowed = scope in IMPLIED[granted]
                if allowed and method.endswith(("/Watch", "/WatchCycles")):
                    continue  # they wait for something to happen
                code = await code_of(channel, method, streamed, TOKENS[granted])
                assert (code in (unauthenticated, denied)) is not allowed, (method, granted, code)


async def test_health_is_open_and_tells_nothing(guarded: Hub) -> None:
    """Whoever restarts processes need not know a secret."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.listener.port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_with_a_token_scores_and_streams(guarded: Hub) -> None:
    """All kinds of calls carry it, also where nothing is encrypted on this machine."""
    await publish(guarded, ewma_bundle("pump"))
    values = np.zeros((4, 2), np.float32)

    async def batches() -> AsyncIterator[Batch]:
        yield Batch(values, series=["b"])

    async with client(guarded, "score") as scoring:
        assert len((await scoring.score("pump", series=["a"], values=values, ephemeral=True)).scores) == 4
        assert [len(it.scores) async for it in scoring.score_stream("pump", batches(), ephemeral=True)] == [4]
        with pytest.raises(ServiceError) as refused:
            await scoring.delete("pump")
    async with client(guarded, "admin") as administrator:
        await administrator.delete("pump")

    assert refused.value.code == "PERMISSION_DENIED"
    assert "scope `admin`" in refused.value.problem


async def test_what_is_refused_is_not_parsed(guarded: Hub) -> None:
    """Garbage of somebody unknown is answered like anything of theirs: nothing of it is looked at."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.listener.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/prunewatch.v1.ScoringService/Score")(b"\xff" * 100_000)

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_that_is_removed_opens_nothing_any_more(guarded: Hub) -> None:
    """Within a second or two."""
    async with client(guarded, "operate") as operator:
        await operator.list()
        remove_token(guarded.settings.store / "tokens.json", "operate")
        await asyncio.sleep(1.1)

        with pytest.raises(ServiceError) as refused:
            await operator.list()

    assert refused.value.code == "UNAUTHENTICATED"


async def test_one_principal_can_not_take_all_room(guarded: Hub) -> None:
    """Beyond its own limit of streams it is told to come again; others are served."""
    await publish(guarded, ewma_bundle("pump"))
    async with client(guarded, "score") as greedy, client(guarded, "operate") as other:
        watching = [asyncio.create_task(_watch(greedy)) for _ in range(3)]
        done, _ = await asyncio.wait(watching, timeout=10, return_when=asyncio.FIRST_COMPLETED)

        assert [str(it.exception()) for it in done if "2 open streams" in str(it.exception())]
        assert await other.list()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _watch(asking: Client) -> None:
    async for _ in asking.watch("pump"):
        pass


async def test_what_changes_something_is_in_the_log(guarded: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Who did what to which detector, with the id that the caller gave; scoring is not, nor is any token."""
    await publish(guarded, ewma_bundle("pump"))
    logging.getLogger("prunewatch").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "prunewatch.audit"):
        async with client(guarded, "admin") as administrator:
            await administrator.score("pump", series=["a"], values=np.zeros((2, 2)), ephemeral=True)
            await administrator.freeze("pump")

    (line,) = [it for it in caplog.records if it.name == "prunewatch.audit"]
    facts = vars(line)
    assert (facts["principal"], facts["code"], facts["resource"]) == ("admin", "OK", "detectors/pump")
    assert facts["method"].endswith("FreezeDetector")
    assert not any(token in str(vars(it)) for it in caplog.records for token in TOKENS.values())


async def test_an_answer_names_the_call(guarded: Hub) -> None:
    """An error carries the caller's own id, or a new one."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.listener.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/prunewatch.v1.ScoringService/Score")(
                b"", metadata=(("x-request-id", "order-7"), ("authorization", f"Bearer {TOKENS['score']}"))
            )

    assert dict(refused.value.trailing_metadata())["x-request-id"] == "order-7"


async def test_over_tls_with_a_certificate_for_a_name(tmp_path: Path) -> None:
    """mTLS: the name in the certificate has the scopes; a token works beside it; plain text gets nothing."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.pem)
    shown = dict(zip(("certificate", "key"), _files(tmp_path, *AUTHORITY.issue("pipeline")), strict=True))
    tls = {"certificate": certificate, "key": key, "client_ca": tmp_path / "ca.crt"}
    auth = {"identities": {"pipeline": ["score"]}}
    hub = Hub(hub_settings(tmp_path, tls=tls, auth=auth), trainer=QUICK_TRAINER)
    token = make_token(hub.settings.store / "tokens.json", "ann", ["operate"], now=time.time())
    await hub.start()
    address = f"127.0.0.1:{hub.listener.port}"
    try:
        await publish(hub, ewma_bundle("pump"))
        async with Client(address, credentials=Credentials(ca=tmp_path / "ca.crt", **shown)) as pipeline:
            assert [it["name"] for it in await pipeline.list()] == ["pump"]
            with pytest.raises(ServiceError, match="scope `operate`"):
                await pipeline.freeze("pump")
        async with Client(address, credentials=Credentials(token, tmp_path / "ca.crt", **shown)) as ann:
            await ann.freeze("pump")
        async with Client(address, timeout_seconds=5) as plain:
            with pytest.raises(ServiceError):
                await plain.list()
    finally:
        await hub.stop()


def _files(folder: Path, certificate: bytes, key: bytes) -> tuple[Path, Path]:
    own = folder / "own"
    own.mkdir()
    return put(own, certificate, key)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, False),
        ({"auth": {}}, False),
        ({"tls": {"certificate": "a", "key": "b"}}, False),
        ({"tls": {"certificate": "a", "key": "b"}, "auth": {}}, True),
        ({"insecure": True}, True),
    ],
    ids=["nothing", "only who", "only encrypted", "both", "out loud"],
)
@pytest.mark.promise("S1")
def test_other_machines_are_let_in_only_encrypted_and_known(fields: dict[str, object], allowed: bool) -> None:
    """Loopback unless both are configured, or `insecure: true` is said."""
    if allowed:
        assert load_settings(listen="0.0.0.0:8001", **fields).listen == "0.0.0.0:8001"
        return
    with pytest.raises(InvalidInputError, match="can be reached by other machines"):
        load_settings(listen="0.0.0.0:8001", **fields)


def test_a_token_is_not_sent_where_others_can_read_it() -> None:
    """Only to this machine, or encrypted, unless it is said out loud."""
    with pytest.raises(ValueError, match="without encryption"):
        Credentials("pw_secret").channel("192.0.2.7:8001")
    assert "pw_secret" not in repr(Credentials("pw_secret"))
