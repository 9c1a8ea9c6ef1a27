"""Trees: a picture of everything below a directory, and where two pictures differ.

Left out is what each filesystem decides for itself: access times, sizes of directories, blocks, inode numbers (but not which
names share one), and times that it stamped.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.model.operations import own_xattrs


@dataclass(frozen=True, slots=True)
class Node:
    """What is compared of one name. `same_as` is the first name, in order, of the same inode."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    content: str
    xattrs: tuple[tuple[str, str], ...]
    same_as: str


def picture(root: Path) -> dict[str, Node]:
    """Every name below `root` and the root itself (".")."""
    first: dict[int, str] = {}
    return {name: _node(root, name, first) for name in sorted(_names(str(root), "."))}


def differences(left: dict[str, Node], right: dict[str, Node]) -> list[str]:
    """One line for each name that is not the same; [] when the trees are equal."""
    names = [name for name in sorted(left.keys() | right.keys()) if left.get(name) != right.get(name)]
    return [f"{name}:\n    {left.get(name, 'missing')}\n    {right.get(name, 'missing')}" for name in names]


def _names(root: str, below: str) -> Iterator[str]:
    yield below
    with os.scandir(f"{root}/{below}") as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in found:
        path = name if below == "." else f"{below}/{name}"
        if is_dir:
            yield from _names(root, path)
        else:
            yield path


def _node(root: Path, name: str, first: dict[int, str]) -> Node:
    path = f"{root}/{name}"
    status = os.lstat(path)
    return Node(
        mode=status.st_mode,
        nlink=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        content=_content(path, status.st_mode),
        xattrs=tuple((key, _hash(os.getxattr(path, key, follow_symlinks=False))) for key in own_xattrs(path)),
        same_as=first.setdefault(status.st_ino, name),
    )


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if stat.S_ISREG(mode):
        return _hash(Path(path).read_bytes())
    return ""


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:12]
