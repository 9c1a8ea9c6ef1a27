"""The bound of an edge cache: how large it may be, and the eviction of what was used least recently."""

import contextlib
import fcntl
import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentfs.chunks.edge_files import LOCK_FILE, EdgeFiles, KeptFile
from agentfs.model.extents import SEGMENT_MAX

DEFAULT_BYTES: Final = 10 << 30
"""The bound where nothing else is said, if the disk is large enough."""

MIN_BYTES: Final = 64 << 20
"""The smallest bound: what is less holds hardly more than what is being read."""

FILES_MAX: Final = 1 << 17
"""Files in the directory, at most, about: looking at them takes a second and 50 MB."""

FILE_COST: Final = 4096
"""What a file takes on the disk is counted in blocks of this many bytes."""

RESERVED_BYTES: Final = 1 << 30
"""Room that the cache leaves free on its disk for staging and State, which come first; a twentieth of a disk that is small."""

STALE_NS: Final = 3600 * 10**9
"""The age in nanoseconds beyond which nobody writes a temporary file any more."""

_USABLE: Final = 0.8
_MARGIN_PARTS: Final = 16


class Look(NamedTuple):
    """What the directory holds after a look, and whether a file of the size asked for may be written now."""

    used_bytes: int
    room: bool


def default_max_bytes(directory: Path) -> int:
    """DEFAULT_BYTES, or 80 % of what the disk has free if that is less; what the cache has there already counts as free."""
    free = _disk(directory).free
    if free * _USABLE < DEFAULT_BYTES:
        free += sum(cost(kept.size_bytes) for shard in EdgeFiles(directory).scan() for kept in shard)
    return max(min(DEFAULT_BYTES, int(free * _USABLE)), MIN_BYTES)


def cost(size_bytes: int) -> int:
    """Bytes of the bound that a file of this size takes."""
    return -(-size_bytes // FILE_COST) * FILE_COST


def is_short_of_room(directory: Path, wanted_bytes: int) -> bool:
    """Whether less would be left on the disk than the cache leaves to others. Raises OSError."""
    disk = _disk(directory)
    return disk.free < disk.reserved + wanted_bytes


def look(files: EdgeFiles, max_bytes: int, wanted_bytes: int, now_ns: int) -> Look | None:
    """Evict until `wanted_bytes` more keep the bound and the disk's reserve; None if another process is doing so.

    Raises OSError. Of the bound a sixteenth, and no less than two segments, is left for what other processes add until their
    next look; eviction frees another sixteenth, so that it is not repeated for every file.
    """
    files.make()
    with _locked(files.directory / LOCK_FILE, max_bytes) as locked:
        if not locked:
            return None
        return _evict(files, max_bytes, wanted_bytes, now_ns)


def is_being_written(kept: KeptFile, now_ns: int) -> bool:
    """Whether it is a temporary file that is so young that its writer may live."""
    return kept.temporary and now_ns - kept.used_ns <= STALE_NS


def recorded_bound(directory: Path) -> int | None:
    """The bound in bytes that the process which looked last holds to; None if that is unknown."""
    try:
        return int((directory / LOCK_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _evict(files: EdgeFiles, max_bytes: int, wanted_bytes: int, now_ns: int) -> Look:
    disk = _disk(files.directory)
    part = max_bytes // _MARGIN_PARTS
    high = max_bytes - max(part, 2 * SEGMENT_MAX) - wanted_bytes
    shards = [sorted(_without_stale(files, shard, now_ns)) for shard in files.scan()]
    used = sum(cost(kept.size_bytes) for shard in shards for kept in shard)
    count = sum(map(len, shards))
    excess = used - (high - part) if used > high else 0
    surplus = count - (FILES_MAX - FILES_MAX // _MARGIN_PARTS) if count > FILES_MAX else 0
    lacking = disk.reserved + wanted_bytes - disk.free
    shortage = lacking + disk.reserved // _MARGIN_PARTS if lacking > 0 else 0
    freed = 0
    for removed, kept in enumerate(_oldest(shards)):
        if freed >= max(excess, shortage) and removed >= surplus:
            break
        if files.remove(kept):
            freed += cost(kept.size_bytes)
    return Look(used - freed, freed >= excess and freed >= lacking)


def _without_stale(files: EdgeFiles, shard: list[KeptFile], now_ns: int) -> Iterator[KeptFile]:
    for kept in shard:
        if kept.temporary and not is_being_written(kept, now_ns):
            files.remove(kept)
        else:
            yield kept


def _oldest(shards: list[list[KeptFile]]) -> Iterator[KeptFile]:
    """What may be evicted, the least recently used first. Merging is done step by step, so that other threads run meanwhile."""
    return (kept for kept in heapq.merge(*shards) if not kept.temporary)


class _Disk(NamedTuple):
    free: int
    reserved: int


def _disk(directory: Path) -> _Disk:
    """The disk that holds the directory, or will."""
    there = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    numbers = os.statvfs(there)
    reserved = min(RESERVED_BYTES, numbers.f_blocks * numbers.f_frsize // 20)
    return _Disk(numbers.f_bavail * numbers.f_frsize, reserved)


@contextlib.contextmanager
def _locked(path: Path, max_bytes: int) -> Iterator[bool]:
    """Whether this process is the one that evicts; the file then says to which bound."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # A disk that is full takes no record, and needs eviction most.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(max_bytes).encode(), 0)
        yield True
    finally:
        os.close(descriptor)
