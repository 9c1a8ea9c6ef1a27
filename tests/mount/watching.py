"""An inotify(7) reader for tests: what a watcher is told, as plain values."""

import contextlib
import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mount.place import WAIT_SECONDS

_BITS = {
    0x2: "modify",
    0x4: "attrib",
    0x8: "close_write",
    0x40: "moved_from",
    0x80: "moved_to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete_self",
    0x800: "move_self",
    0x4000: "overflow",
}
_IS_DIRECTORY = 0x40000000
_HEADER = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """`watch` is what was given to `Watcher` as the name of the watched path, `name` what is below it."""

    watch: str
    kind: str
    name: str
    directory: bool
    cookie: int


class Watcher:
    """Watches paths, each under a name. OPEN, ACCESS and CLOSE_NOWRITE are left out: they are not changes."""

    def __init__(self, **paths: Path) -> None:
        self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._inotify >= 0, "no more inotify instances"
        self._watches = {self._watch(path): name for name, path in paths.items()}
        self.events: list[Event] = []

    def _watch(self, path: Path) -> int:
        watch: int = _libc.inotify_add_watch(self._inotify, os.fsencode(path), sum(_BITS))
        assert watch >= 0, f"inotify_add_watch({path}): {os.strerror(ctypes.get_errno())}"
        return watch

    def poll(self, seconds: float) -> list[Event]:
        """What comes within that time, at least one event if there is any."""
        if not select.select([self._inotify], [], [], seconds)[0]:
            return []
        data, at, found = os.read(self._inotify, 1 << 16), 0, []
        while at < len(data):
            watch, mask, cookie, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            name = data[at - length : at].rstrip(b"\0").decode()
            where = self._watches.get(watch, "")
            found += [Event(where, kind, name, bool(mask & _IS_DIRECTORY), cookie) for bit, kind in _BITS.items() if mask & bit]
        self.events += found
        return found

    def until(self, condition: Callable[[list[Event]], bool], what: str, *, seconds: float = WAIT_SECONDS) -> list[Event]:
        """Everything so far, once it meets the condition."""
        deadline = time.monotonic() + seconds
        while not condition(self.events):
            assert time.monotonic() < deadline, f"waited in vain for {what}; {len(self.events)} events: {self.events[-20:]}"
            self.poll(0.05)
        return self.events

    def settled(self, last: str) -> list[Event]:
        """Everything up to the creation of a file of that name, without it; the watcher then starts anew."""
        self.until(
            lambda events: any(event.name == last and event.kind == "create" for event in events), f"{last} to be created"
        )
        found = [event for event in self.events if event.name != last]
        self.events = []
        return found

    def close(self) -> None:
        """Watch no more."""
        os.close(self._inotify)


@contextlib.contextmanager
def watching(**paths: Path) -> Iterator[Watcher]:
    """A `Watcher` for the block."""
    watcher = Watcher(**paths)
    try:
        yield watcher
    finally:
        watcher.close()


@contextlib.contextmanager
def watched_beside(watcher: Watcher) -> Iterator[None]:
    """Reads the watcher's events in a thread during the block, so that its queue does not overflow."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            watcher.poll(0.05)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seen(events: list[Event]) -> dict[str, list[tuple[str, str, bool]]]:
    """By watch: kind, name, and whether a directory; of the same one several times in a row, one."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for event in events:
        row = (event.kind, event.name, event.directory)
        rows = found.setdefault(event.watch, [])
        if not rows or rows[-1] != row:
            rows.append(row)
    return found
