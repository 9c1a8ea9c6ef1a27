"""One daemon per mountpoint: a flock(2) on a file in the runtime directory, from before the mount until its last trace is gone.

A daemon whose mount was taken down by umount(8) still saves, and clears its socket and its record away at the end. The next
mount on that directory has the same socket and record, so it waits for that end.
"""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from agentfs.cli.amounts import path_text
from agentfs.cli.layout import mountpoint_key, runtime_directory
from agentfs.cli.mountinfo import mount_at
from agentfs.cli.preflight import mounted_already
from agentfs.model.errors import Busy
from agentfs.runtime import Runtime

CLOSING_SECONDS: Final = 60.0
"""How long a mount waits for a daemon that was unmounted and still saves."""

_LOOK_SECONDS: Final = 0.05

_log = structlog.get_logger()


@asynccontextmanager
async def lock_mountpoint(mountpoint: Path, *, runtime: Runtime) -> AsyncIterator[None]:
    """Hold the lock of a canonical path; the kernel lets go of it when the process ends, however it ends.

    Raises Busy if a workspace is mounted there, or if the daemon of one that was does not come to its end.
    """
    path = runtime_directory() / f"{mountpoint_key(mountpoint)}.lock"
    fd = _try_lock(path)
    if fd is None:
        fd = await _wait_for_lock(path, mountpoint, runtime)
    try:
        _check_free(mountpoint)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


async def _wait_for_lock(path: Path, mountpoint: Path, runtime: Runtime) -> int:
    _log.info("waiting for the daemon of the mount before", mountpoint=path_text(mountpoint))
    deadline = runtime.boottime() + CLOSING_SECONDS
    while (fd := _try_lock(path)) is None:
        _check_free(mountpoint)
        if runtime.boottime() > deadline:
            raise Busy(f"{path_text(mountpoint)}: the daemon of the mount that was here is still at work; try again later")
        await runtime.sleep(_LOOK_SECONDS)
    return fd


def _try_lock(path: Path) -> int | None:
    """The locked file, None if somebody else has it, or had it and removed it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _check_free(mountpoint: Path) -> None:
    mounted = mount_at(mountpoint)
    if mounted is not None and mounted.ours:
        raise mounted_already(mounted)
