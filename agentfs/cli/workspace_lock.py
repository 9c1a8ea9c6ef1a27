"""One mount of a workspace at a time, for as long as locks and changes do not cross mounts: a flock(2) on its directory."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.mountinfo import our_mounts
from agentfs.cli.records import find_record
from agentfs.model.errors import Busy, NotFound
from agentfs.runtime import Runtime

CLOSING_SECONDS = 60.0
"""How long a mount waits for a daemon that was unmounted and still saves."""

_LOOK_SECONDS = 0.05


@asynccontextmanager
async def lock_workspace(directory: Path, name: str, *, runtime: Runtime) -> AsyncIterator[None]:
    """Hold the workspace's lock; the kernel lets go of it when the process ends, however it ends.

    Raises Busy while another mount is up, or one that was unmounted does not come to its end.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path_text(directory)}: the workspace's directory is gone") from None
    try:
        deadline = runtime.boottime() + CLOSING_SECONDS
        while not _try_lock(fd):
            where = _where(directory)
            if where or runtime.boottime() > deadline:
                raise Busy(f"workspace {name} is mounted{where} already, and has one mount at a time")
            await runtime.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _where(directory: Path) -> str:
    for mounted in our_mounts():
        record = find_record(mounted)
        if record is not None and record.directory == path_text(directory):
            return f" on {record.mountpoint} (process {record.pid})"
    return ""
