"""System calls that Python's os module does not offer."""

import ctypes
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.argtypes = _libc.telldir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.getxattr.restype = _libc.listxattr.restype = ctypes.c_ssize_t


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.readdir.restype = ctypes.POINTER(_Dirent)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path | str | bytes, new: Path | str | bytes, flags: int) -> None:
    """renameat2(2), of paths from the working directory."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with raw (seconds, nanoseconds), so that UTIME_NOW and UTIME_OMIT can be passed."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0))


def getxattr_into(path: Path, name: str, size: int) -> int:
    """getxattr(2) into a buffer of `size` bytes; the value's length."""
    return _checked(_libc.getxattr(os.fsencode(path), name.encode(), ctypes.create_string_buffer(max(size, 1)), size))


def listxattr_into(path: Path, size: int) -> int:
    """listxattr(2) into a buffer of `size` bytes; the list's length."""
    return _checked(_libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(max(size, 1)), size))


def syncfs(descriptor: int) -> None:
    """syncfs(2)."""
    _checked(_libc.syncfs(descriptor))


class Directory:
    """A directory stream: opendir(3) and what belongs to it."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream, f"opendir({path}): {os.strerror(ctypes.get_errno())}"

    def __iter__(self) -> Iterator[bytes]:
        while entry := _libc.readdir(self._stream):
            yield bytes(entry.contents.d_name)

    def take(self, count: int) -> list[bytes]:
        """The next `count` names."""
        return list(islice(self, count))

    def tell(self) -> int:
        """The place of the next name."""
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        """Go back to a place."""
        _libc.seekdir(self._stream, place)

    def close(self) -> None:
        """closedir(3)."""
        _libc.closedir(self._stream)
