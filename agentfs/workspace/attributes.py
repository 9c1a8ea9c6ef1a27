"""Operations on attributes: stat, chmod, chown, utimensat, extended attributes, and the computed `user.agentfs.*`."""

import hashlib
from collections.abc import Callable

from cachetools import LRUCache

from agentfs.model.changes import AnyChange, RemoveXattr, SetAttr, SetXattr
from agentfs.model.errors import Invalid, NoAttribute, NotPermitted, NotSupported, ValueTooLarge
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.model.inode import XATTR_SIZE_MAX, Inode
from agentfs.state.queries import least_replicas
from agentfs.workspace.core import Core, check_name
from agentfs.workspace.nearness import near_bytes
from agentfs.workspace.read_ahead import Stream

OWN = b"user.agentfs."
"""Attributes that agentfs computes; read-only."""

LOCK = b"lock"
"""The attribute that names who holds the file's locks; a file that nobody has locked has none."""

_NAMESPACES = (b"user.", b"security.", b"trusted.")
_DIGEST_STEP = 1 << 20
_DIGESTS_KEPT = 1024


class Attributes:
    """Attributes as this mount's processes see them."""

    def __init__(self, core: Core, lock_holders: Callable[[Ino], str]) -> None:
        self._core = core
        self._lock_holders = lock_holders
        self._digests: LRUCache[tuple[Ino, int], str] = LRUCache(_DIGESTS_KEPT)

    def get(self, ino: Ino) -> Inode:
        """What stat(2) shows. A hot path. Raises Stale."""
        return self._core.inode(ino)

    async def set(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """chmod(2), chown(2), utimensat(2): None leaves an attribute as it is; ctime changes even if all are None.

        Raises Stale, ReadOnly.
        """
        core = self._core
        core.writable()
        now_ns = core.runtime.now_ns()
        if mtime_ns is not None and core.staging.set_mtime(ino, mtime_ns, now_ns=now_ns):
            mtime_ns = None
            if all(value is None for value in (mode, uid, gid, atime_ns)):
                return
        permissions = None if mode is None else mode & 0o7777
        await self._submit(SetAttr(ino, now_ns, permissions, uid, gid, atime_ns, mtime_ns))

    # ---- extended attributes

    async def get_xattr(self, ino: Ino, name: bytes) -> bytes:
        """getxattr(2). Raises NoAttribute, Stale."""
        inode = self._core.tables.inode(ino)
        if name.startswith(OWN):
            return await self._own_value(self._core.inode(ino), name.removeprefix(OWN).decode(errors="replace"))
        value = self._core.tables.xattr(ino, name) if inode is not None and inode.xattrs else None
        if value is None:
            raise NoAttribute("no such attribute")
        return value

    async def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        """setxattr(2). Raises NotPermitted, NotSupported, ValueTooLarge, NameTooLong."""
        self._check_writable(name)
        if len(value) > XATTR_SIZE_MAX:
            raise ValueTooLarge(f"a value of {len(value)} bytes")
        await self._submit(SetXattr(ino, name, value, 0, self._core.runtime.now_ns()))

    async def remove_xattr(self, ino: Ino, name: bytes) -> None:
        """removexattr(2). Raises NoAttribute, NotPermitted, NotSupported."""
        self._check_writable(name)
        await self._submit(RemoveXattr(ino, name, self._core.runtime.now_ns()))

    def list_xattrs(self, ino: Ino) -> list[bytes]:
        """listxattr(2): the stored ones and the computed ones."""
        inode = self._core.inode(ino)
        stored = self._core.tables.xattr_names(ino) if inode.xattrs else []
        locked = [OWN + LOCK] if self._lock_holders(ino) else []
        return [*stored, *(OWN + name.encode() for name in _own_names(inode)), *locked]

    def _check_writable(self, name: bytes) -> None:
        self._core.writable()
        if name.startswith(OWN):
            raise NotPermitted("user.agentfs.* attributes are computed")
        if not name.startswith(_NAMESPACES):
            raise NotSupported("attributes of this kind are not kept")
        if name in _NAMESPACES:
            raise Invalid("an attribute needs a name")
        check_name(name)

    async def _submit(self, change: AnyChange) -> None:
        await self._core.committer.throttle()
        self._core.committer.submit([change])

    # ---- computed attributes

    async def _own_value(self, inode: Inode, name: str) -> bytes:
        if name.encode() == LOCK and (holders := self._lock_holders(inode.ino)):
            return holders.encode()
        if name not in _own_names(inode):
            raise NoAttribute("no such attribute")
        if name == "digest":
            return (await self._digest(inode)).encode()
        if name == "cached":
            return f"{await near_bytes(self._core, inode)}/{inode.size}".encode()
        return str(self._own_number(inode, name)).encode()

    def _own_number(self, inode: Inode, name: str) -> object:
        tables = self._core.tables
        match name:
            case "version":
                return inode.version
            case "commit":
                return inode.commit
            case "writer":
                session = tables.sessions.get(inode.writer)
                return session.writer if session else "create"
            case "replicas":
                return f"{self._replicas_holding(inode)}/{len(tables.members)}"
            case "workspace":
                return tables.found.workspace if tables.found else ""
            case _:
                assert name == "position"
                return tables.position

    def _replicas_holding(self, inode: Inode) -> int:
        """How many replicas hold all of the file; what is inline counts as stored where its entry is."""
        least = least_replicas(self._core.tables, inode.ino)
        return len(self._core.tables.members) if least is None else least

    async def _digest(self, inode: Inode) -> str:
        """`sha256:` and the hash of the content, kept as long as the version is the same and nothing is staged."""
        staged = inode.ino in self._core.staging.files
        key = (inode.ino, inode.version)
        if not staged and key in self._digests:
            return self._digests[key]
        digest = hashlib.sha256()
        offset, stream = 0, Stream()
        try:
            while piece := await self._core.reader.read(inode.ino, offset, _DIGEST_STEP, stream=stream):
                digest.update(piece)
                offset += len(piece)
        finally:
            self._core.reader.end(stream)
        text = f"sha256:{digest.hexdigest()}"
        if not staged:
            self._digests[key] = text
        return text


def _own_names(inode: Inode) -> list[str]:
    names = ["commit", "writer"]
    if inode.is_file:
        names += ["version", "digest", "replicas", "cached"]
    if inode.ino == ROOT_INO:
        names += ["workspace", "position"]
    return names
