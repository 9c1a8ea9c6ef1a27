"""The directory of an edge cache: segments and parts of segments as files, each of which is verified by its own bytes.

    ab/NAME.seg                 a whole segment, byte for byte; NAME is its SHA-256, as 64 hexadecimal digits
    ab/NAME.START-LENGTH.part   LENGTH bytes of that segment from byte START on; behind them 32 bytes, the SHA-256 of the
                                segment's name (32 bytes), start and length (8 bytes each, big-endian), and the bytes
    ab/.tmp-…                   a file that is being written, or that a killed writer left
    lock                        locked (flock) by the process that evicts; it holds the bound in bytes, as decimal digits

`ab` stands for the first two digits of NAME. Segments are named by their content, so that workspaces and processes share the
directory. Files appear by a rename and are not synchronised: what a crash leaves of them is found wrong when it is read. A file
whose name begins with 64 digits and a dot, and goes on in another way, is another version's: it is evicted like ours, and
never read. Whatever else somebody put there is left alone. The functions block, and any thread may call them.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from agentfs.chunks.contract import Check
from agentfs.model.extents import DIGEST_SIZE, SEGMENT_MAX, digest_of

EDGE_DIRECTORY: Final = "chunks"
"""What the directory is called, under the cache root."""

LOCK_FILE: Final = "lock"

_TEMPORARY: Final = ".tmp-"
_TOUCH_NS: Final = 60 * 10**9
"""How old the record of a file's last use may be, in nanoseconds: a hit changes it no more often."""

_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_OURS: Final = re.compile(r"([0-9a-f]{64})\.(?:seg|([0-9]{1,19})-([0-9]{1,19})\.part)")
_ANY_VERSION: Final = re.compile(r"[0-9a-f]{64}\..+", re.DOTALL)

_log = structlog.get_logger()


class Piece(NamedTuple):
    """What a file holds: bytes `[start, start + length)` of the segment of that name; to its end without `length`."""

    name: bytes
    start: int = 0
    length: int | None = None

    @property
    def whole(self) -> bool:
        """Whether it is the whole segment."""
        return self.start == 0 and self.length is None


class KeptFile(NamedTuple):
    """A file of the directory, in the order of last use."""

    used_ns: int
    size_bytes: int
    path: str

    @property
    def temporary(self) -> bool:
        """Whether it is being written, or was when its writer ended."""
        return os.path.basename(self.path).startswith(_TEMPORARY)

    @property
    def piece(self) -> Piece | None:
        """What it holds; None for temporary files, and those of other versions."""
        shard, file = self.path.rsplit("/", 2)[1:]
        match = _OURS.fullmatch(file)
        if match is None or not file.startswith(shard):
            return None
        name = bytes.fromhex(match[1])
        return Piece(name) if match[2] is None else Piece(name, int(match[2]), int(match[3]))


