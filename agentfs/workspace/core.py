"""What every kind of operation of a mounted workspace shares."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cachetools import LRUCache
from msgspec.structs import replace

from agentfs.model.entry import Entry
from agentfs.model.errors import NameTooLong, ReadOnly, Stale
from agentfs.model.extents import Extent
from agentfs.model.ids import Ino
from agentfs.model.inode import NAME_MAX, Inode
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome
from agentfs.state.rows import Undo
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.follower import Follower
from agentfs.workspace.handles import Handles
from agentfs.workspace.reader import Reader
from agentfs.workspace.staging import Staging
from agentfs.workspace.writeback import Writeback

GHOSTS_MAX = 4096

REPLACED_MAX = 256
"""Files that were replaced by a rename here and may still be opened by who had looked up their name before."""


async def _nothing_to_confirm(number: int) -> None:
    pass


async def _nothing_to_pause() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a file that is gone from State: its attributes and where its bytes are."""

    inode: Inode
    extents: list[Extent]


@dataclass(slots=True)
class Core:
    """The parts of one mounted workspace, and the look at an inode as this mount's processes see it."""

    tables: Tables
    committer: Committer
    follower: Follower
    staging: Staging
    writeback: Writeback
    reader: Reader
    handles: Handles
    runtime: Runtime
    read_only: bool
    wait_for_close: bool
    next_ino: Ino
    ghosts: LRUCache[Ino, Inode] = field(default_factory=lambda: LRUCache(GHOSTS_MAX))
    """Removed inodes that the kernel may still ask about: the working directory of a process, an O_PATH descriptor."""
    must_confirm: Callable[[Ino], bool] = lambda ino: False
    """Whether the file is locked and the session may be dead: then `confirm` before its content is touched. A hot path."""
    confirm: Callable[[int], Awaitable[None]] = _nothing_to_confirm
    is_locked: Callable[[Ino], bool] = lambda ino: False
    on_foreign: Callable[[Entry, list[Outcome], Undo], None] = lambda entry, outcomes, undo: None
    """Called with each entry of another session that was applied, its transactions' outcomes and how to take it back."""
    pause_replay: Callable[[], Awaitable[None]] = _nothing_to_pause
    """Returns once nothing of what others changed is being replayed through the kernel, nor will be for a moment."""
    remains: dict[Ino, Remains] = field(default_factory=dict)
    """Files that are open here and gone from State, until they are closed: another mount removed them, or see `replaced`."""
    replaced: LRUCache[Ino, Remains] = field(default_factory=lambda: LRUCache(REPLACED_MAX))
    """Files that a rename here just replaced. A process that had looked the name up before opens them, as on a local disk: the
    kernel looks up only once more when it is told ESTALE, and the name may have been replaced again by then."""

    def inode(self, ino: Ino) -> Inode:
        """The inode with what is staged laid over it: what stat(2) shows. A hot path. Raises Stale."""
        inode = self.tables.inode(ino)
        if inode is None:
            left = self.remains.get(ino)
            inode = left.inode if left is not None else self.ghosts.get(ino)
            if inode is None:
                raise Stale(f"inode {ino} is gone")
        file = self.staging.files.get(ino)
        if file is not None:
            inode = file.over(inode)
        return inode

    def erasing(self, ino: Ino) -> None:
        """An inode is about to go from State: what is open here stays readable, what was staged of the rest is of no use."""
        inode = self.tables.inode(ino)
        if inode is None:
            return
        inode = replace(inode, nlink=0)
        self.ghosts[ino] = inode
        if self.handles.is_open(ino):
            self.remains[ino] = Remains(inode, self.tables.extents(ino, 0, inode.size))
        else:
            self.staging.discard(ino)

    def replacing(self, inode: Inode) -> None:
        """A rename here is about to replace the only name of a file. What is staged of it goes, so that it is not kept then."""
        if inode.is_file and inode.nlink == 1 and inode.ino not in self.staging.files:
            self.replaced[inode.ino] = Remains(replace(inode, nlink=0), self.tables.extents(inode.ino, 0, inode.size))

    def closed(self, ino: Ino) -> None:
        """The last handle on an inode is closed."""
        if self.remains.pop(ino, None) is not None:
            self.staging.discard(ino)

    def is_gone(self, ino: Ino) -> bool:
        """Whether the inode has no name and is not this mount's to keep: it cannot be opened any more."""
        inode = self.tables.inode(ino)
        return inode is None or (inode.nlink == 0 and self.tables.orphans.get(ino) != self.committer.session)

    def new_ino(self) -> Ino:
        """An inode number that was never given before."""
        ino = self.next_ino
        self.next_ino = Ino(ino + 1)
        return ino

    def writable(self) -> None:
        """Raise ReadOnly on a read-only mount, and where the mount says so while the replicas cannot be reached. A hot path."""
        if self.read_only:
            raise ReadOnly("mounted read-only")
        if self.writeback.refuses_writes():
            raise ReadOnly("too few replicas can be reached")


def check_name(name: bytes) -> None:
    """Raise NameTooLong for a name that the format has no room for."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes")
