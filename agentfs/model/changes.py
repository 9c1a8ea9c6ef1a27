"""Changes: the steps inside a transaction, as the journal holds them.

Every change is a request: `apply` decides from State whether the transaction it is in commits. Times are nanoseconds since
the epoch, stamped by the session that asks, so that every mount derives the same State.
"""

import msgspec

from agentfs.model.extents import Chunk
from agentfs.model.ids import Ino, Position, ReplicaId, SessionId, TxnNumber
from agentfs.model.lease import Run


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One step; the subclass's tag is its name in the journal (docs/format.md)."""


class ReplicaSpec(msgspec.Struct, frozen=True, array_like=True):
    """A replica of the workspace: its number and where it is (a URL without credentials)."""

    replica: ReplicaId
    url: str


class Found(Change, frozen=True, array_like=True, tag="found"):
    """The first change of every journal: the workspace's identity, its settings, its first replicas and its root directory.

    `write_quorum`: how many replicas `quorum` replication waits for; 0 is the majority. `history_seconds`: how old an entry is
    before it may be trimmed; 0 keeps all.
    """

    workspace: str
    name: str
    format: int
    replication: str
    durability: str
    replicas: list[ReplicaSpec]
    uid: int
    gid: int
    time_ns: int
    write_quorum: int = 0
    history_seconds: int = 0


LEASE_TTL_MS = 10_000
"""How long a session may be silent before it is dead, unless it says otherwise."""


class OpenSession(Change, frozen=True, array_like=True, tag="open"):
    """Registers a session; `apply` gives it the next number. `token` is random, and tells sessions apart before that.

    `ttl_ms`: when its heartbeat has not changed for so long, others may fence it. `upkeep`: it can do the workspace's chores;
    they fall to the lowest number among the open sessions that can.
    """

    token: bytes
    host: str
    pid: int
    label: str
    time_ns: int
    ttl_ms: int = LEASE_TTL_MS
    upkeep: bool = True


class CloseSession(Change, frozen=True, array_like=True, tag="close"):
    """Ends the sender's session in good order; its orphans go."""


class Fence(Change, frozen=True, array_like=True, tag="fence"):
    """Declares another session dead: from here on its transactions abort, and its orphans and leases go.

    With `seen`, the last of its transactions that the judge knew of, it aborts if there is a later one: that is a sign of life
    (Busy). Without, it holds in any case. Fencing a session that ended already changes nothing.
    """

    session: SessionId
    time_ns: int = 0
    seen: TxnNumber | None = None


class Recovered(Change, frozen=True, array_like=True, tag="recovered"):
    """The journal was lost, and was rebuilt from replicas up to the entry in front of this one. Every open session ends.

    `incarnation` is random and names the line that begins here: what mounts have seen of entries that were lost, whose
    positions are given again, is told apart by it. `replicas` are the members from now on, and where they are; what others
    hold does not count any more. Aborts: NotPermitted (the sender is a session), Invalid (no replica).
    """

    incarnation: str
    replicas: list[ReplicaSpec]
    time_ns: int


class Renew(Change, frozen=True, array_like=True, tag="renew"):
    """Does nothing but show that its sender is alive and not fenced: a verdict by its silence up to here is void."""


class Acquire(Change, frozen=True, array_like=True, tag="acquire"):
    """Asks for the lease on `run` of a file: granted at once, or queued until what is in its way is gone.

    Where no other session holds or asks for anything of the file in this space, the whole file is granted exclusively, so that
    further locks need no journal. What the session holds already is never weakened. `number` is the sender's name for the
    request. With `passes` it goes ahead of those that wait for what the sender holds: whoever asks holds a lock that they wait
    for, and may need this one to let go of it. The inode need not exist any more: a removed file that is open can be locked.
    """

    ino: Ino
    space: int
    number: int
    run: Run
    wait: bool
    time_ns: int
    passes: bool = False


class Withdraw(Change, frozen=True, array_like=True, tag="withdraw"):
    """Takes the sender's request `number` out of the queue. Nothing happens when it was granted or denied before."""

    ino: Ino
    space: int
    number: int
    time_ns: int


