"""The control protocol, from the asking side to the answering side and back."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from agentfs.cli.control import (
    BreakReply,
    BreakRequest,
    Drained,
    DrainRequest,
    DrainStep,
    HistoryReply,
    HistoryRequest,
    LocksReply,
    LocksRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    VersionLine,
    Warmed,
    WarmRequest,
    WarmStep,
    connected,
    encode_line,
    exchange,
    peer_pid,
)
from agentfs.cli.control_server import answer, serve_control
from agentfs.model.errors import Busy, Corrupt, Invalid, NotFound, Unavailable
from agentfs.workspace.status import CacheStatus, LockRow, SessionStatus, WorkspaceStatus

MOUNTPOINT = Path("/mnt/demo")
STATUS = WorkspaceStatus(
    name="demo",
    workspace="uuid",
    durability="close",
    replication="sync",
    write_quorum=0,
    reachable=True,
    position=7,
    pending_transactions=1,
    dirty_bytes=2,
    dirty_files=1,
    oldest_unsaved_seconds=0.5,
    files=3,
    stored_bytes=4,
    inline_bytes=4,
    lease_ttl_seconds=10.0,
    leases=1,
    sessions=[SessionStatus(session=1, host="h", pid=2, label="", opened_ns=3, this=True, ttl_seconds=9.5)],
    replicas=[],
    cache=CacheStatus(memory_bytes=1, memory_max_bytes=2, staging_bytes=3),
    recovered=["/cache/recovered-3-0"],
)
STEP = DrainStep(saved_bytes=1, total_bytes=2, dirty_files=1, pending_transactions=0)
WARM_STEP = WarmStep(bytes_done=1, bytes_total=2, files_done=3, files_total=4, failed=0)
VERSION = VersionLine(version=1, time_ns=2, size_bytes=3, writer="host:1", position=4)
LOCK = LockRow(
    path="caf\\xe9",
    ino=9,
    space="fcntl",
    mode="exclusive",
    first=0,
    last=None,
    state="leased",
    session=2,
    holder="elsewhere:7",
    pid=None,
    age_seconds=1.5,
    ttl_seconds=None,
)


class FakeMount:
    """A mount with one file, which cannot be saved and which another mount has locked."""

    def __init__(self) -> None:
        self.warming = trio.Event()
        self.given_up = trio.Event()

    def status(self) -> WorkspaceStatus:
        return STATUS

    async def drain(self, report: Callable[[DrainStep], None], *, timeout_seconds: float) -> list[str]:
        for _ in range(100):
            report(STEP)
        await trio.lowlevel.checkpoint()
        return [f"/stuck after {timeout_seconds:g} s"]

    async def warm(self, path: bytes, report: Callable[[WarmStep], None]) -> list[str]:
        if path == b"endless":
            self.warming.set()
            try:
                await trio.sleep_forever()
            finally:
                self.given_up.set()
        if path != b"caf\xe9":
            raise NotFound(f"no file {path!r}")
        for done in range(1000):
            report(msgspec.structs.replace(WARM_STEP, bytes_done=done))
        await trio.lowlevel.checkpoint()
        return ["caf\\xe9: nobody answers"]

    async def history(self, path: bytes) -> list[VersionLine]:
        if path != b"caf\xe9":
            raise NotFound(f"no file {path!r}")
        return [VERSION]

    def locks(self) -> list[LockRow]:
        return [LOCK]

    async def break_locks(self, path: bytes) -> list[str]:
        await trio.lowlevel.checkpoint()
        if path != b"caf\xe9":
            raise Busy("process 7 of this mount holds it")
        return [LOCK.holder]


def ask(path: Path, request: Request) -> list[Reply]:
    with connected(path, MOUNTPOINT, timeout_seconds=20) as connection:
        assert peer_pid(connection) == os.getpid()
        return list(exchange(connection, request, MOUNTPOINT))


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, FakeMount(), path)
        yield
        nursery.cancel_scope.cancel()


async def test_every_request_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"a stale socket's name")
    async with served(path):
        assert path.stat().st_mode & 0o777 == 0o600
        asking = partial(trio.to_thread.run_sync, ask, path)
        assert await asking(StatusRequest()) == [StatusReply(STATUS)]
        assert await asking(HistoryRequest(b"caf\xe9")) == [HistoryReply([VERSION])]
        assert await asking(LocksRequest()) == [LocksReply([LOCK])]
        assert await asking(BreakRequest(b"caf\xe9")) == [BreakReply(["elsewhere:7"])]
        *steps, end = await asking(DrainRequest(5))
        assert steps
        assert set(steps) == {STEP}
        assert end == Drained(["/stuck after 5 s"])
        *steps, end = await asking(WarmRequest(b"caf\xe9"))
        assert steps[-1] == msgspec.structs.replace(WARM_STEP, bytes_done=999), "the last step is never left out"
        assert end == Warmed(["caf\\xe9: nobody answers"])


async def test_an_error_arrives_as_what_it_was(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        with pytest.raises(NotFound, match="no file b'x'"):
            await trio.to_thread.run_sync(ask, tmp_path / "s", HistoryRequest(b"x"))
        with pytest.raises(Busy, match="process 7"):
            await trio.to_thread.run_sync(ask, tmp_path / "s", BreakRequest(b"x"))
        with pytest.raises(NotFound, match="no file b'x'"):
            await trio.to_thread.run_sync(ask, tmp_path / "s", WarmRequest(b"x"))


async def converse(sent: bytes) -> bytes:
    """What one connection answers to `sent`."""
    ours, theirs = trio.socket.socketpair()
    limiter = trio.CapacityLimiter(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(answer, FakeMount(), trio.SocketStream(theirs), limiter=limiter))
        with ours:
            await ours.send(sent)
            ours.shutdown(socket.SHUT_WR)
            received = b""
            while data := await ours.recv(65536):
                received += data
    return received


async def test_what_is_no_request_is_refused() -> None:
    assert b'"error":"Invalid"' in await converse(b"frob\n")
    assert b'"error":"Invalid"' in await converse(b'{"op":"frob"}\n')


async def test_a_client_that_says_nothing_is_let_go() -> None:
    assert await converse(b"") == b""
    assert await converse(b'{"op":"status"') == b""


async def test_a_client_that_does_not_wait_harms_nobody() -> None:
    ours, theirs = trio.socket.socketpair()
    await ours.send(b'{"op":"drain","timeout_seconds":1}\n')
    ours.close()
    await answer(FakeMount(), trio.SocketStream(theirs), limiter=trio.CapacityLimiter(1))


async def test_warming_ends_when_nobody_waits_for_it_any_more() -> None:
    ours, theirs = trio.socket.socketpair()
    mounted = FakeMount()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(answer, mounted, trio.SocketStream(theirs), limiter=trio.CapacityLimiter(1)))
            await ours.send(encode_line(WarmRequest(b"endless")))
            await mounted.warming.wait()
            ours.close()
            await mounted.given_up.wait()


def test_a_daemon_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"/mnt/demo is gone.*umount"):
        ask(tmp_path / "missing", StatusRequest())
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(tmp_path / "refused"))
    with pytest.raises(Unavailable, match="gone"):
        ask(tmp_path / "refused", StatusRequest())


def replies_to(answered: bytes) -> list[Reply]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answered)
        theirs.shutdown(socket.SHUT_WR)
        return list(exchange(ours, DrainRequest(1), MOUNTPOINT))


def test_an_answer_that_breaks_off_is_a_daemon_that_is_gone() -> None:
    for answered in (b"", encode_line(STEP), encode_line(WARM_STEP)):
        with pytest.raises(Unavailable, match="gone"):
            replies_to(answered)


def test_an_answer_that_is_not_understood_is_refused() -> None:
    with pytest.raises(Corrupt, match="another version"):
        replies_to(b'{"reply":"frob"}\n')


def test_an_error_class_of_a_newer_daemon_is_still_an_error() -> None:
    with pytest.raises(Exception, match="what it says"):
        replies_to(b'{"reply":"failed","error":"Novel","message":"what it says"}\n')
    with pytest.raises(Invalid, match="line"):
        replies_to(b'{"reply":"failed","error":"Invalid","message":"line"}\n')
