"""Calls of gRPC under the names that dashboards for it know (`grpc_server_*`), resolved once for each method."""

from __future__ import annotations

from typing import Any

from server.metrics.speed import Speed


class MethodMetrics:
    """The families of calls for one method.

    Args:
        metrics: Where they lie.
        method: Its whole name, `/package.Service/Method`.
        handler: Of gRPC: says which sides stream.
    """

    def __init__(self, metrics: Speed, method: str, handler: Any) -> None:
        service, _, name = method.strip("/").rpartition("/")
        labels = call_type(handler), service, name
        self.started = metrics.calls_started.labels(*labels)
        self.seconds = metrics.call_seconds.labels(*labels)
        self._handled = metrics.calls_handled
        self._labels = labels
        self._ended = {"OK": metrics.calls_handled.labels(*labels, "OK")}

    def ended(self, code: str, seconds: float) -> None:
        """Counts a call that has ended.

        Args:
            code: Of gRPC, by name (`OK`, `NOT_FOUND`).
            seconds: That it took.
        """
        cell = self._ended.get(code)
        if cell is None:
            cell = self._ended[code] = self._handled.labels(*self._labels, code)
        cell.inc()
        self.seconds.observe(seconds)


def call_type(handler: Any) -> str:
    """`unary`, `client_stream`, `server_stream` or `bidi_stream`, as other servers' metrics say it."""
    kinds = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream"}
    return kinds.get((bool(handler.request_streaming), bool(handler.response_streaming)), "bidi_stream")
