"""What every kind of operation of a mounted workspace shares."""

from dataclasses import dataclass, field

from cachetools import LRUCache

from agentfs.model.errors import NameTooLong, ReadOnly, Stale
from agentfs.model.ids import Ino
from agentfs.model.inode import NAME_MAX, Inode
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.handles import Handles
from agentfs.workspace.reader import Reader
from agentfs.workspace.staging import Staging
from agentfs.workspace.writeback import Writeback

GHOSTS_MAX = 4096


@dataclass(slots=True)
class Core:
    """The parts of one mounted workspace, and the look at an inode as this mount's processes see it."""

    tables: Tables
    committer: Committer
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

    def inode(self, ino: Ino) -> Inode:
        """The inode with what is staged laid over it: what stat(2) shows. A hot path. Raises Stale."""
        inode = self.tables.inode(ino)
        if inode is None:
            inode = self.ghosts.get(ino)
            if inode is None:
                raise Stale(f"inode {ino} is gone")
        file = self.staging.files.get(ino)
        if file is not None:
            inode = file.over(inode)
        return inode

    def new_ino(self) -> Ino:
        """An inode number that was never given before."""
        ino = self.next_ino
        self.next_ino = Ino(ino + 1)
        return ino

    def writable(self) -> None:
        """Raise ReadOnly on a read-only mount."""
        if self.read_only:
            raise ReadOnly("mounted read-only")


def check_name(name: bytes) -> None:
    """Raise NameTooLong for a name that the format has no room for."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes")
