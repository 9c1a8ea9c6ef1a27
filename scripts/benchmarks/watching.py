"""How one process finds out when another's change can be seen: it looks again and again, and notes when it saw."""

import ctypes
import os
import select
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from time import perf_counter_ns

POLL_SECONDS = 0.0001
"""Between two looks. Without a pause the one that looks would take a processor from the daemons that it waits for."""

GIVE_UP_SECONDS = 30.0

IN_CLOSE_WRITE = 8

_libc = ctypes.CDLL(None, use_errno=True)


class Moment:
    """A time in nanoseconds that processes share through a file: when the act began that another watches for. 0: not yet."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._cell = memoryview(mmap(file.fileno(), 8)).cast("q")

    def clear(self) -> None:
        """Nothing has begun."""
        self._cell[0] = 0

    def mark(self) -> int:
        """It begins now; returns the time."""
        now = perf_counter_ns()
        self._cell[0] = now
        return now

    def is_before(self, now: int) -> bool:
        """Whether it had begun by then."""
        return 0 < self._cell[0] <= now


_moments: dict[Path, Moment] = {}


def moment(path: Path) -> Moment:
    """The moment in a file, mapped once in each process."""
    if path not in _moments:
        _moments[path] = Moment(path)
    return _moments[path]


def new_moment(path: Path) -> Path:
    """Make the file for a moment."""
    path.write_bytes(bytes(8))
    return path


def forget(shared: Path) -> None:
    """Nothing has begun yet."""
    moment(shared).clear()


def wait_for(shared: Path) -> None:
    """Return once it has begun."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not moment(shared).is_before(perf_counter_ns()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{shared.name} has not begun within {GIVE_UP_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def saw_content(path: Path, content: bytes, shared: Path) -> int:
    """When an open and read that began after the moment had shown `content`, in nanoseconds."""
    return _saw(lambda: read(path) == content, shared)


def saw_size(path: Path, size_bytes: int, shared: Path) -> int:
    """The same for a stat, which the kernel may answer from its cache."""
    return _saw(lambda: os.stat(path).st_size == size_bytes, shared)


def saw_name(path: Path, shared: Path) -> int:
    """The same for a lookup of a name that is not there at first."""
    return _saw(lambda: os.path.exists(path), shared)


def saw_closed(path: Path, content: bytes, shared: Path) -> int:
    """When inotify(7) said that the file was closed after writing, after the moment, and its content was readable."""
    descriptor = _libc.inotify_init1(os.O_CLOEXEC)
    try:
        _libc.inotify_add_watch(descriptor, os.fsencode(path.parent), IN_CLOSE_WRITE)
        while select.select([descriptor], [], [], GIVE_UP_SECONDS)[0]:
            told = os.read(descriptor, 1 << 16)
            now = perf_counter_ns()
            if os.fsencode(path.name) in told and moment(shared).is_before(now):
                assert read(path) == content, "what the event is about must be readable"
                return now
        raise TimeoutError(f"no event of {path} in {GIVE_UP_SECONDS:g} s")
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """The file's content, by three system calls."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _saw(look: Callable[[], bool], shared: Path) -> int:
    begun = moment(shared)
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        began = perf_counter_ns()
        if look() and begun.is_before(began):
            return perf_counter_ns()
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing was seen within {GIVE_UP_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
