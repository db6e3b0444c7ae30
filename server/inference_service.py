"""The Open Inference Protocol v2 over the same detectors: existing Triton and KServe clients score points."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from detectors.errors import InvalidInputError, NotFoundError
from prunewatch import inference
from server.anomalies import shares_of
from server.host import Host
from server.hosted import HostedDetector, Outcome
from server.inference_models import config_of, find_model, index_of, is_ready, metadata_of
from server.inference_points import Points, points_of
from server.inference_tensors import SHOWN, Kind, read_outputs, write_outputs
from server.interceptors import readable
from server.learning import LEARNING_VERSION
from server.listener import Listener
from server.metrics import Metrics, program_version
from server.statuses import status_of
from server.streams import Stream

EXTENSIONS = ("model_configuration", "parameters", "sequence")
FINAL = "triton_final_response"  # Triton's clients read a stream until the answer that has it
LONGEST_ID = 1024  # characters; an id comes back with every answer
Context = grpc.aio.ServicerContext[Any, Any]
ServerLiveResponse = inference.message("ServerLiveResponse")
ServerReadyResponse = inference.message("ServerReadyResponse")
ServerMetadataResponse = inference.message("ServerMetadataResponse")
ModelReadyResponse = inference.message("ModelReadyResponse")
ModelInferResponse = inference.message("ModelInferResponse")
ModelStreamInferResponse = inference.message("ModelStreamInferResponse")
logger = logging.getLogger("prunewatch.inference_service")


class InferenceServicer:
    """Detectors as models.

    Args:
        host: The detectors.
        metrics: Times the messages of streams.
        listener: Says whether points can be scored now, and ends streams that nobody reads.
        max_bytes: Of an answer.
    """

    def __init__(self, host: Host, metrics: Metrics, listener: Listener, max_bytes: int) -> None:
        self._host = host
        self._listener = listener
        self._max_bytes = max_bytes
        self._message_seconds = metrics.message_seconds.labels("GRPCInferenceService/ModelStreamInfer")

    async def ServerLive(self, request: Any, context: Context) -> Any:
        """True: it answers."""
        return ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        """Whether points can be scored."""
        return ServerReadyResponse(ready=self._listener.ready)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        """Name and version of the program."""
        return ServerMetadataResponse(name="prunewatch", version=program_version(), extensions=EXTENSIONS)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        """Whether a detector scores; of one that does not exist false as well, as Triton says: clients wait for it."""
        try:
            hosted = find_model(self._host, request.name, request.version, "name")
        except NotFoundError:
            return ModelReadyResponse(ready=False)
        return ModelReadyResponse(ready=self._listener.ready and is_ready(hosted))

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        """Inputs and outputs."""
        return metadata_of(find_model(self._host, request.name, request.version, "name"))

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        """The same for Triton's tools."""
        return config_of(find_model(self._host, request.name, request.version, "name"))

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        """All detectors."""
        if request.repository_name:
            raise InvalidInputError("there is one repository.", field="repository_name", hint="Leave it out.")
        return index_of(self._host, ready_only=request.ready)

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        """One message of points."""
        return await self._infer(request)

    async def ModelStreamInfer(self, request_iterator: Any, context: Context) -> None:
        """Messages of points, each answered once, in order; one that can not be used is answered with its error."""
        async with self._listener.streams.opened(context) as stream:
            await self._answer(stream)

    async def _answer(self, stream: Stream) -> None:
        while (message := await stream.read()) is not grpc.aio.EOF:
            began = time.perf_counter()
            try:
                response = ModelStreamInferResponse(infer_response=await self._infer(readable(message)))
            except Exception as error:  # noqa: BLE001  (the stream goes on; status_of logs what was not expected)
                response = ModelStreamInferResponse(error_message=status_of(error).message)
                # Says which request it was, as Triton does.
                response.infer_response.id = getattr(message, "id", "")[:LONGEST_ID]
                response.infer_response.model_name = getattr(message, "model_name", "")[:SHOWN]
            response.infer_response.parameters[FINAL].bool_param = True
            await stream.write(response)
            self._message_seconds.observe(time.perf_counter() - began)

    async def _infer(self, request: Any) -> Any:
        """Scores the points of one message; a message that can not be used has changed nothing."""
        if len(request.id) > LONGEST_ID:
            raise InvalidInputError(f"the id is longer than {LONGEST_ID} characters.", field="id", hint="Shorten it.")
        hosted = find_model(self._host, request.model_name, request.model_version, "model_name")
        wanted = read_outputs(request)
        points = points_of(request, hosted)
        self._check_answer(points, wanted)
        outcome = await _scored(hosted, points)
        version = "" if outcome.version == LEARNING_VERSION else str(outcome.version)
        response = ModelInferResponse(model_name=hosted.name, model_version=version, id=request.id)
        write_outputs(response, ((kind, _output(kind.name, outcome, points)) for kind in wanted))
        return response

    def _check_answer(self, points: Points, wanted: list[Kind]) -> None:
        """Refuses a request whose answer could not be sent, before its points are taken."""
        per_point = sum(points.values.shape[1] * 4 if "F" in kind.dims else 8 for kind in wanted)
        if (size := per_point * len(points.index)) > self._max_bytes:
            raise InvalidInputError(
                f"the answer would have up to {size} bytes, {self._max_bytes} are allowed.",
                field="outputs",
                hint="Send fewer points at once, or do not ask for contributions.",
            )


