"""Whether anybody serves a mount."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from agentfs.cli.mountinfo import Mounted
from agentfs.cli.records import find_record

_PROBE_SECONDS: Final = 1.0

_LOOK_SECONDS: Final = 3.0
"""The dead are reported at once; a busy machine takes its time to start the process that looks."""

_LOOK: Final = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"


def is_dead(mounted: Mounted) -> bool:
    """Whether the daemon behind a mount is gone.

    Its socket is tried first, since the kernel accepts for a daemon that is merely stopped, where a file operation would
    hang. Then statfs(2), which the kernel never answers from a cache, as it does stat(2): ENOTCONN is the answer of the dead.
    """
    record = find_record(mounted)
    if record is not None and _accepts(record.control):
        return False
    return _look(mounted.mountpoint) in (errno.ENOTCONN, errno.ECONNABORTED)


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _look(mountpoint: Path) -> int:
    """The errno of statfs(2), 0 if it succeeds or does not end: in a process of its own, which can be given up."""
    looking = [sys.executable, "-I", "-S", "-c", _LOOK, os.fspath(mountpoint)]
    try:
        return subprocess.run(looking, stdin=subprocess.DEVNULL, timeout=_LOOK_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        return 0
