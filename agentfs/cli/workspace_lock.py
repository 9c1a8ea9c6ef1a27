"""One mount of a workspace at a time, for as long as locks and changes do not cross mounts: a flock(2) on its directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.mountinfo import our_mounts
from agentfs.cli.records import find_record
from agentfs.model.errors import Busy, NotFound


@contextmanager
def lock_workspace(directory: Path, name: str) -> Iterator[None]:
    """Hold the workspace's lock; the kernel lets go of it when the process ends, however it ends. Raises Busy."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path_text(directory)}: the workspace's directory is gone") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"workspace {name} is mounted{_where(directory)} already, and has one mount at a time") from None
        yield
    finally:
        os.close(fd)


def _where(directory: Path) -> str:
    for mounted in our_mounts():
        record = find_record(mounted)
        if record is not None and record.directory == path_text(directory):
            return f" on {record.mountpoint} (process {record.pid})"
    return ""
