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


def path_of(tables: Tables, ino: Ino) -> str:
    """One of the paths that lead to an inode, for a message; `inode N` if none does. Slow: it searches the names."""
    parts: list[str] = []
    at = ino
    while at != ROOT_INO:
        found = a_name_of(tables, at)
        if found is None:
            return f"inode {ino}"
        at, name = found
        parts.append(name.decode(errors="replace"))
    return "/".join(reversed(parts)) or "/"
