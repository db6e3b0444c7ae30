"""A TCP proxy whose faults are switched on and off: it cuts, stalls, and lets answers vanish."""

from __future__ import annotations

import asyncio
from typing import Self


class TcpProxy:
    """Passes bytes between clients and one server, until it is told to do worse.

    Args:
        target: `HOST:PORT` of the server.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Accepted so far."""
        self.deaf = False
        """Answers of the server vanish."""
        self.stalled = False
        """New bytes go nowhere, in both directions, and connections stay open."""
        self.refusing = False
        """New connections are closed at once."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Ends all connections as a pulled cable does: with a reset."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            upstream, up = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up}
        for pair, is_answer in (((reader, up), False), ((upstream, writer), True)):
            task = asyncio.create_task(self._pump(*pair, is_answer=is_answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if self.stalled or (is_answer and self.deaf):
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
