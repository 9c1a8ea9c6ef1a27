"""Open files and directories: what a handle number means, and which inodes are open."""

from collections import Counter
from dataclasses import dataclass

from agentfs.model.errors import BadHandle
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
        self._last = 0

    def open(self, ino: Ino, *, writable: bool = False, append: bool = False) -> Handle:
        """A new handle on an inode."""
        self._last += 1
        handle = self._handles[self._last] = Handle(self._last, ino, writable, append)
        self._open[ino] += 1
        return handle

    def get(self, number: int) -> Handle:
        """The handle with that number. Raises BadHandle."""
        try:
            return self._handles[number]
        except KeyError:
            raise BadHandle(f"handle {number} is not open") from None

    def close(self, number: int) -> Handle:
        """Forget a handle and return it. Raises BadHandle."""
        handle = self.get(number)
        del self._handles[number]
        self._open[handle.ino] -= 1
        if not self._open[handle.ino]:
            del self._open[handle.ino]
        return handle

    def is_open(self, ino: Ino) -> bool:
        """Whether any handle is open on the inode."""
        return ino in self._open
