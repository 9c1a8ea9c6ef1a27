"""The rules for names: link(2), unlink(2), rmdir(2), rename(2), and what making an inode means."""

import stat

from agentfs.model.changes import RENAME_EXCHANGE, RENAME_NOREPLACE, Drop, Link, Make, Rename, Rmdir, Unlink
from agentfs.model.errors import Exists, Invalid, IsDirectory, NotDirectory, NotEmpty, NotFound, NotPermitted, TooManyLinks
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.inode import LINK_MAX, Dentry, Inode
from agentfs.state.content_rules import EVERYTHING, cut
from agentfs.state.step import Rules, Step


def _make(step: Step, change: Make) -> None:
    tables = step.tables
    parent = step.directory(change.parent)
    if tables.dentry(change.parent, change.name) is not None:
        raise Exists("the name is taken")
    if tables.inode(change.ino) is not None:
        # Only a session and its copy (a snapshot of a machine that was started twice) give a number twice.
        raise Exists(f"inode number {change.ino} is given already")
    is_dir = stat.S_ISDIR(change.mode)
    links, up = (2, change.parent) if is_dir else (1, Ino(0))
    now = change.time_ns
    inode = Inode(
        ino=change.ino,
        mode=change.mode,
        nlink=links,
        uid=change.uid,
        gid=change.gid,
        rdev=change.rdev,
        size=len(change.target),
        allocated=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        version=0,
        commit=step.position,
        writer=step.session,
        parent=up,
        xattrs=0,
        target=change.target,
    )
    tables.put_inode(inode)
    tables.put_dentry(change.parent, change.name, change.ino)
    step.update(parent, mtime_ns=now, ctime_ns=now, nlink=parent.nlink + is_dir)


def _link(step: Step, change: Link) -> None:
    inode = step.inode(change.ino)
    if inode.is_dir:
        raise NotPermitted("a directory has one name")
    if inode.nlink == 0:
        raise NotFound("the file has no name left")
    if inode.nlink >= LINK_MAX:
        raise TooManyLinks("the file has too many names")
    parent = step.directory(change.parent)
    if step.tables.dentry(change.parent, change.name) is not None:
        raise Exists("the name is taken")
    step.tables.put_dentry(change.parent, change.name, change.ino)
    step.update(inode, nlink=inode.nlink + 1, ctime_ns=change.time_ns)
    step.update(parent, mtime_ns=change.time_ns, ctime_ns=change.time_ns)


def _unlink(step: Step, change: Unlink) -> None:
    dentry = step.dentry(change.parent, change.name)
    if dentry.ino != change.ino:
        raise NotFound("another file stands under the name by now")
    if step.inode(dentry.ino).is_dir:
        raise IsDirectory("a directory")
    step.tables.remove_dentry(dentry)
    step.touch_directory(change.parent, change.time_ns)
    _lose_name(step, dentry.ino, change.time_ns, keep=change.keep)


def _rmdir(step: Step, change: Rmdir) -> None:
    dentry = step.dentry(change.parent, change.name)
    inode = step.inode(dentry.ino)
    if not inode.is_dir:
        raise NotDirectory("not a directory")
    if not step.tables.is_empty(dentry.ino):
        raise NotEmpty("the directory has entries")
    step.tables.remove_dentry(dentry)
    step.touch_directory(change.parent, change.time_ns, links=-1)
    _lose_name(step, dentry.ino, change.time_ns, keep=False)


def _lose_name(step: Step, ino: Ino, time_ns: int, *, keep: bool) -> None:
    """An inode loses a name (a directory: its only one) and with the last one itself, unless it is to be kept as an orphan."""
    inode = step.inode(ino)
    links = 0 if inode.is_dir else inode.nlink - 1
    if links == 0 and not keep:
        erase(step, ino)
        return
    step.update(inode, nlink=links, ctime_ns=time_ns)
    if links == 0:
        step.tables.put_orphan(ino, step.session)