class Release(Change, frozen=True, array_like=True, tag="release"):
    """Gives up what the sender holds of a file in this space, down to `keep`; whoever is next in the queue gets it.

    `keep` never strengthens: bytes in it that are not held, or held in a weaker mode, stay as they are held.
    """

    ino: Ino
    space: int
    keep: list[Run]
    time_ns: int


class Deny(Change, frozen=True, array_like=True, tag="deny"):
    """Answers a request that does not want to wait: a process of the sender holds `held`. It leaves the queue.

    `pid` is that process on the sender's host. Nothing happens when the request is gone, or when the sender holds nothing that
    is in its way.
    """

    ino: Ino
    space: int
    session: SessionId
    number: int
    held: Run
    pid: int
    time_ns: int


class Make(Change, frozen=True, array_like=True, tag="make"):
    """Creates inode `ino` under a name: file, directory, symlink, FIFO, socket or device, by `mode`.

    Aborts: Exists, NotFound (the parent), NotDirectory.
    """

    parent: Ino
    name: bytes
    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    time_ns: int


class Link(Change, frozen=True, array_like=True, tag="link"):
    """Gives inode `ino` another name. Aborts: Exists, NotFound, NotPermitted (a directory), Stale, TooManyLinks."""

    parent: Ino
    name: bytes
    ino: Ino
    time_ns: int


class Unlink(Change, frozen=True, array_like=True, tag="unlink"):
    """Removes a name that is not a directory's. With `keep`, an inode without names stays as the sender's orphan.

    `ino` is what the sender saw under the name: what stands there by now must be the same. Aborts: NotFound, IsDirectory.
    """

    parent: Ino
    name: bytes
    ino: Ino
    keep: bool
    time_ns: int


class Rmdir(Change, frozen=True, array_like=True, tag="rmdir"):
    """Removes an empty directory. Aborts: NotFound, NotDirectory, NotEmpty."""

    parent: Ino
    name: bytes
    time_ns: int


RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Rename(Change, frozen=True, array_like=True, tag="rename"):
    """rename(2) and renameat2(2); `flags` as there (1 NOREPLACE, 2 EXCHANGE); `keep`, as in `Unlink`, is for what it replaces.

    It moves what stands under the old name when it is applied. Aborts: NotFound, Exists, IsDirectory, NotDirectory, NotEmpty,
    Invalid (a directory into itself).
    """

    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    flags: int
    keep: bool
    time_ns: int


class Drop(Change, frozen=True, array_like=True, tag="drop"):
    """The sender's last handle on an orphan is closed: the inode and its extents go."""

    ino: Ino


class Truncate(Change, frozen=True, array_like=True, tag="truncate"):
    """Cuts or extends a file to `size` bytes. Aborts: Stale."""

    ino: Ino
    size: int
    time_ns: int


class InlineRun(msgspec.Struct, frozen=True, array_like=True, tag="i"):
    """A run of a file's bytes, carried in the entry. `offset` counts as in `Write`."""

    offset: int
    data: bytes

    @property
    def length(self) -> int:
        """Bytes in the run."""
        return len(self.data)


