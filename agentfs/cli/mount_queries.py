"""Questions that a command asks of the daemon behind a path."""

import os
from pathlib import Path
from typing import Final

from agentfs.cli.amounts import path_text
from agentfs.cli.control import (
    HistoryReply,
    HistoryRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    VersionLine,
    connected,
    exchange,
    gone,
)
from agentfs.cli.liveness import is_dead
from agentfs.cli.mountinfo import Mounted, mount_holding
from agentfs.cli.records import find_record
from agentfs.model.errors import Denied, NotFound
from agentfs.workspace.status import WorkspaceStatus

ANSWER_SECONDS: Final = 10.0


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
    reply = _ask(mounted, HistoryRequest(os.fsencode(whole.relative_to(mounted.mountpoint))))
    assert isinstance(reply, HistoryReply), "the protocol answers history with HistoryReply"
    return reply.versions


def _ask(mounted: Mounted, request: Request) -> Reply:
    record = find_record(mounted)
    if record is None:
        raise gone(mounted.mountpoint) if is_dead(mounted) else _not_ours(mounted)
    with connected(Path(record.control), mounted.mountpoint, timeout_seconds=ANSWER_SECONDS) as connection:
        return list(exchange(connection, request, mounted.mountpoint))[-1]


def _not_ours(mounted: Mounted) -> Denied:
    if mounted.owner == os.geteuid():
        return Denied(
            f"{path_text(mounted.mountpoint)} was mounted with another XDG_RUNTIME_DIR: set it as it was, to reach its daemon"
        )
    return Denied(
        f"{path_text(mounted.mountpoint)} was mounted by another user (number {mounted.owner}): ask as that user or as root"
    )
