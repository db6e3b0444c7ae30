"""Those who send the messages of a load: streams, which may be many messages ahead, and single calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from prunewatch.prepared import PreparedScoring, PreparedStream, Reply
from server.bench.messages import Messages, Sender
from server.bench.tally import Book, clock

REOPEN_SECONDS = 0.1  # before a stream that has ended is opened anew
Going = Callable[[], bool]


class Stream:
    """One stream at a time; when it ends, what was unanswered has failed, and another one is opened.

    Args:
        scoring: The connection.
        sender: Its messages.
        book: Where to count.
    """

    def __init__(self, scoring: PreparedScoring, sender: Sender, book: Book) -> None:
        self._scoring = scoring
        self._sender = sender
        self._book = book
        self._queue: asyncio.Queue[float] = asyncio.Queue()
        self._waiting: deque[tuple[float, float]] = deque()  # (due, sent), in the order of their answers

    def deal(self, due: float) -> None:
        """Takes a message of an open loop, which is sent as soon as those before it have been."""
        self._queue.put_nowait(due)

    async def send_what_is_dealt(self) -> None:
        """Sends messages of an open loop without waiting for answers, until it is cancelled."""
        while True:
            stream = self._scoring.stream()
            try:
                if await self._opened(stream):
                    await self._pipelined(stream)
                await self._fail(stream)
            finally:
                stream.cancel()
            await asyncio.sleep(REOPEN_SECONDS)

    async def send_in_turn(self, going: Going) -> None:
        """Sends each message of a closed loop when the one before is answered."""
        while going():
            stream, opened = self._scoring.stream(), False
            try:
                while going():
                    now = clock()
                    self._book.due(now)
                    message = self._sender.following() if opened else self._sender.opening()
                    reply = await self._ask(stream, message, now)
                    if reply is None:
                        await self._fail(stream)
                        break
                    opened = opened or not reply.code
                else:
                    return
            finally:
                stream.cancel()
            await asyncio.sleep(REOPEN_SECONDS)

    def give_up(self, now: float) -> None:
        """Counts what has no answer."""
        for due, sent in self._waiting:
            self._book.give_up(due, sent, now)
        self._waiting.clear()
        while not self._queue.empty():
            self._book.give_up(self._queue.get_nowait(), None, now)

    async def _opened(self, stream: PreparedStream) -> bool:
        """Whether a first message was taken, which names the series; only then others may follow."""
        while True:
            due = await self._queue.get()
            reply = await self._ask(stream, self._sender.opening(), due)
            if reply is None or not reply.code:
                return reply is not None

    async def _pipelined(self, stream: PreparedStream) -> None:
        """Writes and reads side by side until the stream ends."""
        writing = asyncio.create_task(self._write(stream))
        try:
            while (reply := await stream.read()) is not None:
                self._book.answer(reply, *self._waiting.popleft())
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, stream: PreparedStream) -> None:
        going = True
        while going:
            due = await self._queue.get()
            going = await self._send(stream, self._sender.following(), due)

    async def _ask(self, stream: PreparedStream, message: bytes, due: float) -> Reply | None:
        await self._send(stream, message, due)
        if (reply := await stream.read()) is not None:
            self._book.answer(reply, *self._waiting.popleft())
        return reply

    async def _send(self, stream: PreparedStream, message: bytes, due: float) -> bool:
        self._waiting.append((due, clock()))
        self._book.sent(due)
        return await stream.write(message)

    async def _fail(self, stream: PreparedStream) -> None:
        """Counts an error for each message that the stream took with it."""
        ended = await stream.ended()
        while self._waiting:
            self._book.answer(ended, *self._waiting.popleft())


class Calls:
    """Single calls, as many at once as there are messages without an answer.

    A series is never in two of them, so that its points come in order.

    Args:
        scoring: The connection.
        messages: Of the load.
        book: Where to count.
        timeout: Seconds after which a call is given up.
    """

    def __init__(self, scoring: PreparedScoring, messages: Messages, book: Book, timeout: float) -> None:
        self._scoring = scoring
        self._messages = messages
        self._book = book
        self._timeout = timeout
        self._free: list[Sender] = []
        self._senders = 0
        self._running: dict[asyncio.Task[Reply], tuple[float, float]] = {}

    def deal(self, due: float) -> None:
        """Sends a message of an open loop."""
        self._call(self._taken(), due)

    async def send_in_turn(self, going: Going) -> None:
        """Sends each message of a closed loop when the one before is answered."""
        sender = self._taken()
        while going():
            now = clock()
            self._book.due(now)
            reply = await self._call(sender, now, keep=True)
            if reply.code == "UNAVAILABLE":  # nobody is there: asking at once again would only keep this program busy
                await asyncio.sleep(REOPEN_SECONDS)

    def give_up(self, now: float) -> None:
        """Counts what has no answer, and ends it."""
        for call, (due, sent) in self._running.items():
            self._book.give_up(due, sent, now)
            call.cancel()
        self._running.clear()

    def _taken(self) -> Sender:
        if self._free:
            return self._free.pop()
        self._senders += 1
        return self._messages.sender(self._senders - 1)

    def _call(self, sender: Sender, due: float, *, keep: bool = False) -> asyncio.Task[Reply]:
        sent = clock()
        self._book.sent(due)
        call = asyncio.create_task(self._scoring.score(sender.request(), self._timeout))
        self._running[call] = (due, sent)

        def ended(call: asyncio.Task[Reply]) -> None:
            if call.cancelled():  # by the end of the run; `give_up` counts it
                return
            del self._running[call]
            self._book.answer(call.result(), due, sent)
            if not keep:
                self._free.append(sender)

        call.add_done_callback(ended)
        return call
