"""Whether anybody serves a mount."""

import errno
import os
import socket
from typing import Final

from agentfs.cli.mountinfo import Mounted
from agentfs.cli.records import find_record

_PROBE_SECONDS: Final = 1.0


def is_dead(mounted: Mounted) -> bool:
    """Whether the daemon behind a mount is gone.

    Its socket is tried first, since the kernel accepts for a daemon that is merely stopped, where a file operation would
    hang. Then statfs(2), which the kernel never answers from a cache, as it does stat(2): ENOTCONN is the answer of the dead.
    """
    record = find_record(mounted)
    if record is not None and _accepts(record.control):
        return False
    try:
        os.statvfs(mounted.mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
