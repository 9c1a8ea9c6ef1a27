"""Operations: what a program may ask of a filesystem, as values; how each is done; and the generator of lists of them."""

import ctypes
import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c", "d", "e", "f", "g")
DEPTH_MAX = 3
SLOTS = 4
"""How many files a run may hold open at once."""

RENAME_FLAGS = (0, 0, 0, 0, 1, 2)
_AT_FDCWD = -100
_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: its name in `ACTIONS` and its arguments. Paths are relative to the root of the tree."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        shown = (f"<{len(part)} bytes {part[:4].hex()}>" if isinstance(part, bytes) else repr(part) for part in self.arguments)
        return f"{self.name}({', '.join(shown)})"


class Tree:
    """One of the two trees: a root and the files held open in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.handles: dict[int, int] = {}

    def path(self, relative: str) -> str:
        """The absolute path."""
        return f"{self.root}/{relative}"

    def perform(self, operation: Operation) -> object:
        """Do it. The result that a program sees: a value to compare, or the name of the errno."""
        try:
            return ACTIONS[operation.name](self, *operation.arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def close(self) -> None:
        """Close what is held open."""
        for descriptor in self.handles.values():
            os.close(descriptor)
        self.handles.clear()


def _digest(body: bytes) -> tuple[int, str]:
    return len(body), hashlib.sha256(body).hexdigest()[:12]


def _create(tree: Tree, path: str, flags: int, mode: int) -> None:
    os.close(os.open(tree.path(path), os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | flags, mode))


def _write(tree: Tree, path: str, offset: int, body: bytes, flags: int) -> int:
    descriptor = os.open(tree.path(path), os.O_WRONLY | os.O_NONBLOCK | flags)
    try:
        return os.write(descriptor, body) if flags & os.O_APPEND else os.pwrite(descriptor, body, offset)
    finally:
        os.close(descriptor)


def _read(tree: Tree, path: str, offset: int, length: int) -> tuple[int, str]:
    descriptor = os.open(tree.path(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        return _digest(os.pread(descriptor, length, offset))
    finally:
        os.close(descriptor)


def _hold(tree: Tree, slot: int, path: str, flags: int) -> None:
    """Open a file and keep it open; closes what the slot held."""
    _let_go(tree, slot)
    tree.handles[slot] = os.open(tree.path(path), flags | os.O_NONBLOCK, 0o644)


def _held(tree: Tree, slot: int) -> int:
    if slot not in tree.handles:
        raise OSError(errno.EBADF, "nothing held")
    return tree.handles[slot]


def _let_go(tree: Tree, slot: int) -> None:
    if slot in tree.handles:
        os.close(tree.handles.pop(slot))


def _rename(tree: Tree, old: str, new: str, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(tree.path(old)), _AT_FDCWD, os.fsencode(tree.path(new)), flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _stat(tree: Tree, path: str) -> tuple[int, ...]:
    found = os.lstat(tree.path(path))
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, size


def _fstat(tree: Tree, slot: int) -> tuple[int, ...]:
    found = os.fstat(_held(tree, slot))
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0 if stat.S_ISDIR(found.st_mode) else found.st_size


def own_xattrs(path: str) -> list[str]:
    """The user attributes of a path, without the filesystem's own."""
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in names if name.startswith("user.") and not name.startswith("user.agentfs."))


