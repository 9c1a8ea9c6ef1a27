"""Taking turns: the processes that write to one SQLite journal come to it one after the other, none of them before its turn.

SQLite itself lets whoever finds the file busy sleep for milliseconds, longer each time, and look again; next to a process that
writes without a pause, all others starve.
"""

import errno
import fcntl
import os
import select
import struct
from pathlib import Path
from typing import Final

from agentfs.journal.sqlite_bells import share
from agentfs.model.errors import Denied, NoSpace, Unavailable
from agentfs.runtime import Runtime

SUFFIX: Final = "-turn"
"""What the file is called whose bytes are locked, behind the journal's own name."""

SOON_SECONDS: Final = 400e-6
"""How long the event loop waits for the turn of another to end: what one write takes, or two."""

PAUSE_SECONDS: Final = 100e-6
"""How long who waits sleeps between two looks: a fraction of what a write takes."""

PATIENCE_SECONDS: Final = 0.25
"""How long it waits: longer than those before it need, and no longer, for one of them may have been stopped (SIGSTOP)."""

DISTRUST_SECONDS: Final = 5.0
"""How long it does not wait again after that."""

_TURN: Final = 0
_NEXT: Final = 1
"""The bytes: one for whose turn it is, one for who is next."""


class Turn:
    """This process's place among those that write.

    Who wants to write first becomes the next one, of which there is one at a time, and then waits for the turn of the one
    before it to end: who has just written cannot have another turn before the next one had its own. The locks belong to the
    open file (fcntl(2), open file description locks), so that they end with the process.

    A turn is a courtesy: SQLite's own lock is what keeps the file whole. Whoever waits in vain goes without.
    """

    def __init__(self, file: int, journal: Path, runtime: Runtime) -> None:
        self._file = file
        self._journal = journal
        self._runtime = runtime
        self._distrusts_until = float("-inf")

    def take_soon(self) -> bool:
        """Take the turn if nobody is next and who has it ends it within SOON_SECONDS; whether that is so.

        For the event loop: to wait so long costs less than a thread that waits.
        """
        if not self._lock(_NEXT):
            return False
        now = self._runtime.boottime()
        give_up = now if now < self._distrusts_until else now + SOON_SECONDS
        try:
            while not self._lock(_TURN):
                if self._runtime.boottime() >= give_up:
                    return False
                os.sched_yield()
        finally:
            self._unlock(_NEXT)
        return True

    def take(self) -> None:
        """Wait for the turn, in a thread, or go without it when it does not come."""
        began = self._runtime.boottime()
        give_up = began if began < self._distrusts_until else began + PATIENCE_SECONDS
        try:
            while not (self._lock(_NEXT) and self._lock(_TURN)):
                if self._runtime.boottime() >= give_up:
                    self._distrusts_until = self._runtime.boottime() + DISTRUST_SECONDS
                    return
                select.select((), (), (), PAUSE_SECONDS)
        finally:
            self._unlock(_NEXT)

    def end(self) -> None:
        """Let the next one have its turn; nothing happens to who went without."""
        self._unlock(_TURN)

    def close(self) -> None:
        """Let go of the file, once."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _lock(self, byte: int) -> bool:
        """Lock a byte, which does no harm when it is locked here already; whether it is now."""
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, byte))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise Unavailable(f"cannot lock {self._journal}{SUFFIX}: {error.strerror}") from error
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, byte))


def open_turn(journal: Path, runtime: Runtime) -> Turn:
    """The place of this process among those that write to `journal`. Raises Denied, NoSpace, Unavailable."""
    path = Path(f"{journal}{SUFFIX}")
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(file).st_uid == os.geteuid():
            share(path, like=journal)
    except OSError as error:
        reason = f"cannot open {path}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(reason) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(reason) from error
        raise Unavailable(reason) from error
    return Turn(file, journal, runtime)


def _range(kind: int, byte: int) -> bytes:
    """A `struct flock` for one byte; its `l_pid` must be 0 (fcntl(2))."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
