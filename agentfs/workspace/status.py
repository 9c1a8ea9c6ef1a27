"""What a mount says of itself: the values behind `agentfs status`, without secrets or contents."""

import msgspec


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One open session. `this` marks the one that answers."""

    session: int
    host: str
    pid: int
    label: str
    opened_ns: int
    this: bool


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
    """A mount at one moment. `oldest_unsaved_seconds` is 0 when nothing is unsaved; `recovered` names recovery folders."""

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
    sessions: list[SessionStatus]
    replicas: list[ReplicaStatus]
    cache: CacheStatus
    recovered: list[str]