def erase(step: Step, ino: Ino) -> None:
    """An inode goes, with its content, attributes and versions."""
    tables = step.tables
    inode = step.inode(ino)
    tables.before_erase(ino)
    if inode.allocated:
        cut(step, ino, 0, EVERYTHING)
    if inode.xattrs:
        for name in tables.xattr_names(ino):
            tables.put_xattr(ino, name, None)
    if inode.version:
        tables.remove_versions(ino)
    if ino in tables.orphans:
        tables.put_orphan(ino, None)
    tables.remove_inode(ino)


def _drop(step: Step, change: Drop) -> None:
    if step.tables.orphans.get(change.ino) == step.session:
        erase(step, change.ino)


def _rename(step: Step, change: Rename) -> None:
    source = step.dentry(change.parent, change.name)
    step.directory(change.new_parent)
    target = step.tables.dentry(change.new_parent, change.new_name)
    moved = step.inode(source.ino)
    if change.flags & RENAME_EXCHANGE:
        if target is None:
            raise NotFound("no such name to exchange with")
        _exchange(step, change, source, target)
        return
    if target is not None and change.flags & RENAME_NOREPLACE:
        raise Exists("the name is taken")
    _refuse_cycle(step, moved, change.new_parent)
    if target is not None:
        if target.ino == source.ino:
            return
        _refuse_replacing(step, moved, step.inode(target.ino))
        step.tables.remove_dentry(target)
        if moved.is_dir:
            step.touch_directory(change.new_parent, change.time_ns, links=-1)
        _lose_name(step, target.ino, change.time_ns, keep=change.keep and not moved.is_dir)
    step.tables.remove_dentry(source)
    step.tables.put_dentry(change.new_parent, change.new_name, source.ino)
    step.touch_directory(change.parent, change.time_ns, links=-moved.is_dir)
    step.touch_directory(change.new_parent, change.time_ns, links=moved.is_dir)
    up = change.new_parent if moved.is_dir else Ino(0)
    step.update(step.inode(source.ino), ctime_ns=change.time_ns, parent=up)


def _exchange(step: Step, change: Rename, source: Dentry, target: Dentry) -> None:
    if source.ino == target.ino:
        return
    moved, other = step.inode(source.ino), step.inode(target.ino)
    _refuse_cycle(step, moved, change.new_parent)
    _refuse_cycle(step, other, change.parent)
    step.tables.remove_dentry(source)
    step.tables.remove_dentry(target)
    step.tables.put_dentry(source.parent, source.name, target.ino)
    step.tables.put_dentry(target.parent, target.name, source.ino)
    links = moved.is_dir - other.is_dir
    step.touch_directory(change.parent, change.time_ns, links=-links)
    step.touch_directory(change.new_parent, change.time_ns, links=links)
    for inode, up in ((moved, target.parent), (other, source.parent)):
        # The parents' rows were just written, and one of the two may be a parent itself.
        now = step.inode(inode.ino)
        step.update(now, ctime_ns=change.time_ns, parent=up if inode.is_dir else Ino(0))


def _refuse_cycle(step: Step, moved: Inode, new_parent: Ino) -> None:
    if not moved.is_dir:
        return
    ino = new_parent
    while ino != ROOT_INO:
        if ino == moved.ino:
            raise Invalid("a directory cannot move into itself")
        ino = step.inode(ino).parent
    if moved.ino == ROOT_INO:
        raise Invalid("the root directory cannot move")


def _refuse_replacing(step: Step, moved: Inode, target: Inode) -> None:
    if moved.is_dir and not target.is_dir:
        raise NotDirectory("a directory cannot replace a file")
    if target.is_dir and not moved.is_dir:
        raise IsDirectory("a file cannot replace a directory")
    if target.is_dir and not step.tables.is_empty(target.ino):
        raise NotEmpty("the directory to replace has entries")


RULES: Rules = {
    Make: _make,
    Link: _link,
    Unlink: _unlink,
    Rmdir: _rmdir,
    Rename: _rename,
    Drop: _drop,
}
