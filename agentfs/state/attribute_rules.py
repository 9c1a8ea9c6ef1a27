"""The rules for attributes: chmod(2), chown(2), utimensat(2), setxattr(2), removexattr(2)."""

import stat

from agentfs.model.changes import RemoveXattr, SetAttr, SetXattr
from agentfs.model.errors import Exists, NoAttribute
from agentfs.state.step import Rules, Step

XATTR_CREATE = 1
XATTR_REPLACE = 2


def _set_attr(step: Step, change: SetAttr) -> None:
    inode = step.inode(change.ino)
    fields: dict[str, int] = {"ctime_ns": change.time_ns}
    if change.mode is not None:
        fields["mode"] = stat.S_IFMT(inode.mode) | change.mode
    for name in ("uid", "gid", "atime_ns", "mtime_ns"):
        value = getattr(change, name)
        if value is not None:
            fields[name] = value
    step.update(inode, **fields)


def _set_xattr(step: Step, change: SetXattr) -> None:
    inode = step.inode(change.ino)
    there = inode.xattrs and step.tables.xattr(change.ino, change.name) is not None
    if there and change.flags & XATTR_CREATE:
        raise Exists("the attribute exists")
    if not there and change.flags & XATTR_REPLACE:
        raise NoAttribute("no such attribute")
    step.tables.put_xattr(change.ino, change.name, change.value)
    step.update(inode, xattrs=inode.xattrs + (not there), ctime_ns=change.time_ns)


def _remove_xattr(step: Step, change: RemoveXattr) -> None:
    inode = step.inode(change.ino)
    if step.tables.xattr(change.ino, change.name) is None:
        raise NoAttribute("no such attribute")
    step.tables.put_xattr(change.ino, change.name, None)
    step.update(inode, xattrs=inode.xattrs - 1, ctime_ns=change.time_ns)


RULES: Rules = {
    SetAttr: _set_attr,
    SetXattr: _set_xattr,
    RemoveXattr: _remove_xattr,
}
