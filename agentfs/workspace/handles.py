"""Open files and directories: what a handle number means, and which inodes are open."""

from collections import Counter
from dataclasses import dataclass

from agentfs.model.errors import BadHandle, Fenced
from agentfs.model.ids import Ino


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file or directory. `writable` and `append` are what open(2) asked for."""

    number: int
    ino: Ino
    writable: bool
    append: bool


class Handles:
    """Every open handle of a mount."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._open: Counter[Ino] = Counter()
        self._lost: set[int] = set()
        self._last = 0

    def open(self, ino: Ino, *, writable: bool = False, append: bool = False) -> Handle:
        """A new handle on an inode."""
        self._last += 1
        handle = self._handles[self._last] = Handle(self._last, ino, writable, append)
        self._open[ino] += 1
        return handle

    def get(self, number: int) -> Handle:
        """The handle with that number. A hot path. Raises BadHandle, and Fenced for one that was lost."""
        if number in self._lost:
            raise Fenced("a lock under which the file was open was lost: close it and open it again")
        return self._known(number)

    def ino_of(self, number: int) -> Ino:
        """The inode that a handle is open on, lost or not. Raises BadHandle."""
        return self._known(number).ino

    def lose(self, ino: Ino) -> None:
        """Whatever is open on the inode now fails from here on, until it is closed."""
        self._lost.update(handle.number for handle in self._handles.values() if handle.ino == ino)

    def close(self, number: int) -> Handle:
        """Forget a handle and return it. Raises BadHandle."""
        handle = self._known(number)
        del self._handles[number]
        self._lost.discard(number)
        self._open[handle.ino] -= 1
        if not self._open[handle.ino]:
            del self._open[handle.ino]
        return handle

    def is_open(self, ino: Ino) -> bool:
        """Whether any handle is open on the inode."""
        return ino in self._open

    def _known(self, number: int) -> Handle:
        try:
            return self._handles[number]
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None
