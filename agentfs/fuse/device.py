"""Leaving the FUSE device: a thread that waits inside the kernel for this very daemon must not be what keeps it open.

The kernel ends a mount's connection, and with it every call that waits for an answer, when nobody has the device open any more.
A thread that waits for an answer cannot be killed, and threads share their descriptors: so one that calls into the mount has
descriptors of its own, without the device. Then a daemon that is killed together with its guard (a container that ends) leaves
no mount behind that hangs for ever.
"""

import contextlib
import ctypes
import os
from typing import Final

_CLONE_FILES: Final = 0x400
_DESCRIPTORS: Final = "/proc/thread-self/fd"
_DEVICE: Final = "/dev/fuse"

_libc = ctypes.CDLL(None, use_errno=True)


def leave_device() -> None:
    """Give the calling thread descriptors of its own (unshare(2)), and close the device among them.

    For a thread that ends soon: it keeps open what others close meanwhile. Where that is not permitted, nothing happens.
    """
    if _libc.unshare(_CLONE_FILES):
        return
    for name in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):
            if os.readlink(f"{_DESCRIPTORS}/{name}") == _DEVICE:
                os.close(int(name))
