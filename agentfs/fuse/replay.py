"""The replay of other mounts' changes through the kernel, so that its watchers (inotify) see them.

One thread does each change again with plain system calls. Its requests are recognised by the thread's id, answered as if the
change were still to come, and acknowledged without anything being done (`replayed.py`). What is queued here is therefore the
difference between State and what watchers were told: a name in it must be asked for each time, by everybody.
"""

import contextlib
import errno
import stat
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TypeVar

import pyfuse3
import structlog
import trio

from agentfs.fuse.device import leave_device
from agentfs.fuse.invalidate import Invalidator
from agentfs.fuse.redo import look_up, redo, root_of, summarize, thread_id
from agentfs.fuse.written import Written
from agentfs.model.errors import NotFound, Stale
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.inode import Inode
from agentfs.runtime import Runtime
from agentfs.workspace.remote_changes import Kind, Name, Place, RemoteChange
from agentfs.workspace.workspace import Workspace

QUEUE_MAX = 4096
"""Changes waiting to be replayed; of what more comes, watchers are told only which directories are concerned."""

SUMMARIES_MAX = 256
"""Such directories; of what is in yet others, nothing is told."""

BATCH_MAX = 16
"""Changes replayed before the mount may be unmounted between two."""

SHARE = 0.15
"""The part of time that replaying takes in the long run, so that it does not slow down what processes do here."""

BURST_SECONDS = 0.25
"""How long it may take all of the time after it had nothing to do."""

QUIET_SECONDS = 5.0
"""How long nothing is replayed after `pause`."""

_ATTEMPTS = 2

_MOVED_ON = (errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EXDEV, errno.ELOOP)
"""What a path fails with that was another one when the change happened."""

_PROBE = b".agentfs-replay"

T = TypeVar("T")
_log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Item:
    """Something to replay: a change, or that something changed in a directory, whose path is known when its turn comes."""

    change: RemoteChange | None
    directory: Ino = ROOT_INO
    path: bytes = b""

    @property
    def names(self) -> list[Name]:
        """The names that lead elsewhere after it than before."""
        if self.change is None or self.change.kind in (Kind.MODIFIED, Kind.ATTRIBUTES):
            return []
        return [place.key for place in self.change.places]

    def before(self, name: Name) -> Inode | None:
        """What stood under one of its names before."""
        change = self.change
        assert change is not None, "a summary has no names"
        if change.to is not None and name == change.to.key:
            return change.other
        return None if change.kind is Kind.CREATED else change.inode

    def after(self, name: Name) -> Ino | None:
        """What stands under one of its names after it."""
        change = self.change
        assert change is not None, "a summary has no names"
        if change.kind is Kind.DELETED:
            return None
        if change.kind is Kind.CREATED or (change.to is not None and name == change.to.key):
            return change.inode.ino
        return change.other.ino if change.kind is Kind.EXCHANGED and change.other is not None else None