class ChunkRun(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A run of a file's bytes that is a whole chunk of the segment named `segment`."""

    offset: int
    segment: bytes
    chunk: Chunk

    @property
    def length(self) -> int:
        """Bytes in the run."""
        return self.chunk.raw


class Write(Change, frozen=True, array_like=True, tag="write"):
    """Replaces byte ranges of a file. Segments named in `runs` are in enough replicas before this is appended.

    With `append` the offsets count from the file's end at apply time, so that appends of two hosts never overlap; otherwise
    from its beginning. Aborts: Stale.
    """

    ino: Ino
    runs: list[InlineRun | ChunkRun]
    append: bool
    time_ns: int


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Which bytes a folded run was made of: those of an extent that begin `skip` bytes into the chunk with this hash."""

    digest: bytes
    skip: int


class Fold(Change, frozen=True, array_like=True, tag="fold"):
    """Puts chunks where a file has the same bytes already; to whoever reads the file nothing has changed.

    A run counts where the file is at `version` and has an extent of exactly the run's length there: an inline one of the run's
    bytes, as the chunk's hash tells, or, with `origins`, of which there are then as many as runs, the one that its origin
    names. Otherwise nothing comes of it. Aborts: Corrupt (a segment that is not known).
    """

    ino: Ino
    version: int
    runs: list[ChunkRun]
    origins: list[Origin] = []


class SetAttr(Change, frozen=True, array_like=True, tag="setattr"):
    """chmod, chown, utimens: None leaves an attribute as it is. `mode` holds permission bits only. Aborts: Stale."""

    ino: Ino
    time_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Change, frozen=True, array_like=True, tag="setxattr"):
    """Sets an extended attribute; `flags` as in setxattr(2) (1 CREATE, 2 REPLACE). Aborts: Exists, NoAttribute, Stale."""

    ino: Ino
    name: bytes
    value: bytes
    flags: int
    time_ns: int


class RemoveXattr(Change, frozen=True, array_like=True, tag="removexattr"):
    """Removes an extended attribute. Aborts: NoAttribute, Stale."""

    ino: Ino
    name: bytes
    time_ns: int


class AddSegment(Change, frozen=True, array_like=True, tag="segment"):
    """Makes a segment known: its name (a hash), its size in bytes and the replicas that hold it already.

    Replicas that are no members any more are ignored. `time_ns`, which counts where the segment was not known before, tells how
    far a replica that lacks it has fallen behind; 0: nobody knows. `since`: the last entry that the sender had applied when it
    began to put it; a segment that is not known and was begun before something was collected may have been collected itself.
    Aborts: Collected (that is so), Unavailable (none of several is a member still).
    """

    name: bytes
    size: int
    replicas: list[ReplicaId]
    time_ns: int = 0
    since: Position = Position(0)


class Placed(Change, frozen=True, array_like=True, tag="placed"):
    """A replica holds a segment now that it lacked when `AddSegment` was sent. Ignored where either is not known."""

    name: bytes
    replica: ReplicaId


class Misplaced(Change, frozen=True, array_like=True, tag="misplaced"):
    """A replica turned out not to hold a segment, or not to hold it whole. Ignored where State did not say that it does."""

    name: bytes
    replica: ReplicaId


class Unneeded(Change, frozen=True, array_like=True, tag="unneeded"):
    """No file needs these segments: from `time_ns` on they wait to be collected. Ignored where one does, or it was said before.

    Naming a segment again (`AddSegment`) ends its wait.
    """

    names: list[bytes]
    time_ns: int


class Collect(Change, frozen=True, array_like=True, tag="collect"):
    """Makes those of the segments unknown that no file needs, and that have waited since `until_ns` or longer.

    From then on replicas may delete them. Nothing that was put before this entry, and is not known by then, is taken any more
    (`AddSegment.since`): what comes under the same name later would be deleted with it.
    """

    names: list[bytes]
    until_ns: int


class Deleted(Change, frozen=True, array_like=True, tag="deleted"):
    """No replica holds these collected segments any more. Ignored where that is known."""

    names: list[bytes]


REPLICA_MAX = 255
"""The highest number that a replica can have; a number is never given again."""


class AddReplica(Change, frozen=True, array_like=True, tag="addreplica"):
    """Makes a replica a member, which lacks every segment.

    Aborts: Exists (the number was ever used, or a member has the URL), Invalid (a number outside 1 to REPLICA_MAX).
    """

    replica: ReplicaId
    url: str


class RemoveReplica(Change, frozen=True, array_like=True, tag="removereplica"):
    """A replica is no member any more; what it holds does not count.

    Aborts: NotFound, Invalid (the last one, or one of as few as a write needs; without `force` also the only one that holds a
    segment which files need).
    """

    replica: ReplicaId
    force: bool = False


AnyChange = (
    Found
    | OpenSession
    | CloseSession
    | Fence
    | Recovered
    | Renew
    | Acquire
    | Withdraw
    | Release
    | Deny
    | Make
    | Link
    | Unlink
    | Rmdir
    | Rename
    | Drop
    | Truncate
    | Write
    | Fold
    | SetAttr
    | SetXattr
    | RemoveXattr
    | AddSegment
    | Placed
    | Misplaced
    | Unneeded
    | Collect
    | Deleted
    | AddReplica
    | RemoveReplica
)
