"""The answering side of the control protocol: a listener beside the mount, in the daemon's event loop."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from agentfs.cli.control import (
    BreakReply,
    BreakRequest,
    Drained,
    DrainRequest,
    DrainStep,
    Failed,
    HistoryReply,
    HistoryRequest,
    LocksReply,
    LocksRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    Step,
    VersionLine,
    Warmed,
    WarmRequest,
    WarmStep,
    encode_line,
)
from agentfs.model.errors import AgentfsError, Invalid, Unavailable
from agentfs.workspace.status import LockRow, WorkspaceStatus

CONNECTIONS_MAX: Final = 16
REQUEST_MAX: Final = 64 << 10
REQUEST_SECONDS: Final = 10.0

S = TypeVar("S", bound=Step)

_Work = Callable[[Callable[[S], None]], Awaitable[list[str]]]
"""What tells of its steps as it goes, and in the end what it could not do."""

_request_decoder = msgspec.json.Decoder(Request)


class Mounted(Protocol):
    """What the protocol asks of a mount; `serve.py` makes one of a workspace."""

    def status(self) -> WorkspaceStatus:
        """The mount at this moment."""
        ...

    async def drain(self, report: Callable[[DrainStep], None], *, timeout_seconds: float) -> list[str]:
        """Save what is unsaved; the names of what could not be in that time."""
        ...

    async def warm(self, path: bytes, report: Callable[[WarmStep], None]) -> list[str]:
        """Fetch what is not here of what lies at `path`; a line for each file that could not be.

        Raises NotFound, NotDirectory, Unavailable.
        """
        ...

    async def history(self, path: bytes) -> list[VersionLine]:
        """The versions of the file at `path`, the oldest first. Raises NotFound, IsDirectory."""
        ...

    def locks(self) -> list[LockRow]:
        """Who holds and who waits for locks."""
        ...

    async def break_locks(self, path: bytes) -> list[str]:
        """Fence the other sessions that hold leases on the file at `path`; their writers.

        Raises NotFound, Busy if a process of this mount holds the file, Unavailable.
        """
        ...


async def serve_control(
    mounted: Mounted,
    path: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on the socket `path`, which only this user can open, until cancelled. A stale socket file is replaced."""
    path.unlink(missing_ok=True)
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listening:
        await listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(CONNECTIONS_MAX)
        limiter = trio.CapacityLimiter(CONNECTIONS_MAX)
        handler = partial(answer, mounted, limiter=limiter)
        await trio.serve_listeners(handler, [trio.SocketListener(listening)], task_status=_Started(task_status))


class _Started(trio.TaskStatus[list[trio.SocketListener]]):
    """Tells that the listeners are up, without handing them out."""

    def __init__(self, outer: trio.TaskStatus[None]) -> None:
        self._outer = outer

    def started(self, value: object = None) -> None:
        """Pass the word on."""
        self._outer.started()


async def answer(mounted: Mounted, stream: trio.abc.Stream, *, limiter: trio.CapacityLimiter) -> None:
    """Serve one connection: one request. A client that goes away ends its own request and nothing else."""
    async with limiter, stream:
        try:
            await _answer(mounted, stream)
        except* trio.BrokenResourceError:
            pass  # The client does not wait for its answer.


async def _answer(mounted: Mounted, stream: trio.abc.Stream) -> None:
    try:
        request = _decoded(await _line(stream))
        if request is None:
            return
        reply = await _reply(mounted, request, stream)
    except AgentfsError as error:
        reply = Failed(type(error).__name__, str(error))
    await stream.send_all(encode_line(reply))


async def _line(stream: trio.abc.Stream) -> bytes:
    """The first line that arrives, b"" if none does in time."""
    received = b""
    with trio.move_on_after(REQUEST_SECONDS):
        while b"\n" not in received and len(received) < REQUEST_MAX:
            data = await stream.receive_some(REQUEST_MAX)
            if not data:
                return b""
            received += data
        return received.partition(b"\n")[0]
    return b""


def _decoded(line: bytes) -> Request | None:
    try:
        return _request_decoder.decode(line) if line else None
    except msgspec.DecodeError as error:
        raise Invalid(f"the request is not understood: {error}") from error


async def _reply(mounted: Mounted, request: Request, stream: trio.abc.Stream) -> Reply:
    match request:
        case StatusRequest():
            return StatusReply(mounted.status())
        case HistoryRequest(path=path):
            return HistoryReply(await mounted.history(path))
        case LocksRequest():
            return LocksReply(mounted.locks())
        case BreakRequest(path=path):
            return BreakReply(await mounted.break_locks(path))
        case DrainRequest(timeout_seconds=timeout_seconds):
            return Drained(_result(await _step_by_step(partial(mounted.drain, timeout_seconds=timeout_seconds), stream)))
        case WarmRequest(path=path):
            return Warmed(_result(await _while_wanted(partial(mounted.warm, path), stream)))


def _result(outcome: list[str] | AgentfsError) -> list[str]:
    if isinstance(outcome, AgentfsError):
        raise outcome
    return outcome


async def _while_wanted(work: _Work[WarmStep], stream: trio.abc.Stream) -> list[str] | AgentfsError:
    """Do work that is of no use to anybody else: it is cancelled when the client closes the connection."""
    outcome: list[str] | AgentfsError = Unavailable("given up: the connection was closed")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_closed, stream, nursery.cancel_scope)
        outcome = await _step_by_step(work, stream)
        nursery.cancel_scope.cancel()
    return outcome


async def _cancel_when_closed(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    # What comes behind the request means nothing.
    while await stream.receive_some(REQUEST_MAX):
        pass
    scope.cancel()


async def _step_by_step(work: _Work[S], stream: trio.abc.Stream) -> list[str] | AgentfsError:
    """Do the work, sending each step as it comes; one that the client is too slow for is left out, except for the last.

    Returns what the work raises: out of a nursery it would come as a group.
    """
    send, receive = trio.open_memory_channel[S](16)
    left_out: list[S] = []

    def report(step: S) -> None:
        left_out.clear()
        try:
            send.send_nowait(step)
        except trio.WouldBlock:
            left_out.append(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_forward, receive, stream)
        with send:
            try:
                outcome: list[str] | AgentfsError = await work(report)
            except AgentfsError as error:
                outcome = error
            for step in left_out:
                await send.send(step)
    return outcome


async def _forward(steps: trio.MemoryReceiveChannel[S], stream: trio.abc.Stream) -> None:
    async with steps:
        async for step in steps:
            await stream.send_all(encode_line(step))