class EdgeFiles:
    """The files under `directory`, which need not exist, and may vanish at any moment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root = str(directory)

    def make(self) -> None:
        """Make the directory, for its owner alone. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def holds(self, piece: Piece) -> bool:
        """Whether there is a file of the right size that has these bytes: one or two stat(2)."""
        return any(self._fits(holder, piece) for holder in _holders(piece))

    def read(self, piece: Piece, check: Check | None, now_ns: int, at_once: bool = False) -> bytes | None:
        """The bytes, confirmed by `check`, or without one by the file itself; None if there are none. It is a use of the file.

        A file with other bytes is removed. With `at_once` it raises BlockingIOError instead of waiting for the disk.
        """
        for holder in _holders(piece):
            path = self._path(holder)
            try:
                descriptor = _open(path)
            except OSError:
                continue
            try:
                body = _read(descriptor, holder, piece, check, at_once)
                if body is not None:
                    _touch(descriptor, now_ns)
                    return body
            finally:
                os.close(descriptor)
            _log.warning("cached_file_is_wrong", path=path)
            _remove(path)
        return None

    def write(self, piece: Piece, body: bytes, token: str) -> int:
        """Keep the bytes of `piece` in a file; return the bytes that it takes, 0 if there is such a file already.

        A segment that is not what its name says is not kept either. `token` names the temporary file. Raises OSError.
        """
        path = self._path(piece)
        if self._fits(piece, piece) or (piece.whole and digest_of(body) != piece.name):
            return 0
        temporary = os.path.join(os.path.dirname(path), _TEMPORARY + token)
        descriptor = self._create(temporary)
        try:
            try:
                _write_all(descriptor, body)
                if not piece.whole:
                    _write_all(descriptor, _seal(piece, body))
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
        except OSError:
            _remove(temporary)
            raise
        return len(body) + _sealed(piece)

    def forget(self, name: bytes) -> None:
        """Remove every file of that segment."""
        for kept in self._scan_shard(name.hex()[:2]):
            if os.path.basename(kept.path).startswith(name.hex()):
                _remove(kept.path)

    def scan(self) -> Iterator[list[KeptFile]]:
        """The files of each subdirectory, in no order. What vanishes meanwhile is left out."""
        for shard in self._shards():
            yield self._scan_shard(shard)

    def sound(self, path: str, piece: Piece) -> bool | None:
        """Whether the file has the right bytes; None if it is gone. Raises OSError if it cannot be opened."""
        try:
            descriptor = _open(path)
        except FileNotFoundError:
            return None
        try:
            return _read(descriptor, piece, piece, None, False) is not None
        finally:
            os.close(descriptor)

    def remove(self, kept: KeptFile) -> bool:
        """Remove a file; whether it is gone."""
        return _remove(kept.path)

    def prune(self) -> None:
        """Remove subdirectories that are empty."""
        for shard in self._shards():
            with contextlib.suppress(OSError):
                os.rmdir(self.directory / shard)

    def _path(self, piece: Piece) -> str:
        digits = piece.name.hex()
        if piece.whole:
            return f"{self._root}/{digits[:2]}/{digits}.seg"
        return f"{self._root}/{digits[:2]}/{digits}.{piece.start}-{piece.length}.part"

    def _fits(self, holder: Piece, piece: Piece) -> bool:
        try:
            status = os.lstat(self._path(holder))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and _span(status.st_size, holder, piece) is not None

    def _create(self, temporary: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            return os.open(temporary, flags, 0o600)
        self.make()
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(temporary), 0o700)
        return os.open(temporary, flags, 0o600)

    def _shards(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.directory) if _SHARD.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _scan_shard(self, shard: str) -> list[KeptFile]:
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.directory / shard) as inside:
            for one in inside:
                if not one.name.startswith(_TEMPORARY) and not _ANY_VERSION.fullmatch(one.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = one.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append(KeptFile(status.st_mtime_ns, status.st_size, one.path))
        return found


def _holders(piece: Piece) -> Iterator[Piece]:
    """What files may have the bytes: one of exactly these, and the whole segment."""
    if piece.length:
        yield piece
    yield Piece(piece.name)


def _sealed(piece: Piece) -> int:
    """Bytes that stand behind the segment's own in a file."""
    return 0 if piece.whole else DIGEST_SIZE


def _seal(piece: Piece, body: bytes) -> bytes:
    assert piece.length == len(body), "a part has the length that it is kept under"
    return digest_of(b"".join((piece.name, piece.start.to_bytes(8, "big"), len(body).to_bytes(8, "big"), body)))


def _span(size: int, holder: Piece, piece: Piece) -> tuple[int, int] | None:
    """Where in the holder's file, of `size` bytes, the piece begins and ends; None if the file cannot be the right one."""
    held = size - _sealed(holder)
    start = piece.start - holder.start
    end = held if piece.length is None else start + piece.length
    right = max(start, end) <= held <= SEGMENT_MAX and (holder.whole or held == holder.length)
    return (start, end) if right else None


def _open(path: str) -> int:
    # Not to wait is for whatever else may have that name, such as a pipe.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _read(descriptor: int, holder: Piece, piece: Piece, check: Check | None, at_once: bool) -> bytes | None:
    """The piece's bytes out of an open file; None if they are wrong."""
    status = os.fstat(descriptor)
    span = _span(status.st_size, holder, piece)
    if not stat.S_ISREG(status.st_mode) or span is None:
        return None
    start, end = span
    try:
        if check is not None:
            body = _read_at(descriptor, start, end, at_once)
            return body if check(body) else None
        # Without a check only the file as a whole tells whether a part of it is right.
        content = _read_at(descriptor, 0, status.st_size, at_once)
    except BlockingIOError:
        raise
    except OSError:
        return None
    held = content[: len(content) - _sealed(holder)]
    right = digest_of(held) == holder.name if holder.whole else held + _seal(holder, held) == content
    return held[start:end] if right else None


def _read_at(descriptor: int, start: int, end: int, at_once: bool) -> bytes:
    """The bytes `[start, end)`. Raises OSError if the file became shorter, BlockingIOError if they are not in memory."""
    if not at_once:
        body = os.pread(descriptor, end - start, start)
        if len(body) < end - start:
            raise OSError(errno.EIO, "the file became shorter")
        return body
    room = bytearray(end - start)
    try:
        count = os.preadv(descriptor, [room], start, os.RWF_NOWAIT)
    except OSError as error:
        # Not every filesystem can say what is in memory.
        raise BlockingIOError from error
    if count < len(room):
        raise BlockingIOError
    return bytes(room)


def _touch(descriptor: int, now_ns: int) -> None:
    """Record the use, as the time of the last change: that of the last access depends on how the disk is mounted."""
    if abs(now_ns - os.fstat(descriptor).st_mtime_ns) > _TOUCH_NS:
        with contextlib.suppress(OSError):
            os.utime(descriptor, ns=(now_ns, now_ns))


def _write_all(descriptor: int, body: bytes) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
