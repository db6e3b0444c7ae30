"""Detectors as the models that the Open Inference Protocol knows."""

from __future__ import annotations

import json
from typing import Any

from detectors.errors import NotFoundError
from prunewatch import inference
from server.host import Host
from server.hosted import HostedDetector
from server.inference_tensors import INPUTS, OUTPUTS, SHOWN

PLATFORM = "prunewatch_onnx"
BACKEND = "prunewatch"
DATA_TYPES = {
    "FP32": "TYPE_FP32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "BOOL": "TYPE_BOOL",
    "BYTES": "TYPE_STRING",
}
ModelMetadataResponse = inference.message("ModelMetadataResponse")
ModelConfigResponse = inference.message("ModelConfigResponse")
RepositoryIndexResponse = inference.message("RepositoryIndexResponse")


def version_of(hosted: HostedDetector) -> str:
    """The version that serves; empty while it learns."""
    return str(hosted.served.version) if hosted.served else ""


def is_ready(hosted: HostedDetector) -> bool:
    """Whether it scores."""
    return hosted.served is not None and not hosted.problem


def find_model(host: Host, name: str, version: str, field: str) -> HostedDetector:
    """A detector by the name of a model.

    Args:
        host: The detectors.
        name: Of the detector.
        version: That has to serve; empty: any.
        field: Where the name stood; the version stood in its neighbour.

    Raises:
        NotFoundError: there is none, or another version serves.
    """
    try:
        hosted = host.get(name)
    except NotFoundError as error:
        raise NotFoundError(f"there is no model {name[:SHOWN]!r}.", field=field, hint=error.hint) from None
    if version and version != (serving := version_of(hosted)):
        raise NotFoundError(
            f"version {version[:SHOWN]!r} of {name!r} does not serve.",
            field=field.replace("name", "version"),
            hint=f"Version {serving} does; leave it empty for whatever serves."
            if serving
            else "It has none yet; leave it empty.",
        )
    return hosted


def metadata_of(hosted: HostedDetector) -> Any:
    """The answer to ModelMetadata."""
    message = ModelMetadataResponse(name=hosted.name, platform=PLATFORM)
    if hosted.served:
        message.versions.append(version_of(hosted))
    for tensors, kinds in ((message.inputs, INPUTS), (message.outputs, OUTPUTS)):
        for kind in kinds.values():
            tensors.add(name=kind.name, datatype=kind.datatype, shape=kind.shape(hosted.n_features))
    return message


def config_of(hosted: HostedDetector) -> Any:
    """The answer to ModelConfig.

    Says nothing of sequence batching, though points of a sequence are scored in its state: tools that load a server
    with made-up points send them as sequences where it is there, and those would be kept and learned from.
    """
    message = ModelConfigResponse()
    config = message.config
    config.name, config.platform, config.backend = hosted.name, PLATFORM, BACKEND
    for kind in INPUTS.values():
        dims = kind.shape(hosted.n_features)
        config.input.add(name=kind.name, data_type=DATA_TYPES[kind.datatype], dims=dims, optional=kind.optional)
    for kind in OUTPUTS.values():
        config.output.add(name=kind.name, data_type=DATA_TYPES[kind.datatype], dims=kind.shape(hosted.n_features))
    facts = {
        "features": json.dumps(list(hosted.features or ())),
        "threshold": str(hosted.threshold),
        "time": hosted.config.time,
    }
    if hosted.served:
        facts["warm_up_points"] = str(hosted.served.warm_up_points)
    for name, fact in facts.items():
        config.parameters[name].string_value = fact
    return message


def index_of(host: Host, *, ready_only: bool) -> Any:
    """The answer to RepositoryIndex."""
    message = RepositoryIndexResponse()
    for hosted in sorted(host, key=lambda it: it.name):
        ready = is_ready(hosted)
        if ready or not ready_only:
            message.models.add(
                name=hosted.name,
                version=version_of(hosted),
                state="READY" if ready else "UNAVAILABLE",
                reason="" if ready else hosted.problem or "It learns: no version has been fitted yet.",
            )
    return message
