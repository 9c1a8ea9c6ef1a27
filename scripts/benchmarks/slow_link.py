"""A link to a server on this machine that is as slow as one is told to make it: a TCP proxy in a process of its own."""

import random
from mmap import mmap
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trio

from scripts.benchmarks.worker import Worker
from tests.mount.place import wait_until

_PORT, _DELAY, _STALL, _SHARE = range(4)
_PIECE = 1 << 16


class Link:
    """Each request waits `delay_seconds` at the link, and a `share` of them `stall_seconds` more. It ends with the worker."""

    def __init__(self, cells: Path, worker: Worker, endpoint: str) -> None:
        cells.write_bytes(bytes(4 * 8))
        self._cells = _cells(cells)
        self._endpoint = urlsplit(endpoint)
        worker.begin(carry, cells, self._endpoint.hostname, self._endpoint.port)
        wait_until(lambda: self._cells[_PORT] > 0, "the link to take connections")

    @property
    def endpoint(self) -> str:
        """The server's URL by way of the link."""
        return urlunsplit(self._endpoint._replace(netloc=f"{self._endpoint.hostname}:{int(self._cells[_PORT])}"))

    def slow_down(self, *, delay_seconds: float = 0.0, stall_seconds: float = 0.0, share: float = 0.0) -> None:
        """What requests wait from now on."""
        self._cells[_DELAY], self._cells[_STALL], self._cells[_SHARE] = delay_seconds, stall_seconds, share


def carry(cells: Path, host: str, port: int) -> None:
    """Be a link, without end."""
    trio.run(_carry, _cells(cells), host, port)


def _cells(path: Path) -> "memoryview[float]":
    with path.open("r+b") as file:
        return memoryview(mmap(file.fileno(), 0)).cast("d")


async def _carry(cells: "memoryview[float]", host: str, port: int) -> None:
    async def connected(client: trio.SocketStream) -> None:
        # Whoever closes or resets a connection ends this one only.
        try:
            async with client, await trio.open_tcp_stream(host, port) as server:
                await _Connection(cells, client, server).carry()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        cells[_PORT] = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(connected, listeners, handler_nursery=nursery)


class _Connection:
    """Requests and answers take turns: what a client sends after an answer is a new request."""

    def __init__(self, cells: "memoryview[float]", client: trio.SocketStream, server: trio.SocketStream) -> None:
        self._cells = cells
        self._client = client
        self._server = server
        self._answered = True

    async def carry(self) -> None:
        """Carry bytes both ways until one side closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._requests, nursery.cancel_scope)
            async for piece in self._server:
                self._answered = True
                await self._client.send_all(piece)
            nursery.cancel_scope.cancel()

    async def _requests(self, scope: trio.CancelScope) -> None:
        while piece := await self._client.receive_some(_PIECE):
            if self._answered:
                self._answered = False
                await trio.sleep(self._wait_seconds())
            await self._server.send_all(piece)
        scope.cancel()

    def _wait_seconds(self) -> float:
        stalls = random.random() < self._cells[_SHARE]
        return self._cells[_DELAY] + (self._cells[_STALL] if stalls else 0.0)
