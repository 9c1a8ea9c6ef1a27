"""A filesystem of dictionaries that entries are applied to: written apart from `agentfs.state`, slow, and obviously right."""

import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from agentfs.model.changes import (
    Acquire,
    AddReplica,
    AddSegment,
    AnyChange,
    CloseSession,
    Collect,
    Deleted,
    Deny,
    Drop,
    Fence,
    Fold,
    Found,
    InlineRun,
    Link,
    Make,
    Misplaced,
    OpenSession,
    Placed,
    Release,
    RemoveXattr,
    Rename,
    Renew,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Unneeded,
    Withdraw,
    Write,
)
from agentfs.model.entry import Entry, Transaction
from agentfs.model.extents import Chunk

Fetch = Callable[[bytes, Chunk], bytes]
"""The bytes of a chunk of the segment with that name."""


class Refused(Exception):
    """The transaction aborts."""


@dataclass(frozen=True)
class Node:
    """A file, directory or anything else. A directory's `names` lead to inode numbers."""

    mode: int
    body: bytes = b""
    target: bytes = b""
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    owner: int = 0
    """The session that keeps it though it has no name."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Dictionary:
    """The tree by inode number; nodes are replaced, never changed, so that a copy of the dictionary is a copy of the tree."""

    def __init__(self, fetch: Fetch, late: Collection[tuple[int, int]] = ()) -> None:
        self.nodes: dict[int, Node] = {}
        self.tokens: list[bytes] = []
        self.ended: set[int] = set()
        self.seen: dict[int, int] = {}
        self._fetch = fetch
        # Transactions that are refused for the sake of segments, which a dictionary knows nothing of.
        self._late = late
        self._sender = 0

    def apply(self, entry: Entry) -> list[bool]:
        """Apply an entry; return which of its transactions took effect."""
        return [self._transaction(entry.session, transaction) for transaction in entry.transactions]

    def _transaction(self, session: int, transaction: Transaction) -> bool:
        if session and (session in self.ended or transaction.number <= self.seen[session]):
            return False
        self.seen[session] = transaction.number
        if (session, transaction.number) in self._late:
            return False
        before = dict(self.nodes), set(self.ended), list(self.tokens)
        self._sender = session
        try:
            for change in transaction.changes:
                self._change(change)
        except Refused:
            self.nodes, self.ended, self.tokens = before
            return False
        return True

    def _change(self, change: AnyChange) -> None:
        match change:
            case Found():
                self.nodes[1] = Node(stat.S_IFDIR | 0o755)
            case OpenSession(token=token):
                if token not in self.tokens:
                    self.tokens.append(token)
                    self.seen[len(self.tokens)] = 0
            case CloseSession():
                self._end(self._sender)
            case Fence():
                self._fence(change)
            case Make():
                if change.ino in self.nodes:
                    raise Refused
                self._link_into(change.parent, change.name, change.ino)
                self.nodes[change.ino] = Node(change.mode, target=change.target)
            case Link():
                if self._node(change.ino).is_dir or not self.links(change.ino):
                    raise Refused
                self._link_into(change.parent, change.name, change.ino)
            case Unlink():
                if self._at(change.parent, change.name) != change.ino or self._node(change.ino).is_dir:
                    raise Refused
                self._unlink_from(change.parent, change.name, keep=change.keep)
            case Rmdir():
                gone = self._node(self._at(change.parent, change.name))
                if not gone.is_dir or gone.names:
                    raise Refused
                self._unlink_from(change.parent, change.name, keep=False)
            case Rename():
                self._rename(change)
            case Drop(ino=ino):
                if ino in self.nodes and self.nodes[ino].owner == self._sender and not self.links(ino):
                    del self.nodes[ino]
            case Truncate(ino=ino, size=size):
                body = self._file(ino).body[:size]
                self._set(ino, body=body + bytes(size - len(body)))
            case Write():
                self._write(change)
            case SetAttr(ino=ino, mode=mode):
                kind = stat.S_IFMT(self._node(ino).mode)
                if mode is not None:
                    self._set(ino, mode=kind | mode)
            case SetXattr():
                self._set_xattr(change)
            case RemoveXattr(ino=ino, name=name):
                xattrs = dict(self._node(ino).xattrs)
                if xattrs.pop(name, None) is None:
                    raise Refused
                self._set(ino, xattrs=xattrs)
            case AddSegment() | Placed() | Misplaced() | Unneeded() | Collect() | Deleted() | Fold() | AddReplica():
                # Where bytes are makes no difference to what they are.
                pass
            case Renew() | Acquire() | Withdraw() | Release() | Deny():
                # Leases have an invariant of their own, and do not show in the tree.
                pass

    def links(self, ino: int) -> int:
        """How many names lead to an inode."""
        return sum(list(node.names.values()).count(ino) for node in self.nodes.values())

    def _node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise Refused
        return self.nodes[ino]

    def _file(self, ino: int) -> Node:
        if not stat.S_ISREG(self._node(ino).mode):
            raise Refused
        return self.nodes[ino]

    def _set(self, ino: int, **fields: object) -> None:
        self.nodes[ino] = replace(self.nodes[ino], **fields)  # type: ignore[arg-type]

    def _at(self, parent: int, name: bytes) -> int:
        if parent not in self.nodes or name not in self.nodes[parent].names:
            raise Refused
        return self.nodes[parent].names[name]

    def _link_into(self, parent: int, name: bytes, ino: int) -> None:
        if not self._node(parent).is_dir or name in self.nodes[parent].names:
            raise Refused
        self._set(parent, names={**self.nodes[parent].names, name: ino})

    def _unlink_from(self, parent: int, name: bytes, *, keep: bool) -> None:
        ino = self._at(parent, name)
        self._set(parent, names={each: to for each, to in self.nodes[parent].names.items() if each != name})
        if not self.links(ino):
            if keep:
                self._set(ino, owner=self._sender)
            else:
                del self.nodes[ino]

    def _fence(self, change: Fence) -> None:
        if change.session not in self.seen:
            raise Refused
        shown = change.seen is not None and self.seen[change.session] > change.seen
        if shown and change.session not in self.ended:
            raise Refused
        self._end(change.session)

    def _end(self, session: int) -> None:
        if session in self.ended:
            return
        self.ended.add(session)
        for ino in [ino for ino, node in self.nodes.items() if node.owner == session and not self.links(ino)]:
            del self.nodes[ino]

    def _below(self, ino: int, top: int) -> bool:
        """Whether the directory `ino` is `top` or somewhere in it."""
        names = self.nodes[top].names.values()
        return ino == top or any(self.nodes[each].is_dir and self._below(ino, each) for each in names)

    def _rename(self, change: Rename) -> None:
        moved = self._at(change.parent, change.name)
        if not self._node(change.new_parent).is_dir:
            raise Refused
        target = self.nodes[change.new_parent].names.get(change.new_name)
        if change.flags == 2:
            self._exchange(change, moved, target)
            return
        if target is not None and change.flags == 1:
            raise Refused
        if self.nodes[moved].is_dir and self._below(change.new_parent, moved):
            raise Refused
        if target == moved:
            return
        if target is not None:
            if self.nodes[target].is_dir != self.nodes[moved].is_dir or self.nodes[target].names:
                raise Refused
            self._unlink_from(change.new_parent, change.new_name, keep=change.keep and not self.nodes[moved].is_dir)
        self._set(change.parent, names={k: v for k, v in self.nodes[change.parent].names.items() if k != change.name})
        self._link_into(change.new_parent, change.new_name, moved)

    def _exchange(self, change: Rename, moved: int, target: int | None) -> None:
        if target is None:
            raise Refused
        if moved == target:
            return
        for ino, into in ((moved, change.new_parent), (target, change.parent)):
            if self.nodes[ino].is_dir and self._below(into, ino):
                raise Refused
        self._set(change.parent, names={**self.nodes[change.parent].names, change.name: target})
        self._set(change.new_parent, names={**self.nodes[change.new_parent].names, change.new_name: moved})

    def _write(self, change: Write) -> None:
        body = bytearray(self._file(change.ino).body)
        base = len(body) if change.append else 0
        for run in change.runs:
            data = run.data if isinstance(run, InlineRun) else self._fetch(run.segment, run.chunk)
            start = base + run.offset
            body.extend(bytes(max(0, start - len(body))))
            body[start : start + len(data)] = data
        self._set(change.ino, body=bytes(body))

    def _set_xattr(self, change: SetXattr) -> None:
        xattrs = self._node(change.ino).xattrs
        if (change.flags == 1 and change.name in xattrs) or (change.flags == 2 and change.name not in xattrs):
            raise Refused
        self._set(change.ino, xattrs={**xattrs, change.name: change.value})
