"""What a mount says of itself: the values behind `agentfs status` and `agentfs locks`, without secrets or contents."""

from typing import Literal

import msgspec


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One open session. `this` marks the one that answers.

    `ttl_seconds`: how long it may stay silent before it is judged dead; None where that is not known (yet).
    """

    session: int
    host: str
    pid: int
    label: str
    opened_ns: int
    this: bool
    ttl_seconds: float | None


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: `state` is up or down, `missing_segments` how many that it should hold and does not."""

    replica: int
    url: str
    state: str
    missing_segments: int
    last_error: str


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of chunks in memory, as stored and decoded, their bound, and bytes in staging files on disk."""

    memory_bytes: int
    memory_max_bytes: int
    staging_bytes: int


class WorkspaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A mount at one moment. `oldest_unsaved_seconds` is 0 when nothing is unsaved; `recovered` names recovery folders.

    `lease_ttl_seconds` is this mount's own, `leases` how many files and spaces it holds leases on.
    """

    name: str
    workspace: str
    durability: str
    replication: str
    position: int
    pending_transactions: int
    dirty_bytes: int
    dirty_files: int
    oldest_unsaved_seconds: float
    files: int
    stored_bytes: int
    lease_ttl_seconds: float
    leases: int
    sessions: list[SessionStatus]
    replicas: list[ReplicaStatus]
    cache: CacheStatus
    recovered: list[str]


class LockRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of bytes of one file that somebody has locked, may lock, or waits for: a line of `agentfs locks`.

    `path` is from the workspace's root. `first` and `last` are both included; `last` is None to the end of the file. `state`:

    - held: a process of this mount has the lock, and `pid` is that process;
    - idle: this mount has the lease, none of its processes the lock;
    - leased: another session has the lease;
    - waiting: the request is in the queue.

    `holder` is the session's label, or host:pid. `pid` is the process, where it is known. `age_seconds` counts from the grant
    or the request. `ttl_seconds`: how long the session may stay silent before it is judged dead; None where that is not known.
    """

    path: str
    ino: int
    space: Literal["flock", "fcntl"]
    mode: Literal["shared", "exclusive"]
    first: int
    last: int | None
    state: Literal["held", "idle", "leased", "waiting"]
    session: int
    holder: str
    pid: int | None
    age_seconds: float
    ttl_seconds: float | None