async def _scored(hosted: HostedDetector, points: Points) -> Outcome:
    """The same path as that of ScoringService; series start and end as with DeleteSeries."""
    if hosted.n_features is None and not points.ephemeral:
        hosted.take_width(points.values.shape[1])
    track = hosted.track(ephemeral=points.ephemeral)
    before = _known(hosted, points.names) if points.starts else []
    scorer, slots = track.add(points.names)  # refuses what can not be, before anything is forgotten
    if before:
        await hosted.forget(before)
        scorer, slots = track.add(())
    rows = (track.run or slots) if points.one_each else slots[points.index]
    with hosted.stepper.calling():
        outcome = await hosted.score(scorer, rows, points.stamps, points.values)
    if points.ephemeral:
        return outcome
    outcome = hosted.record(outcome, track.names, points.index, points.values)
    if points.ends:
        try:
            await hosted.forget(points.names)
        except OSError:  # the points are taken, so this is no error of theirs
            logger.exception(
                "series of %s that have ended stay until they begin anew or are silent for long", hosted.name
            )
    return outcome


def _known(hosted: HostedDetector, names: Sequence[str]) -> list[str]:
    """Those of the names that are series already."""
    series = hosted.live().series
    return [name for name in names if len(series.known([name]))]


def _output(name: str, outcome: Outcome, points: Points) -> NDArray[Any]:
    """One output, in the shape of the points as they came."""
    scored = outcome.scored
    if name == "threshold":
        return np.array([outcome.threshold], np.float32)
    if name == "contributions":
        return shares_of(scored.contribution).reshape(*points.shape, -1)
    if name == "version":
        versions = outcome.point_versions
        return np.full(points.shape, outcome.version) if versions is None else versions.reshape(points.shape)
    columns: dict[str, NDArray[Any]] = {"score": scored.score, "status": scored.status, "anomaly": outcome.flagged}
    return columns[name].reshape(points.shape)


def inference_service(
    host: Host, metrics: Metrics, listener: Listener, max_bytes: int
) -> tuple[str, Callable[[grpc.aio.Server], None]]:
    """The Open Inference Protocol, which hub and device share; arguments as of `InferenceServicer`."""
    servicer = InferenceServicer(host, metrics, listener, max_bytes)

    def register(server: grpc.aio.Server) -> None:
        handlers = {}
        for method in inference.SERVICE.methods:
            streams = method.client_streaming
            handle = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            handlers[method.name] = handle(
                getattr(servicer, method.name),
                request_deserializer=inference.message(method.input_type.name).FromString,
                response_serializer=inference.message(method.output_type.name).SerializeToString,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(inference.SERVICE_NAME, handlers),))

    return inference.SERVICE_NAME, register
