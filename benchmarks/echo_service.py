"""A bare gRPC service: the floor that `benchmarks/scoring.py` compares with.

Takes messages of bytes and answers each with a fixed number of bytes, without looking at them: no message classes, no
interceptor, no metrics. What remains is gRPC itself in Python's asyncio.
"""

from __future__ import annotations

import argparse
import asyncio

import grpc
import grpc.aio

SERVICE = "benchmark.Echo"


class Echo:
    """Answers of fixed sizes.

    Args:
        stream_bytes: Of an answer in a stream.
        unary_bytes: Of an answer to a single message.
    """

    def __init__(self, stream_bytes: int, unary_bytes: int) -> None:
        self._stream, self._unary = bytes(stream_bytes), bytes(unary_bytes)

    async def stream(self, _requests, context) -> None:
        """Reads and writes by hand, the quickest way there is."""
        while await context.read() is not grpc.aio.EOF:
            await context.write(self._stream)

    async def unary(self, _request, _context) -> bytes:
        """One message."""
        return self._unary


async def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stream-bytes", type=int, required=True, help="of an answer in a stream")
    parser.add_argument("--unary-bytes", type=int, required=True, help="of an answer to a single message")
    args = parser.parse_args()
    echo = Echo(args.stream_bytes, args.unary_bytes)
    server = grpc.aio.server()
    handlers = {
        "Stream": grpc.stream_stream_rpc_method_handler(echo.stream),
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{args.port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
