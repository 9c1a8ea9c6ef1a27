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


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's store was asked over the network since the mount began: requests by verb, and bytes of objects."""

    put: int
    get: int
    head: int
    list: int
    delete: int
    bytes_in: int
    bytes_out: int


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. What it lacks, of the segments that files need, is what State says: the same on every mount.

    `state` is up, probing or down, as this mount finds it, and unasked where it is offline; `down_seconds`: how long it has not
    been up. `latency_seconds`: of recent small reads; None where there were none. `lag_seconds`: the age of the oldest segment
    that it lacks; None if that is not known. `outstanding`: puts that nobody waits for any more.
    `requests`: None where they are not counted.
    `mirrored`: up to which position it holds every entry of the journal; `mirror_lag` how many are missing, and
    `mirror_lag_seconds` the age of the first of them. None where this mount does not know: the mount that does the chores does,
    once it has looked.
    """

    replica: int
    url: str
    state: str
    latency_seconds: float | None
    down_seconds: float | None
    missing_segments: int
    missing_bytes: int
    lag_seconds: float | None
    outstanding: int
    last_error: str
    requests: RequestCounts | None
    mirrored: int | None = None
    mirror_lag: int | None = None
    mirror_lag_seconds: float | None = None


class EdgeCacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The cache on disk: what it answered and fetched since the mount began, and how full it is, which all mounts share.

    `trouble`: why nothing is kept at the moment, "" if it is.
    """

    directory: str
    hits: int
    misses: int
    hit_bytes: int
    fetched_bytes: int
    used_bytes: int
    max_bytes: int
    trouble: str


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of chunks in memory, as stored and decoded, their bound, and bytes in staging files on disk.

    `edge` is None where there is no cache on disk.
    """

    memory_bytes: int
    memory_max_bytes: int
    staging_bytes: int
    edge: EdgeCacheStatus | None = None


class WorkspaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A mount at one moment. `oldest_unsaved_seconds` is 0 when nothing is unsaved; `recovered` names recovery folders.

    `write_quorum`: how many replicas `quorum` replication waits for, 0 for most. `reachable`: whether the last write reached as
    many as it has to. `inline_bytes`: how many of `stored_bytes` are in State and the journal, not in segments.
    `lease_ttl_seconds` is this mount's own, `leases` how many files and spaces it holds leases on.
    """

    name: str
    workspace: str
    durability: str
    replication: str
    write_quorum: int
    reachable: bool
    position: int
    pending_transactions: int
    dirty_bytes: int
    dirty_files: int
    oldest_unsaved_seconds: float
    files: int
    stored_bytes: int
    inline_bytes: int
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
