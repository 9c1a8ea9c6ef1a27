"""Questions that a command asks of the daemon behind a path."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentfs.cli.amounts import path_text
from agentfs.cli.control import (
    BreakReply,
    BreakRequest,
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
    exchange,
    gone,
)
from agentfs.cli.liveness import is_dead
from agentfs.cli.mountinfo import Mounted, mount_holding
from agentfs.cli.records import find_record
from agentfs.model.errors import Denied, NotFound
from agentfs.workspace.status import LockRow, WorkspaceStatus

ANSWER_SECONDS: Final = 10.0

FENCE_SECONDS: Final = 60.0
"""How long to wait for locks to be broken: it takes the journal, which the daemon asks for longer than for anything else."""

WARM_SILENCE_SECONDS: Final = 300.0
"""How long a warming may say nothing: it speaks whenever a segment is there or was given up, which a slow store can put off."""


def mount_of(path: Path) -> Mounted:
    """The mount that a canonical path lies in. Raises NotFound if that is no workspace."""
    mounted = mount_holding(path)
    if mounted is None or not mounted.ours:
        raise NotFound(f"{path_text(path)} is not in a mounted workspace: `agentfs mount` lists what is mounted")
    return mounted


def status_of(mounted: Mounted) -> WorkspaceStatus:
    """What the mount says of itself. Raises Unavailable if its daemon is gone, Denied if it is somebody else's."""
    reply = _ask(mounted, StatusRequest())
    assert isinstance(reply, StatusReply), "the protocol answers status with StatusReply"
    return reply.status


def history_of(path: Path) -> list[VersionLine]:
    """The versions of a file on a mount, the oldest first; a symbolic link is not followed."""
    whole = Path(os.path.realpath(path.parent)) / path.name
    mounted = mount_of(whole)
    reply = _ask(mounted, HistoryRequest(_inside(mounted, whole)))
    assert isinstance(reply, HistoryReply), "the protocol answers history with HistoryReply"
    return reply.versions


def locks_of(mounted: Mounted) -> list[LockRow]:
    """Who holds and who waits for locks, as the mount knows it."""
    reply = _ask(mounted, LocksRequest())
    assert isinstance(reply, LocksReply), "the protocol answers locks with LocksReply"
    return reply.locks


def break_locks(mounted: Mounted, path: Path) -> list[str]:
    """Fence the other sessions that hold the file at a canonical path; their writers.

    Raises NotFound, Busy if a process of this mount holds the file, Unavailable.
    """
    reply = _ask(mounted, BreakRequest(_inside(mounted, path)), timeout_seconds=FENCE_SECONDS)
    assert isinstance(reply, BreakReply), "the protocol answers break with BreakReply"
    return reply.fenced


def warm(mounted: Mounted, path: Path) -> Iterator[WarmStep | Warmed]:
    """Fetch what is not here of what lies at a canonical path: steps, and the end. Closing the iterator ends it.

    Raises NotFound, Unavailable.
    """
    for reply in _replies(mounted, WarmRequest(_inside(mounted, path)), timeout_seconds=WARM_SILENCE_SECONDS):
        assert isinstance(reply, WarmStep | Warmed), "the protocol answers warm with these"
        yield reply


def _inside(mounted: Mounted, path: Path) -> bytes:
    """The path from the workspace's root."""
    return os.fsencode(path.relative_to(mounted.mountpoint))


def _ask(mounted: Mounted, request: Request, *, timeout_seconds: float = ANSWER_SECONDS) -> Reply:
    return list(_replies(mounted, request, timeout_seconds=timeout_seconds))[-1]


def _replies(mounted: Mounted, request: Request, *, timeout_seconds: float) -> Iterator[Reply]:
    record = find_record(mounted)
    if record is None:
        raise gone(mounted.mountpoint) if is_dead(mounted) else _not_ours(mounted)
    with connected(Path(record.control), mounted.mountpoint, timeout_seconds=timeout_seconds) as connection:
        yield from exchange(connection, request, mounted.mountpoint)


def _not_ours(mounted: Mounted) -> Denied:
    if mounted.owner == os.geteuid():
        return Denied(
            f"{path_text(mounted.mountpoint)} was mounted with another XDG_RUNTIME_DIR: set it as it was, to reach its daemon"
        )
    return Denied(
        f"{path_text(mounted.mountpoint)} was mounted by another user (number {mounted.owner}): ask as that user or as root"
    )
