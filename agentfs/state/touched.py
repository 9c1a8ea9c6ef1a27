"""What row changes did to what a kernel may have cached, read from how they would be taken back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agentfs.model.ids import Ino
from agentfs.state.rows import Undo


@dataclass(frozen=True, slots=True)
class Touched:
    """Names that came or went, inodes whose attributes of either kind may differ, files whose bytes or size may differ."""

    names: set[tuple[Ino, bytes]] = field(default_factory=set)
    inodes: set[Ino] = field(default_factory=set)
    contents: set[Ino] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.names or self.inodes or self.contents)


_NAMES: Final[dict[str, Callable[..., tuple[Ino, bytes]]]] = {
    "_erase_dentry": lambda parent, name: (parent, name),
    "_insert_dentry": lambda dentry: (dentry.parent, dentry.name),
}
_INODES: Final[dict[str, Callable[..., Ino]]] = {
    "_set_inode": lambda ino, old: ino,
    "_set_xattr": lambda ino, name, old: ino,
}
_CONTENTS: Final[dict[str, Callable[..., Ino]]] = {
    "_erase_extent": lambda extent: extent.ino,
    "_insert_extent": lambda extent: extent.ino,
    # Each transaction that changes content or size adds a version, whatever it did to the extents.
    "_erase_version": lambda ino, version: ino,
    "_insert_version": lambda version: version.ino,
}
"""The calls that take back what a kernel may have cached, by name: what their arguments say was touched."""


def touched(undo: Undo) -> Touched:
    """What was touched by the changes that `undo` takes back, and so by taking them back. A hot path."""
    found = Touched()
    for call, arguments in undo:
        name = _name_of(call)
        if name in _INODES:
            found.inodes.add(_INODES[name](*arguments))
        elif name in _NAMES:
            found.names.add(_NAMES[name](*arguments))
        elif name in _CONTENTS:
            found.contents.add(_CONTENTS[name](*arguments))
    return found


def _name_of(call: Callable[..., Any]) -> str:
    return getattr(call, "__name__", "")
