"""TLS: only the right certificates, taken up without a restart; a pair that does not fit changes nothing."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from authority import Authority, put
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from detectors.errors import InvalidInputError
from server.security.certificates import LOOK_SECONDS, Certificates, TlsFiles

AUTHORITY, STRANGER = Authority.new(), Authority.new("stranger")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class Served:
    """A real server with the health service; its certificates lie in `folder`."""

    def __init__(self, folder: Path, *, client_ca: bool = False) -> None:
        self.folder, self.clock = folder, Clock()
        certificate, key = put(folder, *AUTHORITY.issue())
        (folder / "ca.crt").write_bytes(AUTHORITY.pem)
        files = TlsFiles(certificate, key, folder / "ca.crt" if client_ca else None)
        self.certificates = Certificates(files, self.clock)
        self.server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self.server)
        self.port = self.server.add_secure_port("127.0.0.1:0", self.certificates.credentials())

    async def check(self, credentials: grpc.ChannelCredentials | None, *options: tuple[str, str]) -> int:
        """The status of a new connection's call."""
        address = f"127.0.0.1:{self.port}"
        apart = [("grpc.use_local_subchannel_pool", 1), *options]
        channel = (
            grpc.aio.insecure_channel(address, options=apart)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=apart)
        )
        async with channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return answer.status

    async def refuses(self, credentials: grpc.ChannelCredentials | None, *options: tuple[str, str]) -> bool:
        """Whether a new connection comes to nothing."""
        try:
            await self.check(credentials, *options)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A server that asks callers for no certificate."""
    made = Served(tmp_path)
    await made.server.start()
    yield made
    await made.server.stop(0)


TRUSTING = grpc.ssl_channel_credentials(AUTHORITY.pem)


async def test_who_trusts_the_authority_is_served(served: Served) -> None:
    """Over TLS the call is answered."""
    assert await served.check(TRUSTING) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.promise("S2/3")
async def test_wrong_authority_wrong_name_and_plain_text_are_refused(served: Served) -> None:
    """A caller notices an authority or a name that it does not know; what is not TLS gets nothing."""
    assert await served.refuses(grpc.ssl_channel_credentials(STRANGER.pem))
    assert await served.refuses(TRUSTING, ("grpc.ssl_target_name_override", "elsewhere.example"))
    assert await served.refuses(None)


@pytest.mark.promise("S2/3")
@pytest.mark.parametrize("dates", [{"begins": -40.0}, {"begins": 10.0}], ids=["expired", "not yet valid"])
async def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, dates: dict[str, float]) -> None:
    """Callers refuse it."""
    served = Served(tmp_path)
    put(tmp_path, *AUTHORITY.issue(**dates))
    served.clock.now += LOOK_SECONDS
    await served.server.start()
    try:
        assert await served.refuses(TRUSTING)
    finally:
        await served.server.stop(0)


@pytest.mark.promise("S2/3")
async def test_callers_show_a_certificate_where_they_must(tmp_path: Path) -> None:
    """With `client_ca`: none, a stranger's and an expired one are refused, the right one is served."""
    served = Served(tmp_path, client_ca=True)
    await served.server.start()

    def shown(by: Authority, **dates: float) -> grpc.ChannelCredentials:
        certificate, key = by.issue("pipeline", **dates)
        return grpc.ssl_channel_credentials(AUTHORITY.pem, key, certificate)

    try:
        assert await served.refuses(TRUSTING)
        assert await served.refuses(shown(STRANGER))
        assert await served.refuses(shown(AUTHORITY, begins=-40.0))
        assert await served.check(shown(AUTHORITY)) == health_pb2.HealthCheckResponse.SERVING
    finally:
        await served.server.stop(0)


@pytest.mark.promise("S2/3")
async def test_fifty_rotations_cost_no_call(served: Served) -> None:
    """Old connections go on, new ones get the new certificate, and pairs that do not fit in between change nothing."""
    address, stub = f"127.0.0.1:{served.port}", health_pb2_grpc.HealthStub
    answered, expiries = 0, set()
    async with grpc.aio.secure_channel(address, TRUSTING) as lasting:
        for turn in range(50):
            certificate, key = AUTHORITY.issue(days=10.0 + turn)
            served.clock.now += LOOK_SECONDS
            (served.folder / "tls.crt").write_bytes(certificate[: len(certificate) // 2])  # half written
            answered += await served.check(TRUSTING)
            put(served.folder, certificate, AUTHORITY.issue()[1])  # another one's key
            served.clock.now += LOOK_SECONDS
            answered += await served.check(TRUSTING)
            put(served.folder, certificate, key)
            served.clock.now += LOOK_SECONDS
            answered += await served.check(TRUSTING)
            answered += (await stub(lasting).Check(health_pb2.HealthCheckRequest(), timeout=5)).status
            expiries.add(round(served.certificates.expires))

    assert answered == 200 * health_pb2.HealthCheckResponse.SERVING
    assert len(expiries) == 50


def test_when_it_ends_is_known(tmp_path: Path) -> None:
    """For the metric that an alert watches."""
    paths = put(tmp_path, *AUTHORITY.issue(begins=0, days=3))

    left = Certificates(TlsFiles(*paths)).expires - datetime.datetime.now(datetime.UTC).timestamp()

    assert left == pytest.approx(3 * 86400, abs=60)


def test_a_pair_that_can_not_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    """Missing, garbage, another one's key, no authority: said with the file."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    garbage = tmp_path / "garbage"
    garbage.write_text("nothing")
    others = tmp_path / "others.key"
    others.write_bytes(AUTHORITY.issue()[1])

    for files, field in (
        (TlsFiles(tmp_path / "none", key), "none"),
        (TlsFiles(garbage, key), "garbage"),
        (TlsFiles(certificate, others), "tls.crt"),
        (TlsFiles(certificate, key, garbage), "garbage"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            Certificates(files)
        assert refused.value.field.endswith(field)
