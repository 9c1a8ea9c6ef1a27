"""The control protocol, JSON lines over a unix socket: its requests and replies, and the asking side without an event loop.

A connection carries one request. `drain` and `warm` are answered by any number of steps and one `Drained` or `Warmed`; the
rest by one reply. Closing the connection ends a `warm` at once.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from agentfs.cli.failures import EXIT_CODES
from agentfs.model.errors import AgentfsError, Corrupt, Unavailable
from agentfs.workspace.status import LockRow, WorkspaceStatus

LINE_MAX: Final = 16 << 20
"""Bytes in one line, at most: a reply may list every version of a file."""


class StatusRequest(msgspec.Struct, frozen=True, tag="status", tag_field="op"):
    """What the mount says of itself: answered by `StatusReply`."""


class DrainRequest(msgspec.Struct, frozen=True, tag="drain", tag_field="op"):
    """Save everything unsaved, giving up after a time: answered by `DrainStep`s and a `Drained`."""

    timeout_seconds: float


class WarmRequest(msgspec.Struct, frozen=True, tag="warm", tag_field="op"):
    """Fetch what is not here of a file or a tree, by its path from the root: answered by `WarmStep`s and a `Warmed`."""

    path: bytes


class HistoryRequest(msgspec.Struct, frozen=True, tag="history", tag_field="op"):
    """The versions of a file, by its path from the workspace's root (base64 in JSON): answered by `HistoryReply`."""

    path: bytes


class LocksRequest(msgspec.Struct, frozen=True, tag="locks", tag_field="op"):
    """Who holds and who waits for locks: answered by `LocksReply`."""


class BreakRequest(msgspec.Struct, frozen=True, tag="break", tag_field="op"):
    """Fence the other sessions that hold leases on a file, by its path from the workspace's root: answered by `BreakReply`."""

    path: bytes


class StatusReply(msgspec.Struct, frozen=True, tag="status", tag_field="reply"):
    """The mount at one moment."""

    status: WorkspaceStatus


class DrainStep(msgspec.Struct, frozen=True, kw_only=True, tag="draining", tag_field="reply"):
    """How far a drain is: what of `total_bytes` is saved, and what remains."""

    saved_bytes: int
    total_bytes: int
    dirty_files: int
    pending_transactions: int


class Drained(msgspec.Struct, frozen=True, tag="drained", tag_field="reply"):
    """The end of a drain: the names of what is still unsaved, empty when all is well."""

    undrained: list[str]


class WarmStep(msgspec.Struct, frozen=True, kw_only=True, tag="warming", tag_field="reply"):
    """How far a warming is: what of `bytes_total` was fetched, how many files are here, and for how many something failed."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    failed: int


class Warmed(msgspec.Struct, frozen=True, tag="warmed", tag_field="reply"):
    """The end of a warming: a line for each file that could not be fetched, empty when all is well."""

    failed: list[str]


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a file: what `agentfs log` prints."""

    version: int
    time_ns: int
    size_bytes: int
    writer: str
    position: int


class HistoryReply(msgspec.Struct, frozen=True, tag="history", tag_field="reply"):
    """A file's versions, the oldest first."""

    versions: list[VersionLine]


class LocksReply(msgspec.Struct, frozen=True, tag="locks", tag_field="reply"):
    """Every lock, lease and waiting request that the mount knows of."""

    locks: list[LockRow]


class BreakReply(msgspec.Struct, frozen=True, tag="broken", tag_field="reply"):
    """The writers whose sessions were fenced; none if nobody else held the file."""

    fenced: list[str]


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="reply"):
    """The request failed: the error's class and its one line."""

    error: str
    message: str


Request = StatusRequest | DrainRequest | WarmRequest | HistoryRequest | LocksRequest | BreakRequest
Step = DrainStep | WarmStep
Reply = StatusReply | Step | Drained | Warmed | HistoryReply | LocksReply | BreakReply | Failed

_ERRORS: Final = {kind.__name__: kind for kind in EXIT_CODES}
_reply_decoder = msgspec.json.Decoder(Reply)


def encode_line(message: Request | Reply) -> bytes:
    """The message as one line."""
    return msgspec.json.encode(message) + b"\n"


def failure_of(failed: Failed) -> AgentfsError:
    """The error that the daemon raised, of its own class."""
    return _ERRORS.get(failed.error, AgentfsError)(failed.message)


def gone(mountpoint: Path) -> Unavailable:
    """The error for a mount that nobody serves any more."""
    return Unavailable(f"the daemon of {mountpoint} is gone: mount it again, or clear it with `agentfs umount {mountpoint}`")


@contextmanager
def connected(path: Path, mountpoint: Path, *, timeout_seconds: float) -> Iterator[socket.socket]:
    """A connection to the daemon of `mountpoint`; each wait for it is bounded by the timeout. Raises Unavailable."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(path))
            yield connection
        except TimeoutError:
            raise Unavailable(f"the daemon of {mountpoint} did not answer within {timeout_seconds:g} s") from None
        except (FileNotFoundError, ConnectionError):
            raise gone(mountpoint) from None


def exchange(connection: socket.socket, request: Request, mountpoint: Path) -> Iterator[Reply]:
    """Send the request and yield its replies until the daemon closes. Raises what the daemon failed with, or Unavailable."""
    connection.sendall(encode_line(request))
    ended = False
    with connection.makefile("rb") as lines:
        while line := lines.readline(LINE_MAX):
            reply = _decoded(line)
            if isinstance(reply, Failed):
                raise failure_of(reply)
            ended = not isinstance(reply, Step)
            yield reply
    if not ended:
        raise gone(mountpoint)


def _decoded(line: bytes) -> Reply:
    try:
        reply: Reply = _reply_decoder.decode(line)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the daemon's answer is not understood ({error}): it runs another version of agentfs") from error
    return reply


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid
