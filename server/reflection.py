"""Server reflection over more than one descriptor pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection

from prunewatch import inference


class Pools:
    """Answers what reflection asks of a descriptor pool from the first of several that knows it.

    Args:
        pools: In the order they are asked.
    """

    def __init__(self, *pools: descriptor_pool.DescriptorPool) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> Any:  # noqa: N802  (the names are protobuf's)
        """The descriptor of a file; KeyError when there is none."""
        return self._first("FindFileByName", name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        """The descriptor of the file that has a symbol; KeyError when there is none."""
        return self._first("FindFileContainingSymbol", symbol)

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        """The descriptor of a message; KeyError when there is none."""
        return self._first("FindMessageTypeByName", name)

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        """The descriptor of an extension, from the pool of its message; KeyError when there is none."""
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        """Extensions of a message, from its own pool."""
        return message.file.pool.FindAllExtensions(message)

    def _first(self, find: str, name: str) -> Any:
        for pool in self._pools:
            try:
                return getattr(pool, find)(name)
            except KeyError:
                continue
        raise KeyError(name)


def enable_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    """Lists services, those of the Open Inference Protocol too.

    Args:
        names: Full names of services.
        server: Which serves them.
    """
    # The protocol's own pool first: where a client of it was imported in this process, the default pool knows methods
    # that are not served.
    pools = Pools(inference.POOL, descriptor_pool.Default())
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server, pool=pools)
