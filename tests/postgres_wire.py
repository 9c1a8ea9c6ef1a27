"""A wire to a server that a test can hold answers back on, and cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio


class Wire:
    """Forwards connections from a port of its own, `port`, to a server on loopback."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._answers = trio.Event()
        self._answers.set()
        self._streams: set[trio.SocketStream] = set()
        self.port = 0

    def hold_answers(self) -> None:
        """What the server says from now on stays on the way."""
        self._answers = trio.Event()

    def let_answers_pass(self) -> None:
        """What was held back arrives."""
        self._answers.set()

    def cut(self) -> None:
        """Break every connection; what was held back is lost, and new connections work."""
        for stream in self._streams:
            stream.socket.close()
        self._streams.clear()
        self._answers.set()

    async def forward(self, client: trio.SocketStream) -> None:
        """Serve one connection."""
        server = await trio.open_tcp_stream("127.0.0.1", self._server_port)
        self._streams |= {client, server}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, client, server, False)
                nursery.start_soon(self._copy, server, client, True)
        finally:
            self._streams -= {client, server}
            await trio.aclose_forcefully(server)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, answers: bool) -> None:
        try:
            async for part in source:
                if answers:
                    await self._answers.wait()
                await sink.send_all(part)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            source.socket.close()
            sink.socket.close()


@asynccontextmanager
async def wire_to(server_port: int) -> AsyncIterator[Wire]:
    """A wire to the server on that port of loopback; cut in the end."""
    wire = Wire(server_port)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), wire.forward, 0)
        wire.port = listener.socket.getsockname()[1]
        yield wire
        nursery.cancel_scope.cancel()
