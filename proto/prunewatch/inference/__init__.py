r"""Messages of the Open Inference Protocol v2, in a descriptor pool of their own.

Clients of that protocol (tritonclient, KServe's) register their own file of the protobuf package `inference` in the
default pool, which refuses a second one. So there are no stubs here: the committed descriptor goes into `POOL`, and
`message` makes a class of it. Both can live in one process.

>>> message("ServerLiveResponse")(live=True).SerializeToString()
b'\x08\x01'
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor

SERVICE_NAME = "inference.GRPCInferenceService"


def _loaded() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    raw = resources.files(__name__).joinpath("inference.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _loaded()
SERVICE: ServiceDescriptor = POOL.FindServiceByName(SERVICE_NAME)


def message(name: str) -> Any:
    """The class of a message of the package, by its name inside it."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))
