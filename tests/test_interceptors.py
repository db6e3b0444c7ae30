"""Whatever happens inside a handler, the caller gets a proper status and nothing that was not meant for it."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

import detectors.errors
from detectors.errors import CorruptBundleError, InvalidInputError, NewerStoreError, PrunewatchError
from prunewatch.v1 import scoring_pb2 as pb
from prunewatch.v1.scoring_pb2_grpc import (
    ScoringServiceServicer,
    ScoringServiceStub,
    add_ScoringServiceServicer_to_server,
)
from server.admission import Gate
from server.interceptors import Guard
from server.metrics import Metrics
from server.statuses import CODES, DETAILS, DOMAIN, UNEXPECTED, recorded_error, status_of

SECRET = "/var/lib/secret: class Hidden"


class Troubled(ScoringServiceServicer):
    """Raises what it is told to."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.cancelled = asyncio.Event()

    async def Score(self, request, context):  # noqa: ARG002, N802
        """Raises, or waits to be cancelled."""
        if self.error is not None:
            raise self.error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Watch(self, request, context):  # noqa: ARG002, N802
        """One response, then the error."""
        yield pb.WatchResponse(series="a")
        if self.error is not None:
            raise self.error


class Guarded:
    """A server with one troubled service behind the guard."""

    def __init__(self, error: BaseException | None) -> None:
        self.service = Troubled(error)
        self.metrics = Metrics(CollectorRegistry())
        self.server = grpc.aio.server(interceptors=[Guard(self.metrics, Gate(1000, 1000))])

    async def __aenter__(self):
        add_ScoringServiceServicer_to_server(self.service, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = ScoringServiceStub(self.channel)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()
        await self.server.stop(0)

    def calls(self, method: str, code: str) -> float:
        """Calls counted."""
        service, name = method.split("/")
        return sum(
            cell.value
            for (_, called, what, ended), cell in self.metrics.calls_handled
            if (called.rpartition(".")[2], what, ended) == (service, name, code)
        )


async def failing(call) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The rich status of an error."""
    return status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS])


async def test_known_errors_carry_code_field_and_hint() -> None:
    """An InvalidInputError is INVALID_ARGUMENT with a BadRequest naming the field and an ErrorInfo with the parts."""
    async with Guarded(InvalidInputError("is wrong.", field="stamps", hint="Mend it.")) as guarded:
        error = await failing(guarded.stub.Score(pb.ScoreRequest()))

        assert guarded.calls("ScoringService/Score", "INVALID_ARGUMENT") == 1
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "stamps: is wrong. Mend it.")
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    packed = details(error).details
    assert packed[0].Unpack(info)
    assert packed[1].Unpack(bad)
    assert (info.domain, info.reason, info.metadata["hint"]) == (DOMAIN, "INVALID_ARGUMENT", "Mend it.")
    assert (bad.field_violations[0].field, bad.field_violations[0].description) == ("stamps", "is wrong. Mend it.")


async def test_unexpected_errors_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is INTERNAL with a fixed sentence; its traceback is in the log only."""
    async with Guarded(RuntimeError(SECRET)) as guarded:
        with caplog.at_level(logging.ERROR):
            error = await failing(guarded.stub.Score(pb.ScoreRequest()))

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, UNEXPECTED)
    assert "secret" not in str(error.trailing_metadata())
    assert SECRET in caplog.text


async def test_errors_in_the_middle_of_a_stream_are_mapped() -> None:
    """A server stream that fails keeps what was sent and ends with the mapped status."""
    async with Guarded(InvalidInputError("is wrong.", field="x")) as guarded:
        call = guarded.stub.Watch(pb.WatchRequest())
        first = await call.read()
        error = await failing(call.read())

    assert first.series == "a"
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_protobuf_are_invalid_arguments() -> None:
    """A message that can not be parsed is INVALID_ARGUMENT without the parser's words."""
    async with Guarded(None) as guarded:
        call = guarded.channel.unary_unary("/prunewatch.v1.ScoringService/Score")
        error = await failing(call(b"\xff\xff\xff\xff"))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf" in error.details()


async def test_cancelling_reaches_the_handler_and_is_counted() -> None:
    """A call that its caller gives up is cancelled inside too, and counted as CANCELLED."""
    async with Guarded(None) as guarded:
        call = guarded.stub.Score(pb.ScoreRequest())
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait_for(guarded.service.cancelled.wait(), 5)
        await asyncio.sleep(0.05)

        assert guarded.calls("ScoringService/Score", "CANCELLED") == 1


async def test_answers_of_grpcs_own_services_pass() -> None:
    """Health answers an unknown service with NOT_FOUND through the guard."""
    async with Guarded(None) as guarded:
        stub = health_pb2_grpc.HealthStub(guarded.channel)
        error = await failing(stub.Check(health_pb2.HealthCheckRequest(service="none")))

    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_unknown_methods_are_unimplemented() -> None:
    """A method that does not exist is UNIMPLEMENTED and makes no new label."""
    async with Guarded(None) as guarded:
        error = await failing(guarded.channel.unary_unary("/prunewatch.v1.ScoringService/Scream")(b""))

        assert "Scream" not in str([metric.samples for metric in guarded.metrics.registry.collect()])
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def every_error() -> list[type[PrunewatchError]]:
    """All error classes of the product."""
    found = [it for it in vars(detectors.errors).values() if isinstance(it, type)]
    return [it for it in found if issubclass(it, PrunewatchError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_code_and_survives_being_written_down(kind: type[PrunewatchError]) -> None:
    """No error class falls through the table, and the catalog's form of it is the same error again."""
    status = status_of(kind("it is so.", field="x", hint="Do this."))

    assert status.code in CODES.values()
    again = recorded_error({"type": kind.__name__, "problem": "it is so.", "field": "x", "hint": "Do this."})
    assert (type(again), str(again)) == (kind, "x: it is so. Do this.")


def test_folders_of_this_machine_are_not_told() -> None:
    """A file is named without its folder."""
    status = status_of(CorruptBundleError("is missing.", field="/srv/store/bundles/ab/step.onnx"))

    assert status.message == "step.onnx: is missing."
    assert b"/srv" not in status.SerializeToString()


def test_newer_stores_are_preconditions() -> None:
    """A subclass that the table does not name has its parent's code."""
    assert status_of(NewerStoreError("x")).code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert type(recorded_error({"type": "BaseException", "problem": "x"})) is PrunewatchError
