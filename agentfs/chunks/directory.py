"""A chunk store in a directory of a local or network filesystem: each object is a file, named by its key."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentfs.chunks.contract import Capacity, Check, ObjectInfo
from agentfs.model.errors import Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.runtime import Runtime

THREADS_MAX: Final = 16
"""Requests to one directory at a time."""

_TEMPORARY: Final = ".tmp-"
_KEY: Final = re.compile(r"[a-z0-9._-]+(/[a-z0-9._-]+)*")
_KEY_MAX: Final = 200
_THREADS_MAX: Final = 16
_LASTING_MAX: Final = 4096
"""Directories that a store remembers as safely on disk, at most; forgetting one costs an fsync."""


class DirectoryStore:
    """Objects as files under `root`, which must exist: a disk that is not mounted is Unavailable, never filled by mistake.

    A file appears under its key by a rename, after its bytes reached the disk. A process that is killed while it puts may leave
    a file named `.tmp-…`, which no listing shows.
    """

    def __init__(self, root: Path, *, runtime: Runtime) -> None:
        self._root = root
        self._runtime = runtime
        # A network filesystem may hang: nobody waits for it longer than they want to, and it takes no threads of others.
        self._threads = runtime.threads(_THREADS_MAX)
        self._lasting: set[Path] = set()

    async def put(self, key: str, body: bytes) -> None:
        path = self._path(key)
        temporary = path.parent / (_TEMPORARY + self._runtime.random_bytes(8).hex())
        await self._threads.run(self._put, path, temporary, body)

    def grow(self, old: str | None, new: str, body: bytes, *, device: int) -> bool:
        """Add `body` to the object `old`, or to nothing, and call all of it `new`, at once; whether that was done.

        It survives a killed process, not a power cut: for what would be lost with something else on the same filesystem. It is
        not done where the directory is not on `device`. Whoever finds `new` finds all of it; `old` may have more than it did.
        It must be fast: the event loop does it.
        """
        try:
            return self._grow(old, new, body, device) if old is not None else self._begin(new, body, device)
        except OSError:
            # What `put` says of it is what people are told.
            return False

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await self._threads.run(self._get, self._path(key), start, length, check)

    async def size(self, key: str) -> int:
        return await self._threads.run(self._size, self._path(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        waiting = [_Found("", True, 0)]
        while waiting:
            found = waiting.pop()
            if not found.directory:
                yield ObjectInfo(found.key, found.size)
                continue
            waiting += await self._threads.run(self._scan, found.key, prefix)

    async def delete(self, key: str) -> None:
        # Nobody leaves before it is done: it would be a late deletion of what is put there next.
        await self._runtime.in_thread(self._delete, self._path(key))

    async def capacity(self) -> Capacity | None:
        return await self._threads.run(self._capacity)

    async def aclose(self) -> None:
        """A directory store holds nothing open."""

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        sound = len(key) <= _KEY_MAX and _KEY.fullmatch(key) is not None
        if not sound or any(part in (".", "..") or part.startswith(_TEMPORARY) for part in key.split("/")):
            raise Invalid(f"{key!r} cannot be the key of an object")
        return os.path.join(self._root, key)

    def _put(self, path: Path, temporary: Path, body: bytes) -> None:
        with self._translated(path):
            self._make_parents(path.parent)
            if not _is_file_of(path, len(body)):
                _write_new(temporary, path, body)
            # Also for a file that was there already: its writer may have been killed before it came to this line.
            _sync_directory(path.parent)

    def _begin(self, new: str, body: bytes, device: int) -> bool:
        path = self._name(new)
        temporary = f"{os.path.dirname(path)}/{_TEMPORARY}{self._runtime.random_bytes(8).hex()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(descriptor).st_dev == device and os.write(descriptor, body) == len(body):
                os.rename(temporary, path)
                return True
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return False

    def _grow(self, old: str, new: str, body: bytes, device: int) -> bool:
        before, after = self._name(old), self._name(new)
        descriptor = os.open(before, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if status.st_dev != device or os.write(descriptor, body) != len(body):
                return False
            os.rename(before, after)
            if os.path.samestat(status, os.stat(after)):
                return True
            # Somebody put `old` anew meanwhile: what was added is not in that.
            os.rename(after, before)
            return False
        finally:
            os.close(descriptor)

    def _make_parents(self, directory: Path) -> None:
        """Create the directories from the root down to `directory`, each safely on disk before the next."""
        if directory == self._root:
            return
        self._make_parents(directory.parent)
        try:
            directory.mkdir()
        except FileExistsError:
            if directory in self._lasting:
                return
        _sync_directory(directory.parent)
        if len(self._lasting) >= _LASTING_MAX:
            self._lasting.clear()
        self._lasting.add(directory)

    def _get(self, path: Path, start: int, length: int | None, check: Check | None) -> bytes:
        with self._translated(path), path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            end = size if length is None else start + length
            if max(start, end) > size:
                raise Corrupt(f"{path} has {size} bytes, {max(start, end)} were asked for")
            body = _read_at(file.fileno(), start, end)
        if len(body) < end - start:
            raise Corrupt(f"{path} became shorter while it was read")
        if check is not None and not check(body):
            raise Corrupt(f"{path}: the bytes from {start} to {end} are not what their hash says")
        return body

    def _size(self, path: Path) -> int:
        with self._translated(path):
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"no object {path}")
        return status.st_size

    def _delete(self, path: Path) -> None:
        with contextlib.suppress(NotFound), self._translated(path):
            path.unlink()

    def _capacity(self) -> Capacity:
        with self._translated(self._root):
            numbers = os.statvfs(self._root)
        return Capacity(numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize)

    def _scan(self, key: str, prefix: str) -> "tuple[_Found, ...]":
        """What lies in the directory `key` ("" for the root) and concerns `prefix`, the last key first.

        Nothing if the directory is gone, as after a race with who removed it.
        """
        path = self._root / key
        found = []
        with contextlib.suppress(NotFound), self._translated(path), os.scandir(path) as inside:
            for one in inside:
                if one.name.startswith(_TEMPORARY):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = one.stat(follow_symlinks=False)
                    found.append(_Found(f"{key}/{one.name}".lstrip("/"), stat.S_ISDIR(status.st_mode), status.st_size))
        wanted = (one for one in found if one.concerns(prefix))
        return tuple(sorted(wanted, key=lambda one: one.order, reverse=True))

    @contextlib.contextmanager
    def _translated(self, path: Path) -> Iterator[None]:
        """Turn what the operating system reports into the contract's errors; each names the path and the reason."""
        try:
            yield
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(reason) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise Denied(reason) from error
            if error.errno == errno.ENOENT and not self._root.exists():
                raise Unavailable(f"replica directory {self._root} is missing") from error
            # A directory stands where the key, or a longer one, would be looked up: there is no such object.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                raise NotFound(f"no object {path}") from error
            raise Unavailable(reason) from error


class _Found(NamedTuple):
    """A file or a directory that a listing came by."""

    key: str
    directory: bool
    size: int

    @property
    def order(self) -> str:
        """What to sort by, so that a whole directory stands where its keys belong: `a.b`, `a/b`, `a0`."""
        return self.key + "/" if self.directory else self.key

    def concerns(self, prefix: str) -> bool:
        """Whether it starts with `prefix`, or holds what might."""
        return self.order.startswith(prefix) or (self.directory and prefix.startswith(self.order))


def _is_file_of(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _write_new(temporary: Path, path: Path, body: bytes) -> None:
    """Make `path` of these bytes by way of `temporary`, which is gone afterwards, also after an error."""
    try:
        with temporary.open("xb", buffering=0) as file:
            rest = memoryview(body)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read_at(descriptor: int, start: int, end: int) -> bytes:
    """The bytes `[start, end)` of an open file; fewer only if it ends before. One read nearly always does it."""
    parts = []
    while start < end:
        part = os.pread(descriptor, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