def _utime(tree: Tree, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
    os.utime(tree.path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
    found = os.lstat(tree.path(path))
    return found.st_atime_ns, found.st_mtime_ns


def _copy(tree: Tree, source_path: str, target_path: str, length: int) -> int:
    source = os.open(tree.path(source_path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        target = os.open(tree.path(target_path), os.O_WRONLY | os.O_NONBLOCK)
        try:
            return os.copy_file_range(source, target, length)
        finally:
            os.close(target)
    finally:
        os.close(source)


ACTIONS: dict[str, Callable[..., object]] = {
    "create": _create,
    "write": _write,
    "read": _read,
    "copy": _copy,
    "truncate": lambda tree, path, size: os.truncate(tree.path(path), size),
    "mkdir": lambda tree, path, mode: os.mkdir(tree.path(path), mode),
    "rmdir": lambda tree, path: os.rmdir(tree.path(path)),
    "unlink": lambda tree, path: os.unlink(tree.path(path)),
    "rename": _rename,
    "link": lambda tree, old, new: os.link(tree.path(old), tree.path(new), follow_symlinks=False),
    "symlink": lambda tree, target, path: os.symlink(target, tree.path(path)),
    "readlink": lambda tree, path: os.readlink(tree.path(path)),
    "mknod": lambda tree, path, mode: os.mknod(tree.path(path), mode),
    "listdir": lambda tree, path: sorted(os.listdir(tree.path(path))),
    "stat": _stat,
    "access": lambda tree, path, mode: os.access(tree.path(path), mode),
    "chmod": lambda tree, path, mode: os.chmod(tree.path(path), mode),
    "chown": lambda tree, path, uid, gid: os.lchown(tree.path(path), uid, gid),
    "utime": _utime,
    "setxattr": lambda tree, path, name, value, flags: os.setxattr(tree.path(path), name, value, flags, follow_symlinks=False),
    "getxattr": lambda tree, path, name: _digest(os.getxattr(tree.path(path), name, follow_symlinks=False)),
    "listxattr": lambda tree, path: own_xattrs(tree.path(path)),
    "removexattr": lambda tree, path, name: os.removexattr(tree.path(path), name, follow_symlinks=False),
    "hold": _hold,
    "let_go": _let_go,
    "held_write": lambda tree, slot, offset, body: os.pwrite(_held(tree, slot), body, offset),
    "held_read": lambda tree, slot, offset, length: _digest(os.pread(_held(tree, slot), length, offset)),
    "held_truncate": lambda tree, slot, size: os.ftruncate(_held(tree, slot), size),
    "held_chmod": lambda tree, slot, mode: os.fchmod(_held(tree, slot), mode),
    "held_stat": _fstat,
    "held_sync": lambda tree, slot: os.fsync(_held(tree, slot)),
}


class Generator:
    """Makes lists of operations: the same for the same seed, whatever the filesystem answers.

    It keeps a rough belief of what exists, so that most operations meet something; one in seven paths is any path.
    """

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self._dirs: dict[str, None] = {}
        self._others: dict[str, None] = {}

    def operations(self, count: int) -> list[Operation]:
        """So many operations."""
        return [self._operation() for _ in range(count)]

    def _operation(self) -> Operation:
        makers = tuple(_MAKERS)
        (name,) = self._source.choices(makers, weights=[_MAKERS[maker][0] for maker in makers])
        operation = Operation(name, _MAKERS[name][1](self))
        self._believe(operation)
        return operation

    def _believe(self, operation: Operation) -> None:
        arguments = operation.arguments
        if operation.name == "mkdir" and self._free(arguments[0]):
            self._dirs[arguments[0]] = None
        elif operation.name in ("create", "mknod") and self._free(arguments[0]):
            self._others[arguments[0]] = None
        elif (operation.name == "symlink" or (operation.name == "link" and arguments[0] in self._others)) and self._free(
            arguments[1]
        ):
            self._others[arguments[1]] = None
        elif operation.name == "unlink":
            self._others.pop(arguments[0], None)
        elif operation.name == "rmdir" and not self._below(arguments[0]):
            self._dirs.pop(arguments[0], None)
        elif operation.name == "hold" and arguments[2] & os.O_CREAT and self._free(arguments[1]):
            self._others[arguments[1]] = None
        elif operation.name == "rename" and self._renames(*arguments):
            self._move(*arguments)

    def _free(self, path: str) -> bool:
        """Whether a name may be made there."""
        return self._has_parent(path) and path not in self._dirs and path not in self._others

    def _has_parent(self, path: str) -> bool:
        parent = path.rpartition("/")[0]
        return not parent or parent in self._dirs

    def _below(self, path: str) -> list[str]:
        return [other for other in self._all() if other.startswith(f"{path}/")]

    def _renames(self, old: str, new: str, flags: int) -> bool:
        if old == new or new.startswith(f"{old}/") or old.startswith(f"{new}/") or not self._has_parent(new):
            return False
        if flags == _EXCHANGE:
            return old in self._all() and new in self._all()
        if old in self._dirs:
            return self._free(new) or (not flags and new in self._dirs and not self._below(new))
        return old in self._others and (self._free(new) or (not flags and new in self._others))

    def _move(self, old: str, new: str, flags: int) -> None:
        for paths in (self._dirs, self._others):
            moving = [path for path in paths if path == old or path.startswith(f"{old}/")]
            coming = [path for path in paths if path == new or path.startswith(f"{new}/")]
            for path in (*moving, *coming):
                del paths[path]
            paths.update({new + path[len(old) :]: None for path in moving})
            if flags == _EXCHANGE:
                paths.update({old + path[len(new) :]: None for path in coming})

    def _all(self) -> list[str]:
        return [*self._dirs, *self._others]

    def _any(self) -> str:
        return "/".join(self._source.choice(NAMES) for _ in range(self._source.randint(1, DEPTH_MAX)))

    def _one_of(self, paths: Iterable[str]) -> str:
        known = list(paths)
        return self._source.choice(known) if known and self._source.random() > 1 / 7 else self._any()

    def _path(self) -> str:
        """Something that exists, as far as is believed."""
        return self._one_of(self._all())

    def _file(self) -> str:
        """Something that is no directory."""
        return self._one_of(self._others)

    def _dir(self) -> str:
        """A directory below the root."""
        return self._one_of(self._dirs)

    def _new(self) -> str:
        """A name in a directory that exists, maybe taken."""
        parent = self._source.choice(["", "", *self._dirs])
        return f"{parent}/{self._source.choice(NAMES)}".lstrip("/")

    def _size(self) -> int:
        source = self._source
        return source.choice(
            [0, 1, source.randrange(200), source.randrange(9_000), source.randrange(70_000), source.randrange(1_300_000)]
        )

    def _offset(self) -> int:
        return self._source.choice([0, 0, self._size(), self._size(), 4096, 32 << 10, 1 << 20])

    def _body(self) -> bytes:
        size = self._size()
        return self._source.choice([bytes(size), self._source.randbytes(size), b"text " * (size // 5)])

    def _mode(self) -> int:
        return self._source.choice([0o644, 0o755, 0o600, 0o777, 0o4755, 0o2755, 0o1777, 0o6711, 0o000, 0o7777])

    def _xattr(self) -> str:
        return f"user.{self._source.choice('xyz')}"

    def _slot(self) -> int:
        return self._source.randrange(SLOTS)

    def _choice(self, *options: int) -> int:
        return self._source.choice(options)


_OWNERS = (-1, 0, 61001, 61002)
_MOMENTS = (0, 1, 1_500_000_000_123_456_789, 1_700_000_000_000_000_000, 4_300_000_000_000_000_001)

_MAKERS: dict[str, tuple[int, Callable[[Generator], tuple[Any, ...]]]] = {
    "create": (8, lambda g: (g._new(), g._choice(0, 0, os.O_EXCL, os.O_TRUNC), g._mode())),
    "write": (10, lambda g: (g._file(), g._offset(), g._body(), g._choice(0, 0, os.O_APPEND, os.O_TRUNC))),
    "read": (6, lambda g: (g._file(), g._offset(), g._size())),
    "copy": (2, lambda g: (g._file(), g._file(), g._size())),
    "truncate": (5, lambda g: (g._file(), g._size())),
    "mkdir": (8, lambda g: (g._new(), g._mode())),
    "rmdir": (2, lambda g: (g._dir(),)),
    "unlink": (5, lambda g: (g._file(),)),
    "rename": (10, lambda g: (g._path(), g._source.choice([g._path(), g._new(), g._new()]), g._choice(*RENAME_FLAGS))),
    "link": (6, lambda g: (g._file(), g._new())),
    "symlink": (3, lambda g: (g._source.choice([g._path(), g._path(), "../none/x", "/none/x", "."]), g._new())),
    "readlink": (2, lambda g: (g._file(),)),
    "mknod": (2, lambda g: (g._new(), g._choice(stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG) | 0o640)),
    "listdir": (3, lambda g: (g._dir(),)),
    "stat": (5, lambda g: (g._path(),)),
    "access": (1, lambda g: (g._path(), g._choice(os.F_OK, os.R_OK, os.X_OK))),
    "chmod": (5, lambda g: (g._path(), g._mode())),
    "chown": (3, lambda g: (g._path(), g._choice(*_OWNERS), g._choice(*_OWNERS))),
    "utime": (2, lambda g: (g._path(), g._choice(*_MOMENTS), g._choice(*_MOMENTS))),
    "setxattr": (4, lambda g: (g._path(), g._xattr(), g._body()[:70_000], g._choice(0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))),
    "getxattr": (2, lambda g: (g._path(), g._xattr())),
    "listxattr": (1, lambda g: (g._path(),)),
    "removexattr": (2, lambda g: (g._file(), g._xattr())),
    "hold": (
        8,
        lambda g: (g._slot(), g._file(), g._choice(os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY, os.O_WRONLY | os.O_APPEND)),
    ),
    "let_go": (1, lambda g: (g._slot(),)),
    "held_write": (6, lambda g: (g._slot(), g._offset(), g._body())),
    "held_read": (5, lambda g: (g._slot(), g._offset(), g._size())),
    "held_truncate": (3, lambda g: (g._slot(), g._size())),
    "held_chmod": (1, lambda g: (g._slot(), g._mode())),
    "held_stat": (3, lambda g: (g._slot(),)),
    "held_sync": (1, lambda g: (g._slot(),)),
}
"""Each operation with its weight and how its arguments are made."""
