"""Telling the kernel what to forget, because another mount changed it.

The kernel is told from a thread of its own: forgetting a name waits for whatever is being done in its directory, and forgetting
pages for whoever reads them, both of which this daemon's event loop must be free to finish. So nothing that a request of the
kernel waits for may wait for `settled`, but for locks: a process that waits for one holds nothing else.
"""

import errno
from collections.abc import Callable
from typing import TypeVarTuple

import pyfuse3
import structlog
import trio

from agentfs.model.ids import Ino
from agentfs.runtime import Runtime
from agentfs.state.touched import Touched
from agentfs.workspace.pace import Pace

FRESH_SECONDS = 1.0
"""How long after a change of another mount the kernel is to ask for attributes each time.

It cannot forget an inode that it does not know yet, while an older answer that tells it of that inode waits for the process
that asked to be scheduled.
"""

BURST = 32
ROUNDS_PER_SECOND = 30.0
"""How often the kernel is told when nobody waits for it: at once so many times, and then so many times a second."""

Args = TypeVarTuple("Args")

_UNKNOWN = (errno.ENOENT, errno.ENOTDIR)
"""What the kernel says of what it does not have in its caches: nothing to forget."""

_log = structlog.get_logger()


class Invalidator:
    """The contract of `Kernel` for one mount. `run` is its task."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # What is to be forgotten, as dicts for their order; of an inode, whether its pages too.
        self._names: dict[tuple[Ino, bytes], None] = {}
        self._inodes: dict[Ino, bool] = {}
        self._telling: dict[Ino, bool] = {}
        self._fresh: dict[Ino, float] = {}
        self._work = trio.Event()
        self._urgent = trio.Event()
        self._pace = Pace(runtime, burst=BURST, per_second=ROUNDS_PER_SECOND)
        self._rounds_begun = 0
        self._rounds_done = 0
        self._round_over = trio.Event()
        self._users = 0
        self._closed = False

    def changed(self, rows: Touched) -> None:
        if not rows or self._closed:
            return
        self._names.update(dict.fromkeys(rows.names))
        for ino in rows.inodes:
            self._inodes.setdefault(ino, False)
        for ino in rows.contents:
            self._inodes[ino] = True
        now = self._runtime.boottime()
        for ino in rows.inodes | rows.contents:
            self._fresh.pop(ino, None)
            self._fresh[ino] = now
        while self._fresh and self._is_settled(next(iter(self._fresh)), now):
            del self._fresh[next(iter(self._fresh))]
        self._work.set()

    def is_changing(self, ino: Ino) -> bool:
        if ino not in self._fresh:
            return False
        if self._is_settled(ino, self._runtime.boottime()):
            del self._fresh[ino]
            return False
        return True

    def _is_settled(self, ino: Ino, now: float) -> bool:
        return ino not in self._inodes and ino not in self._telling and now > self._fresh[ino] + FRESH_SECONDS

    @property
    def is_settled(self) -> bool:
        return not (self._names or self._inodes or self._telling) or self._closed

    async def settled(self) -> None:
        last = self._rounds_begun + bool(self._names or self._inodes)
        self._urgent.set()
        while self._rounds_done < last and not self._closed:
            await self._round_over.wait()

    async def write_back(self, ino: Ino) -> None:
        if not self._closed:
            await self._tell(_forget_inode, ino, True)

    def refresh_attributes(self, ino: Ino) -> None:
        """Have the kernel ask for the attributes again, now. It waits for nothing, so the event loop may."""
        _forget_inode(ino, False)

    async def close(self) -> None:
        """The mount is gone: return once nobody talks to the kernel any more, and let nobody begin."""
        self._closed = True
        self._end_round()
        while self._users:
            await self._round_over.wait()

    async def _tell(self, function: Callable[[*Args], None], *args: *Args) -> None:
        self._users += 1
        try:
            await self._runtime.in_thread(function, *args)
        finally:
            self._users -= 1
            if self._closed:
                self._end_round()

    def _end_round(self) -> None:
        self._round_over.set()
        self._round_over = trio.Event()

    async def run(self) -> None:
        """Tell the kernel what there is to tell, until cancelled."""
        while True:
            await self._work.wait()
            with trio.move_on_after(self._pace.count()):
                await self._urgent.wait()
            self._urgent = trio.Event()
            names, self._names = self._names, {}
            inodes, self._inodes = self._inodes, {}
            self._work = trio.Event()
            if not names and not inodes:
                continue
            self._rounds_begun += 1
            self._telling = inodes
            await self._tell(_forget, list(names), list(inodes.items()))
            self._telling = {}
            self._rounds_done += 1
            self._end_round()


def _forget(names: list[tuple[Ino, bytes]], inodes: list[tuple[Ino, bool]]) -> None:
    for ino, pages in inodes:
        _forget_inode(ino, pages)
    for parent, name in names:
        _quietly(lambda parent=parent, name=name: pyfuse3.invalidate_entry(parent, name))  # type: ignore[misc]


def _forget_inode(ino: Ino, pages: bool) -> None:
    _quietly(lambda: pyfuse3.invalidate_inode(ino, attr_only=not pages))


def _quietly(tell: Callable[[], None]) -> None:
    try:
        tell()
    except OSError as error:
        if error.errno not in _UNKNOWN:
            _log.warning("kernel_not_told", reason=str(error))