class Replay:
    """What the kernel of one mount is still to be told by replaying. `run` is its task, `thread` its thread while it works."""

    def __init__(self, workspace: Workspace, invalidator: Invalidator, runtime: Runtime) -> None:
        self._workspace = workspace
        self._invalidator = invalidator
        self._runtime = runtime
        self.thread = 0
        self.recognised = False
        self.written = Written()
        self._device = 0
        self._known: dict[Ino, int] = {}
        self._queue: deque[Item] = deque()
        self._names: dict[Name, deque[Item]] = {}
        self._repeatable: set[tuple[Ino, Kind]] = set()
        self._summaries: set[Ino] = set()
        self._batch: list[Item] = []
        # How far the thread is in the batch, which it alone writes; and how much of it is noted here as done.
        self._begun = 0
        self._done = 0
        self._work = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._allowance = BURST_SECONDS
        self._counted = 0.0
        self._quiet_until = 0.0
        self._closed = False

    # ---- what the kernel knows

    def told(self, parent: int, name: bytes, entry: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
        """The kernel is told that `name` leads to `entry`, or nowhere. A hot path."""
        if entry.st_ino and stat.S_ISDIR(entry.st_mode):
            self._known[Ino(entry.st_ino)] = self._known.get(Ino(entry.st_ino), 0) + 1
        if self._names and (parent, name) in self._names:
            entry.entry_timeout = 0.0
        return entry

    def forgotten(self, inodes: Sequence[tuple[int, int]]) -> None:
        """The kernel gives back so many of the answers that it had for each inode."""
        for number, count in inodes:
            ino = Ino(number)
            if ino in self._known:
                self._known[ino] -= count
                if self._known[ino] <= 0:
                    del self._known[ino]

    def knows(self, ino: Ino) -> bool:
        """Whether the kernel has the directory in its caches, as it does when somebody watches it."""
        return ino == ROOT_INO or ino in self._known

    # ---- what is to be replayed

    @property
    def queued(self) -> int:
        """How many changes, and directories to sum up, watchers are still to be told of."""
        return len(self._queue)

    def take(self, changes: list[RemoteChange]) -> None:
        """Queue what another mount did."""
        if self._closed:
            return
        for change in changes:
            if change.kind in (Kind.MODIFIED, Kind.ATTRIBUTES):
                self._take_repeatable(change)
            elif self._has_room(change):
                self._repeatable.difference_update({(change.inode.ino, Kind.MODIFIED), (change.inode.ino, Kind.ATTRIBUTES)})
                item = Item(change)
                self._queue.append(item)
                for name in item.names:
                    self._names.setdefault(name, deque()).append(item)
        self._work.set()

    def _take_repeatable(self, change: RemoteChange) -> None:
        key = (change.inode.ino, change.kind)
        if key not in self._repeatable and self._has_room(change):
            self._repeatable.add(key)
            self._queue.append(Item(change))

    def _has_room(self, change: RemoteChange) -> bool:
        if len(self._queue) - len(self._summaries) < QUEUE_MAX:
            return True
        for parent in {place.parent for place in change.places}:
            if self.knows(parent) and parent not in self._summaries and len(self._summaries) < SUMMARIES_MAX:
                self._summaries.add(parent)
                self._queue.append(Item(None, parent))
        return False

    # ---- the thread's requests

    def current(self) -> Item | None:
        """What the thread is doing. Called at each of its requests: everything before that is done."""
        while self._done < self._begun:
            self._finish(self._batch[self._done])
            self._done += 1
        return self._batch[self._begun] if self._begun < len(self._batch) else None

    def before(self, name: Name) -> tuple[bool, Inode | None]:
        """Whether `name` is about to be replayed, and what stood there before."""
        items = self._names.get(name)
        return (True, items[0].before(name)) if items else (False, None)

    def _finish(self, item: Item) -> None:
        for name in item.names:
            items = self._names.get(name)
            if items is not None and item in items:
                items.remove(item)
                if not items:
                    del self._names[name]

    # ---- the task

    async def run(self, mountpoint: Path) -> None:
        """Replay what there is, until cancelled or closed. The mount is there and answers."""
        await self._in_thread(self._probe, mountpoint)
        if not self.recognised:
            _log.warning("no_replay", reason="the kernel does not name the thread that asks")
            self.close()
            return
        self._workspace.watch(self.knows, self.take, self.pause)
        while not self._closed:
            await self._work.wait()
            await self._rest()
            await self._replay(mountpoint)

    async def _replay(self, mountpoint: Path) -> None:
        # Whoever reacts to what is replayed must find the new content: the kernel drops the old one first.
        await self._invalidator.settled()
        if self._closed or self._runtime.boottime() < self._quiet_until:
            return
        self._batch = self._next_batch()
        if not self._queue:
            self._work = trio.Event()
        self._begun = self._done = 0
        began = self._runtime.boottime()
        self._idle = trio.Event()
        try:
            failed = await self._in_thread(self._redo_batch, mountpoint) if self._batch else []
        finally:
            self._begun = len(self._batch)
            self.current()
            self._batch = []
            self._idle.set()
        self._allowance -= self._runtime.boottime() - began
        self._try_again(failed)

    def _next_batch(self) -> list[Item]:
        batch: list[Item] = []
        while self._queue and len(batch) < BATCH_MAX:
            item = self._queue.popleft()
            if item.change is None:
                self._summaries.discard(item.directory)
                path = self._workspace.directory_path(item.directory)
                if path is None:
                    continue
                item.path = path
            else:
                self._repeatable.discard((item.change.inode.ino, item.change.kind))
            if self._is_overtaken(item):
                self._finish(item)
            else:
                batch.append(item)
        return batch

    def _is_overtaken(self, item: Item) -> bool:
        """Whether a process of this mount did something else to a name since, and its watchers know that already."""
        return any(len(self._names.get(name, ())) == 1 and self._stands(name) != item.after(name) for name in item.names)

    def _stands(self, name: Name) -> Ino | None:
        try:
            return self._workspace.names.look_up(*name).ino
        except (NotFound, Stale):
            return None

    def _try_again(self, failed: list[Item]) -> None:
        """What was not found where it was is looked for, once, where it is now."""
        for item in reversed(failed):
            change = item.change
            if change is None:
                continue
            at, to = self._moved(change.at), self._moved(change.to) if change.to is not None else None
            if at is None or (to is None) != (change.to is None) or (at, to) == (change.at, change.to):
                continue
            again = Item(with_fields(change, at=at, to=to))
            self._queue.appendleft(again)
            for name in again.names:
                self._names.setdefault(name, deque()).appendleft(again)
            self._work.set()

    def _moved(self, place: Place) -> Place | None:
        path = self._workspace.directory_path(place.parent)
        return None if path is None else with_fields(place, path=path)

    async def _rest(self) -> None:
        """Return when it may go on: when it has taken no more than its part of time, and nobody wants to unmount."""
        while not self._closed:
            now = self._runtime.boottime()
            self._allowance = min(BURST_SECONDS, self._allowance + SHARE * (now - self._counted))
            self._counted = now
            pause = max(-self._allowance / SHARE, self._quiet_until - now)
            if pause <= 0:
                return
            await self._runtime.sleep(pause)

    # ---- stopping

    async def pause(self) -> None:
        """Return once nothing is being replayed, and let nothing be for a moment: somebody wants to unmount."""
        self._quiet_until = self._runtime.boottime() + QUIET_SECONDS
        await self._idle.wait()

    def close(self) -> None:
        """Begin nothing more. What is under way ends with the mount."""
        self._closed = True
        self._queue.clear()
        self._names.clear()
        self._work.set()

    # ---- in the thread

    async def _in_thread(self, work: Callable[[Path], T], mountpoint: Path) -> T:
        return await self._runtime.in_new_thread(self._as_thread, work, mountpoint)

    def _as_thread(self, work: Callable[[Path], T], mountpoint: Path) -> T:
        leave_device()
        self.thread = thread_id()
        try:
            return work(mountpoint)
        finally:
            self.thread = 0

    def _probe(self, mountpoint: Path) -> None:
        """Look a name up that is not there: if that is not recognised, what is replayed would be done for good."""
        try:
            with root_of(mountpoint) as (root, device):
                self._device = device
                look_up(root, _PROBE)
        except OSError as error:
            self.recognised = self.recognised and error.errno == errno.ENOENT

    def _redo_batch(self, mountpoint: Path) -> list[Item]:
        failed = []
        try:
            with root_of(mountpoint) as (root, device):
                if device != self._device:
                    return []
                for number, item in enumerate(self._batch):
                    self._begun = number
                    if self._closed:
                        break
                    if not self._redo(root, item):
                        failed.append(item)
        except OSError as error:
            _log.info("not_replayed", reason=str(error))
        return failed

    def _redo(self, root: int, item: Item) -> bool:
        """False if it was not found where it was. What this user may not do, others on this host are not told of."""
        for _ in range(_ATTEMPTS):
            try:
                if item.change is None:
                    summarize(root, item.path)
                else:
                    redo(root, item.change)
            except OSError as error:
                if error.errno not in _MOVED_ON:
                    return True
                _forget(item.names)
            else:
                return True
            finally:
                self.written.ended()
        return False


def _forget(names: list[Name]) -> None:
    """Have the kernel ask for names again: what it was told before they were queued may have reached it late."""
    for parent, name in names:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(parent, name)
