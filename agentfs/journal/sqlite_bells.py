"""Bells: how a process that appended to an SQLite journal tells those that wait for it, and nobody else."""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

from agentfs.model.errors import AgentfsError, Denied, NoSpace, Unavailable

SUFFIX: Final = "-bells"
"""What the directory of a journal's bells is called, behind the journal's own name. It is there while somebody waits."""

_HANGING_TRIES: Final = 16
_HEARD_BYTES: Final = 4096


class Bell:
    """One waiting journal's bell: a file of its own, locked while it hangs, and an inotify descriptor that hears only it.

    A ring is an open for writing and a close, without a change (IN_CLOSE_WRITE). The descriptor becomes readable and stays so
    until `hear`; the kernel merges rings that nobody heard yet, so that they take no room. Watchdog's observers would hear
    the same through three threads of which each waits for the interpreter's lock (figures: docs/decisions/0010); of watchdog
    this takes inotify itself.
    """

    def __init__(self, path: Path, lock: int, ears: int) -> None:
        self._path = path
        self._lock = lock
        self._ears = ears
        self._hangs = True

    @property
    def name(self) -> str:
        """The file's name in the directory of bells."""
        return self._path.name

    @property
    def lost(self) -> bool:
        """Whether nobody can ring it, because it was taken down or somebody removed the file (which wakes whoever listens)."""
        return not self._hangs or os.fstat(self._lock).st_nlink == 0

    def fileno(self) -> int:
        """The descriptor that is readable once the bell rang."""
        return self._ears

    def hear(self) -> None:
        """Take note of the rings so far: the descriptor is readable again after the next one."""
        with suppress(BlockingIOError):
            os.read(self._ears, _HEARD_BYTES)

    def take_down(self) -> None:
        """Remove the file, and the directory after its last bell. Nobody may be waiting on the descriptor."""
        self._hangs = False
        with suppress(OSError):
            self._path.unlink()
        os.close(self._ears)
        os.close(self._lock)
        with suppress(OSError):
            self._path.parent.rmdir()


def ring_bells(journal: Path, *, but: str | None) -> None:
    """Ring every bell of `journal` except the one named `but`. Must be fast. Raises Unavailable if one cannot be rung.

    No wake-up is lost, if whoever appends lists the bells after its COMMIT, and whoever waits looks at the tail after its bell
    hangs and is watched. Either the listing names the bell: then it is rung, and the ring is either heard or older than the
    watch, hence the commit older than the look. Or the listing lacks it: then the bell was hung after the listing began, so
    again the look comes after the commit and finds the entry. This needs a fresh listing for each commit (5 microseconds for
    a small directory); one kept by the directory's time stamp could miss a bell hung within the clock's grain.
    """
    directory = f"{journal}{SUFFIX}"
    try:
        for name in _names(directory):
            if name != but:
                _ring(f"{directory}/{name}")
    except OSError as error:
        # Committed, but others may not hear of it: whoever sends it again rings again.
        raise Unavailable(f"cannot announce a change of the journal {journal}: {error.strerror}: {error.filename}") from error


def hang_bell(journal: Path, *, new_name: Callable[[], str]) -> Bell:
    """A new bell for `journal`; those of processes that died are removed.

    Raises Denied or NoSpace where no file can be made beside the journal, Unavailable without inotify.
    """
    # Also another opener removes what it finds unlocked: a new file counts as a bell once it is locked and still has its name.
    directory = Path(f"{journal}{SUFFIX}")
    try:
        for _ in range(_HANGING_TRIES):
            path = directory / new_name()
            # The last one that leaves removes the directory, perhaps just now.
            with suppress(FileNotFoundError):
                _make_directory(directory)
                _remove_dead(directory)
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                if _locked(lock):
                    return _watched(journal, path, lock)
                os.close(lock)
    except OSError as error:
        raise _translate(error, directory) from error
    raise Unavailable(f"cannot make a file in {directory}: it, or the directory, is gone each time")


def _ring(path: str) -> None:
    # A bell that is gone belongs to nobody who waits.
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _names(directory: Path | str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _make_directory(directory: Path) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        share(directory, like=directory.parent)


def _remove_dead(directory: Path) -> None:
    """Remove the bells that nobody holds locked."""
    for name in _names(directory):
        path = directory / name
        # What cannot be opened or removed, because it is gone or another user's, is left alone.
        with suppress(OSError):
            bell = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(bell, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(bell)


def _locked(bell: int) -> bool:
    """Lock a new bell; whether it hangs. Between its creation and now somebody may have taken it for dead."""
    with suppress(BlockingIOError):
        fcntl.flock(bell, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(bell).st_nlink > 0
    return False


def _watched(journal: Path, path: Path, lock: int) -> Bell:
    try:
        share(path, like=journal)
        return Bell(path, lock, _listen(path))
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(lock)
        raise


def _listen(path: Path) -> int:
    """A descriptor that is readable once `path` was closed after writing, or removed (which changes its link count)."""
    ears = inotify_init()
    if ears == -1:
        raise _deaf(path)
    os.set_inheritable(ears, False)
    os.set_blocking(ears, False)
    mask = InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_ATTRIB
    if inotify_add_watch(ears, os.fsencode(path), mask) == -1:
        error = _deaf(path)
        os.close(ears)
        raise error
    return ears


def _deaf(path: Path) -> Unavailable:
    reason = os.strerror(ctypes.get_errno())
    return Unavailable(f"cannot watch {path} for changes: {reason} (inotify: see /proc/sys/fs/inotify)")


def share(path: Path, *, like: Path) -> None:
    """Let those use `path` who may use `like`, as SQLite does for the files that it makes beside a database."""
    model = like.stat()
    if os.geteuid() == 0:
        os.chown(path, model.st_uid, model.st_gid)
    path.chmod(stat.S_IMODE(model.st_mode))


def _translate(error: OSError, directory: Path) -> AgentfsError:
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Denied(f"no permission to make files in {directory}, which waiting for other mounts needs: {error.strerror}")
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"no space left for a file in {directory}")
    return Unavailable(f"cannot make a file in {directory}: {error.strerror}")
