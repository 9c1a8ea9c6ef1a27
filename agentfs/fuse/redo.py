"""The system calls by which a change of another mount is done again below a mountpoint, for the kernel to tell its watchers.

They run in a thread beside the event loop, which answers them. Nothing here ever leaves the mount: directories are opened
without following symbolic links and without crossing into other mounts, and names are used relative to them alone.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from agentfs.model.inode import Inode
from agentfs.workspace.remote_changes import Kind, Place, RemoteChange

EXECUTABLE = 0o111
"""The permissions of a program, of which any is enough."""

_OPENAT2 = 437
"""The system call's number, the same on every architecture that Linux supports today but one."""

_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_INSIDE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_AT_EMPTY_PATH = 0x1000
_RENAME_EXCHANGE = 2
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_MTIME_ALONE = (_Timespec * 2)(_Timespec(0, _UTIME_OMIT), _Timespec(0, _UTIME_NOW))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@contextmanager
def _opened(directory: int, path: bytes, flags: int) -> Iterator[int]:
    """openat2(2) of what is below a directory and in the same mount; without following any symbolic link."""
    how = _How(flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _INSIDE)
    where = ctypes.c_int(directory)
    file = _checked(_libc.syscall(_OPENAT2, where, path or b".", ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))))
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def root_of(mountpoint: Path) -> Iterator[tuple[int, int]]:
    """The directory that is at `mountpoint` now, to be used by the calls below, and the device it is on.

    Its device tells whether the mount is still there. While it is open, the mount is in use: not for long, therefore.
    """
    root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root, os.fstat(root).st_dev
    finally:
        os.close(root)


def thread_id() -> int:
    """The calling thread's id, which the kernel names with its requests (gettid(2))."""
    return int(_libc.gettid())


def look_up(root: int, path: bytes) -> None:
    """Have the kernel look a path up. Raises OSError."""
    with _opened(root, path, os.O_PATH):
        pass


def redo(root: int, change: RemoteChange) -> None:
    """Do again what another mount did. Raises OSError."""
    with _directory(root, change.at) as parent:
        match change.kind:
            case Kind.CREATED:
                _create(parent, change.at.name, change.inode)
            case Kind.MODIFIED:
                _modify(parent, change.at.name, change.inode)
            case Kind.ATTRIBUTES:
                _touch(parent, change.at.name, None)
            case Kind.DELETED:
                (os.rmdir if change.inode.is_dir else os.unlink)(change.at.name, dir_fd=parent)
            case Kind.MOVED | Kind.EXCHANGED:
                assert change.to is not None, "what moved went somewhere"
                with _directory(root, change.to) as target:
                    move: Callable[[int, bytes, int, bytes], None] = _move if change.kind is Kind.MOVED else _exchange
                    move(parent, change.at.name, target, change.to.name)


def summarize(root: int, path: bytes) -> None:
    """Tell the watchers of a directory, and of the one it is in, that something is different there. Raises OSError."""
    with _opened(root, path, os.O_PATH | os.O_DIRECTORY) as directory:
        _touch(directory, b"", None)


def _directory(root: int, place: Place) -> AbstractContextManager[int]:
    return _opened(root, place.path, os.O_PATH | os.O_DIRECTORY)


def _create(parent: int, name: bytes, inode: Inode) -> None:
    """Also where a file got another name: what watchers of the directory are told is the same."""
    if inode.is_dir:
        os.mkdir(name, dir_fd=parent)
    elif stat.S_ISLNK(inode.mode):
        os.symlink(inode.target, name, dir_fd=parent)
    else:
        os.mknod(name, stat.S_IFMT(inode.mode) | 0o600, inode.rdev, dir_fd=parent)


def _modify(parent: int, name: bytes, inode: Inode) -> None:
    """Written and closed; only written, where it may not be opened for writing.

    A program is not: whoever ran it at that moment would get ETXTBSY, although nobody writes to it.
    """
    if inode.mode & EXECUTABLE:
        _touch(parent, name, _MTIME_ALONE)
        return
    try:
        with _opened(parent, name, os.O_WRONLY | os.O_NONBLOCK) as file:
            os.ftruncate(file, inode.size)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ETXTBSY):
            raise
        _touch(parent, name, _MTIME_ALONE)


def _touch(directory: int, name: bytes, times: object) -> None:
    """utimensat(2): with both times (None), watchers see changed attributes; with that of the content alone, a write."""
    if name:
        with _opened(directory, name, os.O_PATH) as file:
            _touch(file, b"", times)
    else:
        _checked(_libc.utimensat(directory, b"", times, _AT_EMPTY_PATH))


def _move(parent: int, name: bytes, target: int, new_name: bytes) -> None:
    os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=target)


def _exchange(parent: int, name: bytes, target: int, new_name: bytes) -> None:
    _checked(_libc.renameat2(parent, name, target, new_name, _RENAME_EXCHANGE))
