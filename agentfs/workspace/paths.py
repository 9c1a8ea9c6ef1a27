"""Paths and inodes: from a path inside the workspace to its inode, and back for messages."""

from agentfs.model.errors import NotDirectory, NotFound
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.inode import Inode
from agentfs.state.queries import a_name_of
from agentfs.state.tables import Tables


def resolve(tables: Tables, path: bytes) -> Inode:
    """The inode at `path`, which is relative to the workspace's root; symbolic links are not followed.

    Raises NotFound and NotDirectory.
    """
    ino = ROOT_INO
    for name in path.split(b"/"):
        if not name or name == b".":
            continue
        inode = tables.inode(ino)
        if inode is not None and not inode.is_dir:
            raise NotDirectory(f"{path.decode(errors='replace')}: not a directory")
        dentry = tables.dentry(ino, name)
        if dentry is None:
            raise NotFound(f"{path.decode(errors='replace')}: no such file in the workspace")
        ino = dentry.ino
    found = tables.inode(ino)
    assert found is not None, "a name leads to an inode"
    return found


def printable(text: str) -> str:
    """The text on one line, whatever was in it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def path_of(tables: Tables, ino: Ino) -> str:
    """One of the paths that lead to an inode, on one line; `inode N` if none does. Slow: it searches the names.

    In a State whose names are damaged they may run in a circle: that ends here too.
    """
    parts: list[str] = []
    passed: set[Ino] = set()
    at = ino
    while at != ROOT_INO:
        found = a_name_of(tables, at)
        if found is None or at in passed:
            return f"inode {ino}"
        passed.add(at)
        at, name = found
        parts.append(printable(name.decode(errors="backslashreplace")))
    return "/".join(reversed(parts)) or "/"
